#include "queue_process.hpp"

#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "../../../backends/registry.hpp"
#include "common/channel.hpp"
#include "common/fault_point.hpp"
#include "process_setup.hpp"
#include "queue.hpp"

namespace ublk {

namespace {

void nameProcess(const SpawnMessage& request, uint32_t queue) {
  char name[16];
  std::snprintf(name, sizeof name, "ublk/%d/%u", request.deviceId, queue);
  prctl(PR_SET_NAME, name);
}

void beginPreparing(QueuePage& page) {
  page.failureErrno = 0;
  page.phase = static_cast<uint32_t>(Phase::preparing);
}

// Takes the parked files and closes the socket: a process that serves must not reach what is parked there.
std::vector<FileDescriptor> takeFiles(int parked) {
  if (parked < 0) return {};
  const FileDescriptor socket(parked);
  return parkedFiles(socket.get());
}

[[noreturn]] void giveUp(QueuePage* page, const std::system_error& error) {
  if (page) reportFailure(*page, error);
  _exit(1);
}

}  // namespace

void enterJavaScript(Inheritance& inheritance, const FileDescriptor& sharedPage, int parkedFiles) {
  const SpawnMessage& request = inheritance.request;
  QueuePage* page = nullptr;
  try {
    nameProcess(request, inheritance.queue);
    inheritance.shared = mapSharedPage(sharedPage.get(), request.queues, request.depth);
    page = &inheritance.shared.queue(inheritance.queue);
    beginPreparing(*page);
    faultPoint("preparing", inheritance.queue);
    prepareForReclaim();
    std::vector<FileDescriptor> files = takeFiles(parkedFiles);
    if (files.empty()) throw std::system_error(EBADF, std::generic_category(), "receiving the shared memory");
    for (FileDescriptor& file : files) inheritance.files.push_back(file.release());
    dropPrivileges(request.user, request.coreDump != 0);
    confine(false);
  } catch (const std::system_error& error) {
    giveUp(page, error);
  }
}

void runQueueProcess(const QueueInheritance& inheritance) {
  const SpawnMessage& request = inheritance.request;
  QueuePage* page = nullptr;
  try {
    nameProcess(request, inheritance.queue);
    const SharedMap shared = mapSharedPage(inheritance.sharedPage, request.queues, request.depth);
    close(inheritance.sharedPage);
    page = &shared.queue(inheritance.queue);
    beginPreparing(*page);
    faultPoint("preparing", inheritance.queue);
    prepareForReclaim();
    const std::vector<FileDescriptor> files = takeFiles(inheritance.parkedFiles);
    const std::vector<int> backendFiles = rawDescriptors(files);

    char backendName[sizeof request.backend + 1] = {};
    std::memcpy(backendName, request.backend, sizeof request.backend);
    const std::unique_ptr<Backend> backend = makeBackend(backendName);
    if (!backend) throw std::system_error(ENOENT, std::generic_category(), "finding the backend");
    Queue queue({.index = inheritance.queue,
                 .queues = request.queues,
                 .depth = request.depth,
                 .maxIoBytes = request.maxIoBytes,
                 .deviceBytes = request.size,
                 .dataPath = request.dataPath,
                 .charDevice = inheritance.charDevice,
                 .backendFiles = backendFiles,
                 .descriptors = inheritance.descriptors,
                 .header = &shared.header(),
                 .page = page,
                 .inflight = shared.inflight(inheritance.queue),
                 .faults = shared.faults()},
                *backend);
    // The ring's registered file is now the only reference: the kernel drops it after the ring's last request ended.
    close(inheritance.charDevice);
    // Before the backend maps its store: a RAM disk may be swapped out, the memory that serves it may not.
    lockMemory();
    backend->open({request.size, request.depth, request.maxIoBytes, backendFiles});
    dropPrivileges(request.user, request.coreDump != 0);
    // The kernel opens a core file in the name of the process.
    confine(request.coreDump == 0);
    queue.fetchWithSiblings();
    queue.serve();
    page->phase = static_cast<uint32_t>(Phase::released);
    _exit(0);
  } catch (const std::system_error& error) {
    giveUp(page, error);
  }
}

}  // namespace ublk
