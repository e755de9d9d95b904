#include "user.hpp"

#include <grp.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "file_descriptor.hpp"

namespace ublk {

namespace {

bool isUser(const User& user) {
  uid_t uids[3];
  gid_t gids[3];
  if (getresuid(&uids[0], &uids[1], &uids[2]) < 0 || getresgid(&gids[0], &gids[1], &gids[2]) < 0) return false;
  for (int i = 0; i < 3; i++) {
    if (uids[i] != user.uid || gids[i] != user.gid) return false;
  }
  return getgroups(0, nullptr) == 0;
}

}  // namespace

// /proc/PID belongs to root afterwards (PR_SET_DUMPABLE is cleared), and that is kept: no other process of the user may
// trace this one or read its memory, which is the device's data.
void changeUser(const User& user) {
  if (user.uid == kSameUser) return;
  const pid_t parent = getppid();
  int deathSignal = 0;
  checked(prctl(PR_GET_PDEATHSIG, &deathSignal, 0, 0, 0), "PR_GET_PDEATHSIG");
  checked(setgroups(0, nullptr), "leaving all groups");
  checked(setresgid(user.gid, user.gid, user.gid), "changing the group");
  checked(setresuid(user.uid, user.uid, user.uid), "changing the user");
  if (!isUser(user)) throw std::system_error(EPERM, std::generic_category(), "changing the user");
  // The kernel forgets it with the old user; a parent that died meanwhile is no longer ours.
  checked(prctl(PR_SET_PDEATHSIG, deathSignal, 0, 0, 0), "PR_SET_PDEATHSIG");
  if (deathSignal != 0 && getppid() != parent) _exit(1);
}

}  // namespace ublk
