#include "queue_process.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstring>
#include <memory>

#include "../../backends/registry.hpp"
#include "fault_point.hpp"
#include "file_descriptor.hpp"
#include "queue.hpp"
#include "shared_page.hpp"

namespace ublk {

namespace {

SharedMap mapSharedPage(int memfd, uint32_t queues, uint32_t depth) {
  const SharedLayout layout{queues, depth};
  void* base = mmap(nullptr, layout.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memfd, 0);
  if (base == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mapping the shared page");
  const SharedMap map(base, layout);
  const DeviceHeader& header = map.header();
  if (header.magic != kSharedMagic || header.version != kSharedVersion || header.queues != queues ||
      header.depth != depth) {
    throw std::system_error(EPROTO, std::generic_category(), "reading the shared page");
  }
  return map;
}

// Writing dirty pages back must never wait for this process to get memory that the write-back is meant to free.
void prepareForReclaim() {
  checked(prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0), "PR_SET_IO_FLUSHER");
  const FileDescriptor score(checked(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC), "opening oom_score_adj"));
  checked(write(score.get(), "-1000", 5), "lowering oom_score_adj");
}

// What is resident stays resident. ONFAULT, because the node binary is mapped too and hardly any of it is ever touched.
void lockMemory() { checked(mlockall(MCL_CURRENT | MCL_ONFAULT), "mlockall"); }

// A queue process answers requests and nothing else. Without CAP_SYS_ADMIN in the fetching process the kernel also
// leaves the partition table alone, which 6.12 and 6.16 need: a server that dies in that scan wedges ublk for good.
void dropPrivileges() {
  const rlimit noCore{0, 0};
  checked(setrlimit(RLIMIT_CORE, &noCore), "disabling core dumps");
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++) {
    checked(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "dropping the bounding set");
  }
  checked(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  checked(syscall(SYS_capset, &header, none), "dropping capabilities");
}

// All queues of the device leave together or not at all; the supervisor ends a generation that does not get there.
void awaitSiblings(DeviceHeader& header) {
  static_assert(sizeof header.barrier == sizeof(uint32_t));
  uint32_t ready = header.barrier.fetch_add(1) + 1;
  while (ready < header.queues) {
    syscall(SYS_futex, &header.barrier, FUTEX_WAIT, ready, nullptr, nullptr, 0);
    ready = header.barrier.load();
  }
  syscall(SYS_futex, &header.barrier, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

void runQueueProcess(const QueueInheritance& inheritance) {
  const SpawnMessage& request = inheritance.request;
  QueuePage* page = nullptr;
  try {
    char name[16];
    std::snprintf(name, sizeof name, "ublk/%d/%u", request.deviceId, inheritance.queue);
    prctl(PR_SET_NAME, name);
    const SharedMap shared = mapSharedPage(inheritance.sharedPage, request.queues, request.depth);
    close(inheritance.sharedPage);
    page = &shared.queue(inheritance.queue);
    page->failureErrno = 0;
    page->phase = static_cast<uint32_t>(Phase::preparing);
    faultPoint("preparing", inheritance.queue);
    prepareForReclaim();

    char backendName[sizeof request.backend + 1] = {};
    std::memcpy(backendName, request.backend, sizeof request.backend);
    const std::unique_ptr<Backend> backend = makeBackend(backendName);
    if (!backend) throw std::system_error(ENOENT, std::generic_category(), "finding the backend");
    Queue queue({.index = inheritance.queue,
                 .depth = request.depth,
                 .maxIoBytes = request.maxIoBytes,
                 .deviceBytes = request.size,
                 .dataPath = request.dataPath,
                 .charDevice = inheritance.charDevice,
                 .descriptors = inheritance.descriptors,
                 .page = page,
                 .inflight = shared.inflight(inheritance.queue)},
                *backend);
    // The ring's registered file is now the only reference: the kernel drops it after the ring's last request ended.
    close(inheritance.charDevice);
    // Before the backend maps its store: a RAM disk may be swapped out, the memory that serves it may not.
    lockMemory();
    backend->open({request.size, request.maxIoBytes, inheritance.backendFiles});
    dropPrivileges();
    awaitSiblings(shared.header());
    page->phase = static_cast<uint32_t>(Phase::fetching);
    faultPoint("fetching", inheritance.queue);
    queue.fetchAll();
    page->phase = static_cast<uint32_t>(Phase::fetched);
    faultPoint("fetched", inheritance.queue);
    queue.serve();
    page->phase = static_cast<uint32_t>(Phase::released);
    _exit(0);
  } catch (const std::system_error& error) {
    if (page) {
      std::snprintf(page->failureStep, sizeof page->failureStep, "%s", error.what());
      page->failureErrno = error.code().value();
    }
  }
  _exit(1);
}

}  // namespace ublk
