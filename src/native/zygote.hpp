#pragma once

#include "inheritance.hpp"

namespace ublk {

// What the supervisor gives the zygote, by descriptor number.
constexpr int kListenFd = 3;   // a listening SOCK_SEQPACKET socket: supervisors connect to it, one at a time
constexpr int kControlFd = 4;  // /dev/ublk-control

// Serves spawn and control requests until told to retire. Runs before main(), in a process with one thread. Returns
// only in a forked queue process that is to serve in JavaScript, prepared and without privileges.
Inheritance runZygote();

}  // namespace ublk
