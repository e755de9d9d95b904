#pragma once

#include <string>

#include "file_descriptor.hpp"

namespace ublk {

// A name that the kernel has in its caches, as it has of every file that is in use; nothing is asked of a file system, which may
// be of a server that does not answer. Empty: it has not.
FileDescriptor openCached(const std::string& path);

}  // namespace ublk
