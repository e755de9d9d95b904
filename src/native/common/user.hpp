#pragma once

#include <cstdint>

namespace ublk {

constexpr uint32_t kSameUser = UINT32_MAX;  // (uid_t)-1 is nobody's

struct User {
  uint32_t uid;  // kSameUser: no other user
  uint32_t gid;
};

// Becomes `user`, in no other group, for good. Throws std::system_error, after which the process must not go on: it
// may be half changed. kSameUser changes nothing.
void changeUser(const User& user);

}  // namespace ublk
