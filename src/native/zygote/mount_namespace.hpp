#pragma once

namespace ublk {

// Gives this process, and every child, a mount namespace of its own, in which no file system is that lives on a ublk
// device. Throws std::system_error.
//
// The last process of a namespace takes its mounts away as it exits. A server of a device that is mounted there would
// then wait for I/O that it has to answer itself.
void enterOwnMountNamespace();

}  // namespace ublk
