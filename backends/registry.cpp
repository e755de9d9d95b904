#include "registry.hpp"

#include "null/null.hpp"
#include "ram/ram.hpp"

namespace ublk {

std::unique_ptr<Backend> makeBackend(std::string_view name) {
  if (name == "null") return std::make_unique<NullBackend>();
  if (name == "ram") return std::make_unique<RamBackend>();
  return nullptr;
}

}  // namespace ublk
