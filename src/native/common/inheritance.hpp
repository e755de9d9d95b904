// What a queue process that serves in JavaScript has from the zygote, for the addon that is loaded later.
#pragma once

#include <vector>

#include "protocol.hpp"
#include "shared_page.hpp"

namespace ublk {

struct Inheritance {
  SpawnMessage request;
  uint32_t queue;
  int charDevice;
  const IoDescriptor* descriptors;
  int channel;  // to the supervisor: a stream socket
  // First the file that the device's shared memory is in, then for each store below the backend the socket in which its
  // files are parked.
  std::vector<int> files;
  SharedMap shared;
};

}  // namespace ublk

// Defined in the preloaded zygote library, found by name from the addon; null in a process that inherited nothing.
extern "C" ublk::Inheritance* ublk_supervisor_inheritance();
