#pragma once

#include "common/protocol.hpp"

namespace ublk {

// Runs one control action in the calling process, which was forked for it, reports to `supervisor` and exits. whenFetched
// needs the device's shared page. The
// supervisor ends the process when its deadline passes, so nothing here guards against blocking for ever.
[[noreturn]] void runControlProcess(int supervisor, int controlFd, const ControlMessage& message, int sharedPage);

}  // namespace ublk
