#pragma once

#include "common/file_descriptor.hpp"
#include "common/inheritance.hpp"

namespace ublk {

// Serves spawn and control requests for one device until told to retire. `listener`: supervisors that take over connect to
// it, one at a time; `supervisor`: the connection to the first; `controlFd`: /dev/ublk-control. Returns only in a forked
// queue process that is to serve in JavaScript, prepared and without privileges.
Inheritance runZygote(FileDescriptor listener, FileDescriptor supervisor, int controlFd);

}  // namespace ublk
