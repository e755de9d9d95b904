#pragma once

#include <sys/types.h>

namespace ublk {

// The process that connected a unix socket.
struct Peer {
  uid_t uid;
  // It has CAP_SYS_ADMIN, in the user namespace of this process, or this process lacks it too. A uid of 0 alone says
  // little: queue processes have it without any capability, and so has root in some containers.
  bool administrates;
};

// Throws std::system_error, also when the process is gone or not visible from here.
Peer peerOf(int socket);

}  // namespace ublk
