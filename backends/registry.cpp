#include "registry.hpp"

#include "file/file.hpp"
#include "null/null.hpp"
#include "ram/ram.hpp"
#include "zip/zip.hpp"

namespace ublk {

std::unique_ptr<Backend> makeBackend(std::string_view name) {
  if (name == "file") return std::make_unique<FileBackend>();
  if (name == "null") return std::make_unique<NullBackend>();
  if (name == "ram") return std::make_unique<RamBackend>();
  if (name == "zip") return std::make_unique<ZipBackend>();
  return nullptr;
}

}  // namespace ublk
