#include "shared_page.hpp"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>

#include "file_descriptor.hpp"

namespace ublk {

SharedMap mapSharedPage(int memfd, uint32_t queues, uint32_t depth) {
  SharedLayout layout{queues, depth, false};
  struct stat found {};
  checked(fstat(memfd, &found), "looking at the shared page");
  layout.allowsFaults = found.st_size > static_cast<off_t>(layout.bytes());
  if (found.st_size != static_cast<off_t>(layout.bytes())) {
    throw std::system_error(EPROTO, std::generic_category(), "looking at the shared page");
  }
  void* base = mmap(nullptr, layout.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memfd, 0);
  if (base == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mapping the shared page");
  return {base, layout};
}

void reportFailure(QueuePage& page, const std::system_error& error) {
  std::snprintf(page.failureStep, sizeof page.failureStep, "%s", error.what());
  page.failureErrno = error.code().value();
}

void awaitSiblings(DeviceHeader& header, uint32_t queues) {
  static_assert(sizeof header.barrier == sizeof(uint32_t));
  uint32_t ready = header.barrier.fetch_add(1) + 1;
  while (ready < queues) {
    syscall(SYS_futex, &header.barrier, FUTEX_WAIT, ready, nullptr, nullptr, 0);
    ready = header.barrier.load();
  }
  syscall(SYS_futex, &header.barrier, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void announceFetched(DeviceHeader& header) {
  header.fetched.fetch_add(1);
  syscall(SYS_futex, &header.fetched, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void awaitPermission(DeviceHeader& header) {
  while (header.mayComplete == 0) syscall(SYS_futex, &header.mayComplete, FUTEX_WAIT, 0, nullptr, nullptr, 0);
}

}  // namespace ublk
