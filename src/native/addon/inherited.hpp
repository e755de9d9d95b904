#pragma once

#include <dlfcn.h>

#include <system_error>

#include "common/inheritance.hpp"

namespace ublk::addon {

// What this queue process has from its zygote; null in any other process. Throws std::system_error.
inline Inheritance* inheritance() {
  const auto find = reinterpret_cast<Inheritance* (*)()>(dlsym(RTLD_DEFAULT, "ublk_supervisor_inheritance"));
  Inheritance* inherited = find ? find() : nullptr;
  // The zygote runs on when another version is installed in its place.
  if (inherited && inherited->request.header.version != kProtocolVersion) {
    throw std::system_error(EPROTO, std::generic_category(), "inheriting a queue from a zygote of another version");
  }
  return inherited;
}

}  // namespace ublk::addon
