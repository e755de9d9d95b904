#pragma once

#include "common/backend.hpp"

namespace ublk {

// Reads zeros, forgets writes.
class NullBackend final : public Backend {
 public:
  void open(const BackendSetup& setup) override;
  void submit(Responder& queue, const Request& request) override;
};

}  // namespace ublk
