#pragma once

#include "common/shared_page.hpp"

namespace ublk::addon {

// Has a thread that does not come back from JavaScript write down in its queue's page where it is. Node-API cannot do that
// from another thread, and V8's headers are another release's with each Node, so V8's functions are found by name, in
// the node that runs; where they have other names there is no stack. The process that is asked is about to be killed.
class JavaScriptStack {
 public:
  // To be made by the thread that runs JavaScript.
  explicit JavaScriptStack(QueuePage& page);

  // From any thread, without waiting: it is written when JavaScript runs.
  void capture() const;

 private:
  QueuePage& page_;
  void* isolate_ = nullptr;  // null: this node does not have the functions
};

}  // namespace ublk::addon
