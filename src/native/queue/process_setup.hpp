// What a queue process does to itself before it fetches. Everything throws std::system_error.
#pragma once

#include <cstddef>

#include "common/user.hpp"

namespace ublk {

// Memory that is there at once; `protection` as for mmap(2).
std::byte* mapMemory(size_t bytes, int protection);

// Writing dirty pages back must never wait for this process to get memory that the write-back is meant to free.
// Threads inherit the flag that marks them for the kernel, so this comes before there are any.
void prepareForReclaim();

// What is resident stays resident.
void lockMemory();

// Becomes `user` too. Throws when anything of it failed: then the process must end. `coreDump`: a crash of this process
// may leave one, with the data of its requests in it.
void dropPrivileges(const User& user, bool coreDump);

// What a process without capabilities may still do as its user, above all as root, ends here: it can signal and trace
// only itself and its children. `files`: nor open, make or remove anything; what it has open stays as it is. Does what the
// kernel's Landlock can, which may be nothing. After dropPrivileges.
void confine(bool files);

}  // namespace ublk
