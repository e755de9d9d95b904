#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <climits>
#include <cstring>

#include "bindings.hpp"
#include "common/file_descriptor.hpp"
#include "common/shared_page.hpp"
#include "fault_area.hpp"

namespace ublk::addon {

namespace {

// The supervisor's view of a device's shared page. new SharedPages(queues, depth, allowsFaults): a new one;
// new SharedPages(queues, depth, memfd): one that an earlier supervisor made, with what is in it; takes the descriptor over.
class SharedPages final : public Napi::ObjectWrap<SharedPages> {
 public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set("SharedPages", DefineClass(env, "SharedPages",
                                           {
                                               InstanceAccessor<&SharedPages::fd>("fd"),
                                               InstanceMethod<&SharedPages::beginGeneration>("beginGeneration"),
                                               InstanceMethod<&SharedPages::readQueue>("readQueue"),
                                               InstanceMethod<&SharedPages::signsOfLife>("signsOfLife"),
                                               InstanceMethod<&SharedPages::ask>("ask"),
                                               InstanceMethod<&SharedPages::stackOf>("stackOf"),
                                               InstanceMethod<&SharedPages::outstanding>("outstanding"),
                                               InstanceMethod<&SharedPages::failures>("failures"),
                                               InstanceMethod<&SharedPages::mark>("mark"),
                                               InstanceMethod<&SharedPages::marked>("marked"),
                                               InstanceMethod<&SharedPages::drain>("drain"),
                                               InstanceMethod<&SharedPages::setFault>("setFault"),
                                               InstanceMethod<&SharedPages::faults>("faults"),
                                               InstanceMethod<&SharedPages::faultLog>("faultLog"),
                                           }));
  }

  explicit SharedPages(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SharedPages>(info) {
    guarded(info.Env(), [&] {
      const SharedLayout layout{info[0].As<Napi::Number>().Uint32Value(), info[1].As<Napi::Number>().Uint32Value(),
                                info[2].IsBoolean() && info[2].ToBoolean()};
      if (info[2].IsNumber()) {
        memfd_ = FileDescriptor(info[2].As<Napi::Number>().Int32Value());
        map_ = mapSharedPage(memfd_.get(), layout.queues, layout.depth);
      } else {
        create(layout);
      }
    });
  }

  ~SharedPages() override {
    if (map_.base()) munmap(map_.base(), map_.layout().bytes());
  }

 private:
  void create(const SharedLayout& layout) {
    memfd_ = FileDescriptor(checked(memfd_create("ublk-shared-page", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create"));
    checked(ftruncate(memfd_.get(), static_cast<off_t>(layout.bytes())), "sizing the shared page");
    // A queue process cannot shrink it, and so make the supervisor fault.
    checked(fcntl(memfd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), "sealing the shared page");
    void* base = mmap(nullptr, layout.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, memfd_.get(), 0);
    if (base == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mapping the shared page");
    map_ = SharedMap(base, layout);
  }

  Napi::Value fd(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), memfd_.get()); }

  // beginGeneration(keepsOneBack): only while no queue process of the device is alive. Counters go on.
  void beginGeneration(const Napi::CallbackInfo& info) {
    const bool keepsOneBack = info[0].ToBoolean();
    map_.header().barrier = 0;
    map_.header().fetched = 0;
    map_.header().mayComplete = keepsOneBack && map_.layout().queues > 1 ? 0 : 1;
    for (uint32_t index = 0; index < map_.layout().queues; index++) {
      QueuePage& page = map_.queue(index);
      page.phase = static_cast<uint32_t>(Phase::absent);
      page.drain = 0;
      page.failureErrno = 0;
      page.failureStep[0] = '\0';
      page.stack[0] = '\0';
      page.inflight = 0;
      page.lastAnswerNs = 0;
      for (uint32_t tag = 0; tag < map_.layout().depth; tag++) map_.inflight(index)[tag].startNs = 0;
    }
  }

  // drain(): every queue process finishes what its backend holds, answers nothing new and exits.
  void drain(const Napi::CallbackInfo&) {
    for (uint32_t index = 0; index < map_.layout().queues; index++) {
      QueuePage& page = map_.queue(index);
      page.drain = 1;
      syscall(SYS_futex, &page.drain, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
    }
  }

  // readQueue(index): { phase, inflight, failureErrno, failureStep, sinceAnswerMs,
  // operations: [{ count, bytes, errors, p50ns, p99ns }] }
  Napi::Value readQueue(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const QueuePage& page = map_.queue(indexOf(info));
    Napi::Object answer = Napi::Object::New(env);
    answer.Set("phase", phaseOf(page));
    answer.Set("inflight", page.inflight.load());
    answer.Set("failureErrno", page.failureErrno.load());
    answer.Set("failureStep", std::string(page.failureStep, strnlen(page.failureStep, sizeof page.failureStep)));
    const uint64_t answered = page.lastAnswerNs.load(std::memory_order_relaxed);
    answer.Set("sinceAnswerMs", answered == 0 ? env.Null() : Napi::Number::New(env, millisecondsSince(answered)));
    Napi::Array operations = Napi::Array::New(env, kOperationKinds);
    for (uint32_t kind = 0; kind < kOperationKinds; kind++) {
      const OperationCounters& counters = page.operations[kind];
      Napi::Object operation = Napi::Object::New(env);
      operation.Set("count", static_cast<double>(counters.count.load()));
      operation.Set("bytes", static_cast<double>(counters.bytes.load()));
      operation.Set("errors", static_cast<double>(counters.errors.load()));
      // Most queues have never had some kinds of requests, and a histogram is 2 KiB to look through.
      const bool none = counters.count.load() == 0;
      operation.Set("p50ns", none ? 0 : counters.latency.quantile(0.5));
      operation.Set("p99ns", none ? 0 : counters.latency.quantile(0.99));
      operations.Set(kind, operation);
    }
    answer.Set("operations", operations);
    return answer;
  }

  // stackOf(index): what JavaScript does in a queue's process that has not turned since it was asked to; '' where that is not
  // known.
  Napi::Value stackOf(const Napi::CallbackInfo& info) {
    const QueuePage& page = map_.queue(indexOf(info));
    const bool present = page.stackProgress.load() == page.progress.load();
    return Napi::String::New(info.Env(), page.stack, present ? strnlen(page.stack, sizeof page.stack) : 0);
  }

  // ask(index): has the queue's loop turn once, if it can.
  void ask(const Napi::CallbackInfo& info) {
    QueuePage& page = map_.queue(indexOf(info));
    syscall(SYS_futex, &page.drain, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }

  // signsOfLife(Float64Array): fills in phase, progress, answered, oldestMs and failed of each queue; `oldestMs` is 0 when its
  // backend has nothing. Asked again and again of every device, so it allocates nothing.
  void signsOfLife(const Napi::CallbackInfo& info) {
    Napi::Float64Array signs = info[0].As<Napi::Float64Array>();
    const uint32_t queues = map_.layout().queues;
    if (signs.ElementLength() < size_t{5} * queues) throw Napi::RangeError::New(info.Env(), "too short an array");
    double* sign = signs.Data();
    for (uint32_t index = 0; index < queues; index++) {
      const QueuePage& page = map_.queue(index);
      uint64_t answered = 0;
      uint64_t failed = 0;
      for (const OperationCounters& counters : page.operations) {
        answered += counters.count.load(std::memory_order_relaxed);
        failed += counters.errors.load(std::memory_order_relaxed);
      }
      *sign++ = phaseOf(page);
      *sign++ = page.progress.load(std::memory_order_relaxed);
      *sign++ = static_cast<double>(answered);
      *sign++ = oldestMs(index);
      *sign++ = static_cast<double>(failed);
    }
  }

  // 0: its backend has nothing, but for what a fault rule keeps from it.
  double oldestMs(uint32_t index) const {
    if (map_.queue(index).inflight.load(std::memory_order_relaxed) == 0) return 0;
    uint64_t since = UINT64_MAX;
    for (uint32_t tag = 0; tag < map_.layout().depth; tag++) {
      const InflightEntry& entry = map_.inflight(index)[tag];
      const uint64_t startNs = entry.startNs.load(std::memory_order_acquire);
      if (startNs != 0 && entry.injected.load(std::memory_order_relaxed) == 0) since = std::min(since, startNs);
    }
    return since == UINT64_MAX ? 0 : millisecondsSince(since);
  }

  // outstanding(index): what its backend has, in no order, as { ageMs, operation, startSector, sectors, injected,
  // overtaken, overtakenByItsKind }; injected: a fault rule keeps it from the backend; overtaken: what the backend got later was answered.
  Napi::Value outstanding(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const uint32_t index = indexOf(info);
    const QueuePage& page = map_.queue(index);
    Napi::Array requests = Napi::Array::New(env);
    for (uint32_t tag = 0; tag < map_.layout().depth; tag++) {
      const InflightEntry& entry = map_.inflight(index)[tag];
      const uint64_t startNs = entry.startNs.load(std::memory_order_acquire);
      if (startNs != 0) requests.Set(requests.Length(), describe(env, page, entry, startNs));
    }
    return requests;
  }

  // failures(index): [{ operation, error, startSector, sectors, count }], an entry a kind; the place is that of the last one.
  Napi::Value failures(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    Napi::Array kinds = Napi::Array::New(env);
    for (const Failures& failures : map_.queue(indexOf(info)).failures) {
      const uint64_t count = failures.count.load(std::memory_order_relaxed);
      if (count == 0) continue;
      Napi::Object kind = Napi::Object::New(env);
      kind.Set("operation", failures.operation.load());
      kind.Set("error", failures.error.load());
      kind.Set("startSector", static_cast<double>(failures.startSector.load()));
      kind.Set("sectors", failures.sectors.load());
      kind.Set("count", static_cast<double>(count));
      kinds.Set(kinds.Length(), kind);
    }
    return kinds;
  }

  // mark([{ operation, startSector, sectors, refused, crashes }]), refused ones first: replaces all marks. Not while queue
  // processes are alive, but for an empty list. What is beyond the table's size is left out.
  void mark(const Napi::CallbackInfo& info) {
    const Napi::Array requests = info[0].As<Napi::Array>();
    const uint32_t count = std::min(requests.Length(), kMaxMarked);
    for (uint32_t i = 0; i < count; i++) {
      const Napi::Object request = requests.Get(i).As<Napi::Object>();
      MarkedRequest& marked = map_.header().markedRequests[i];
      marked.startSector = static_cast<uint64_t>(request.Get("startSector").ToNumber().Int64Value());
      marked.sectors = request.Get("sectors").ToNumber().Uint32Value();
      marked.operation = request.Get("operation").ToNumber().Uint32Value();
      marked.crashes = request.Get("crashes").ToNumber().Uint32Value();
      marked.mark = static_cast<uint32_t>(request.Get("refused").ToBoolean() ? Mark::refused : Mark::alone);
    }
    map_.header().marked = count;
  }

  // marked(): what was marked and is not answered.
  Napi::Value marked(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    Napi::Array requests = Napi::Array::New(env);
    for (uint32_t i = 0; i < std::min(map_.header().marked.load(), kMaxMarked); i++) {
      const MarkedRequest& marked = map_.header().markedRequests[i];
      const auto mark = static_cast<Mark>(marked.mark.load());
      if (mark == Mark::none) continue;
      Napi::Object request = Napi::Object::New(env);
      request.Set("operation", marked.operation.load());
      request.Set("startSector", static_cast<double>(marked.startSector.load()));
      request.Set("sectors", marked.sectors.load());
      request.Set("refused", mark == Mark::refused);
      request.Set("crashes", marked.crashes.load());
      requests.Set(requests.Length(), request);
    }
    return requests;
  }

  void setFault(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { addon::setFault(faultArea(), info); });
  }

  Napi::Value faults(const Napi::CallbackInfo& info) {
    return map_.faults() ? addon::faults(*map_.faults(), info.Env()) : Napi::Array::New(info.Env());
  }

  Napi::Value faultLog(const Napi::CallbackInfo& info) {
    return map_.faults() ? addon::faultLog(*map_.faults(), info) : Napi::Array::New(info.Env());
  }

  FaultArea& faultArea() const {
    if (!map_.faults()) throw std::system_error(EPERM, std::generic_category(), "making a fault rule");
    return *map_.faults();
  }

  uint32_t indexOf(const Napi::CallbackInfo& info) const {
    const uint32_t index = info[0].As<Napi::Number>().Uint32Value();
    if (index >= map_.layout().queues) throw Napi::RangeError::New(info.Env(), "no such queue");
    return index;
  }

  // What is no phase may be any. While it fetches is when a death is worst.
  static uint32_t phaseOf(const QueuePage& page) {
    const uint32_t phase = page.phase.load();
    return phase <= static_cast<uint32_t>(Phase::released) ? phase : static_cast<uint32_t>(Phase::fetching);
  }

  static Napi::Object describe(Napi::Env env, const QueuePage& page, const InflightEntry& entry, uint64_t startNs) {
    const uint32_t operation = entry.operation.load();
    bool overtaken = false;
    bool byItsKind = false;
    for (uint32_t kind = 0; kind < kOperationKinds; kind++) {
      if (page.operations[kind].newestAnsweredNs.load() <= startNs) continue;
      overtaken = true;
      byItsKind |= kind == counterIndex(static_cast<Operation>(operation));
    }
    Napi::Object answer = Napi::Object::New(env);
    answer.Set("ageMs", millisecondsSince(startNs));
    answer.Set("operation", operation);
    answer.Set("startSector", static_cast<double>(entry.startSector.load()));
    answer.Set("sectors", entry.sectors.load());
    answer.Set("injected", entry.injected.load(std::memory_order_relaxed) != 0);
    answer.Set("overtaken", overtaken);
    answer.Set("overtakenByItsKind", byItsKind);
    return answer;
  }

  static double millisecondsSince(uint64_t monotonicNs) {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const double since = static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6 -
                         static_cast<double>(monotonicNs) / 1e6;
    return std::max(since, 0.0);
  }

  FileDescriptor memfd_;
  SharedMap map_;
};

}  // namespace

void exportSharedPages(Napi::Env env, Napi::Object exports) { SharedPages::define(env, exports); }

}  // namespace ublk::addon
