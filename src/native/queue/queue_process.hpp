#pragma once

#include "common/file_descriptor.hpp"
#include "common/inheritance.hpp"

namespace ublk {

// What a freshly forked queue process has inherited.
struct QueueInheritance {
  const SpawnMessage& request;
  uint32_t queue;
  int charDevice;
  const IoDescriptor* descriptors;
  int sharedPage;
  int parkedFiles;  // the backend's, in the order that it expects; -1: it has none
};

// Prepares, waits until the device's other queue processes are prepared too, then serves the queue. Exits with 0 when
// the kernel has taken every tag back, with 1 when something failed; the shared page then says what.
[[noreturn]] void runQueueProcess(const QueueInheritance& inheritance);

// The part of it that a queue process with a JavaScript backend does before node boots: maps the shared page into
// `inheritance`, takes the shared memory's file out of the socket `parkedFiles`, which it closes, and lets go of every
// privilege. Exits when something fails.
void enterJavaScript(Inheritance& inheritance, const FileDescriptor& sharedPage, int parkedFiles);

}  // namespace ublk
