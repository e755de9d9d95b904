#pragma once

#include "common/inheritance.hpp"

namespace ublk {

// What the supervisor gives the nursery, by descriptor number.
constexpr int kSupervisorFd = 3;  // a SOCK_SEQPACKET socket, whose end is the nursery's
constexpr int kControlFd = 4;     // /dev/ublk-control, which zygotes inherit

// Forks a zygote for each message, until the supervisor is gone. Runs before main(), in a process with one thread. Returns
// only in a queue process that is to serve in JavaScript, prepared and without privileges.
Inheritance runNursery();

}  // namespace ublk
