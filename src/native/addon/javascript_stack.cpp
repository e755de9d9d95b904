#include "javascript_stack.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <ostream>
#include <sstream>
#include <string>

namespace ublk::addon {

namespace {

using Interrupted = void (*)(void* isolate, void* data);

// v8::Isolate::GetCurrent(), v8::Isolate::RequestInterrupt(callback, data)
using GetCurrent = void* (*)();
using RequestInterrupt = void (*)(void* isolate, Interrupted callback, void* data);
// v8::Message::PrintCurrentStackTrace(isolate, out), with a third argument from Node 24 on: which frames, or null.
using PrintStack = void (*)(void* isolate, std::ostream& out, void* filter);

template <typename Function>
Function find(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

RequestInterrupt requestInterrupt() {
  static const auto found = find<RequestInterrupt>("_ZN2v87Isolate16RequestInterruptEPFvPS0_PvES2_");
  return found;
}

PrintStack printStack() {
  static const auto found = [] {
    const auto newer =
        find<PrintStack>("_ZN2v87Message22PrintCurrentStackTraceEPNS_7IsolateERSoPFbS2_NS_5LocalINS_6StringEEEE");
    return newer ? newer : find<PrintStack>("_ZN2v87Message22PrintCurrentStackTraceEPNS_7IsolateERSo");
  }();
  return found;
}

// In the thread that runs JavaScript, between two instructions of it.
void write(void* isolate, void* data) {
  QueuePage& page = *static_cast<QueuePage*>(data);
  std::ostringstream out;
  printStack()(isolate, out, nullptr);
  const std::string text = out.str();
  const size_t length = std::min(text.size(), sizeof page.stack - 1);
  std::copy_n(text.data(), length, page.stack);
  page.stack[length] = '\0';
  page.stackProgress = page.progress.load();
}

}  // namespace

JavaScriptStack::JavaScriptStack(QueuePage& page) : page_(page) {
  const auto current = find<GetCurrent>("_ZN2v87Isolate10GetCurrentEv");
  if (current && requestInterrupt() && printStack()) isolate_ = current();
}

void JavaScriptStack::capture() const {
  if (isolate_) requestInterrupt()(isolate_, write, &page_);
}

}  // namespace ublk::addon
