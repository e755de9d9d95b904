#pragma once

#include <memory>
#include <string_view>

#include "common/backend.hpp"

namespace ublk {

// The C++ half of the backend of that name; null when there is none. The TypeScript counterpart is registry.ts.
std::unique_ptr<Backend> makeBackend(std::string_view name);

}  // namespace ublk
