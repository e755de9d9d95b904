#include "process_setup.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "common/file_descriptor.hpp"

namespace ublk {

namespace {

// linux/landlock.h, of which Debian 12 has an early version.
constexpr long kLandlockCreateRuleset = 444;
constexpr long kLandlockRestrictSelf = 446;
constexpr uint32_t kLandlockVersion = 1;
constexpr uint64_t kLandlockScopes = 3;  // abstract unix sockets, signals; since version 6, Linux 6.12

struct LandlockRules {
  uint64_t files;
  uint64_t network = 0;
  uint64_t scopes;
};

// All that this version of the kernel's interface knows of: reading, writing, executing, making, removing, and so on.
constexpr uint64_t landlockFileRights(long version) {
  if (version >= 5) return 0xffff;
  if (version >= 3) return 0x7fff;
  return version == 2 ? 0x3fff : 0x1fff;
}

}  // namespace

std::byte* mapMemory(size_t bytes, int protection) {
  void* memory = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "allocating request buffers");
  return static_cast<std::byte*>(memory);
}

void prepareForReclaim() {
  checked(prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0), "PR_SET_IO_FLUSHER");
  const rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
  checked(setrlimit(RLIMIT_MEMLOCK, &unlimited), "lifting the limit of locked memory");
  const FileDescriptor score(checked(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC), "opening oom_score_adj"));
  checked(write(score.get(), "-1000", 5), "lowering oom_score_adj");
}

// What is resident stays resident. ONFAULT, because the node binary is mapped too and hardly any of it is ever touched.
void lockMemory() { checked(mlockall(MCL_CURRENT | MCL_ONFAULT), "mlockall"); }

// A queue process answers requests and nothing else. Without CAP_SYS_ADMIN in the fetching process the kernel also
// leaves the partition table alone, which 6.12 and 6.16 need: a server that dies in that scan wedges ublk for good.
void dropPrivileges(const User& user, bool coreDump) {
  const rlim_t largest = coreDump ? RLIM_INFINITY : 0;
  const rlimit core{largest, largest};
  checked(setrlimit(RLIMIT_CORE, &core), "limiting core dumps");
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++) {
    checked(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "dropping the bounding set");
  }
  changeUser(user);
  checked(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  checked(syscall(SYS_capset, &header, none), "dropping capabilities");
  // A change of credentials may have taken it away.
  if (coreDump) checked(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "PR_SET_DUMPABLE");
}

void confine(bool files) {
  const long version = syscall(kLandlockCreateRuleset, nullptr, 0, kLandlockVersion);
  if (version < 1 && (errno == ENOSYS || errno == EOPNOTSUPP)) return;
  checked(version, "asking for Landlock");
  const LandlockRules rules{.files = files ? landlockFileRights(version) : 0,
                            .scopes = version >= 6 ? kLandlockScopes : 0};
  if (rules.files == 0 && rules.scopes == 0) return;
  const size_t known = version >= 6 ? sizeof rules : sizeof rules.files;
  const FileDescriptor ruleset(
      static_cast<int>(checked(syscall(kLandlockCreateRuleset, &rules, known, 0), "making Landlock rules")));
  checked(syscall(kLandlockRestrictSelf, ruleset.get(), 0), "confining the process by Landlock");
}

}  // namespace ublk
