#include <linux/futex.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "common/file_descriptor.hpp"
#include "inherited.hpp"
#include "javascript_stack.hpp"
#include "queue/process_setup.hpp"
#include "queue/queue.hpp"
#include "watcher.hpp"

namespace ublk::addon {

namespace {

// So long the queue goes on while there is something to take; then timers, sockets and whatever else the backend waits for
// have their turn, in which answers come that are not given at once.
constexpr uint64_t kTurnNs = 1'000'000;

// inheritedQueue(): what this queue process is for; null in any other process.
Napi::Value inheritedQueue(const Napi::CallbackInfo& info) {
  const Inheritance* inherited = guarded(info.Env(), inheritance);
  if (!inherited) return info.Env().Null();
  Napi::Object answer = Napi::Object::New(info.Env());
  answer.Set("deviceId", inherited->request.deviceId);
  answer.Set("queue", inherited->queue);
  answer.Set("queues", inherited->request.queues);
  answer.Set("depth", inherited->request.depth);
  answer.Set("maxIoBytes", inherited->request.maxIoBytes);
  answer.Set("size", static_cast<double>(inherited->request.size));
  answer.Set("channel", inherited->channel);
  Napi::Array files = Napi::Array::New(info.Env());
  for (const int file : inherited->files) files.Set(files.Length(), file);
  answer.Set("files", files);
  return answer;
}

// Makes an event each time that the supervisor wakes `drain`, until it is set. A thread, because the ring cannot: Linux
// 6.12.117 signals an eventfd for a futex that is woken once and never again (io_eventfd_do_signal() leaves
// IO_EVENTFD_OP_SIGNAL_BIT set). It also sees that the loop has not turned from one such event to the next, and then has the
// loop's thread write down what it does.
void watchForDrain(QueuePage& page, int eventfd) {
  // Node's own threads see to signals.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread([&page, eventfd, stack = JavaScriptStack(page)] {
    std::optional<uint32_t> asked;
    do {
      syscall(SYS_futex, &page.drain, FUTEX_WAIT, 0, nullptr, nullptr, 0);
      eventfd_write(eventfd, 1);
      const uint32_t progress = page.progress.load(std::memory_order_relaxed);
      if (asked == progress) stack.capture();
      asked = progress;
    } while (page.drain.load(std::memory_order_relaxed) == 0);
  }).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// The queue of a process whose backend is in JavaScript. Requests go there in batches: one call for all that arrived
// together, over arrays that are made once, and one system call for all the answers.
//
// new JsQueue(onBatch(count), onDrain(), onEnd()): `onBatch` finds `count` requests in `requests` and `offsets`, and
// answers, now or later, by filling `answers` and calling answer(). `onDrain`: nothing new comes; `onEnd`: all that came
// is answered, or the kernel has taken it back.
class JsQueue final : public Napi::ObjectWrap<JsQueue>, private Backend {
 public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set("JsQueue", DefineClass(env, "JsQueue",
                                       {
                                           InstanceMethod<&JsQueue::start>("start"),
                                           InstanceMethod<&JsQueue::answer>("answer"),
                                           InstanceAccessor<&JsQueue::buffers>("buffers"),
                                           InstanceAccessor<&JsQueue::requests>("requests"),
                                           InstanceAccessor<&JsQueue::offsets>("offsets"),
                                           InstanceAccessor<&JsQueue::answers>("answers"),
                                           InstanceAccessor<&JsQueue::progress>("progress"),
                                       }));
  }

  explicit JsQueue(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<JsQueue>(info),
        onBatch_(Napi::Persistent(info[0].As<Napi::Function>())),
        onDrain_(Napi::Persistent(info[1].As<Napi::Function>())),
        onEnd_(Napi::Persistent(info[2].As<Napi::Function>())) {
    guarded(info.Env(), [&] {
      inherited_ = inheritance();
      if (!inherited_) throw std::system_error(ENODEV, std::generic_category(), "inheriting a queue");
      const SpawnMessage& request = inherited_->request;
      page_ = &inherited_->shared.queue(inherited_->queue);
      queue_ = std::make_unique<Queue>(QueueSetup{.index = inherited_->queue,
                                                  .queues = request.queues,
                                                  .depth = request.depth,
                                                  .maxIoBytes = request.maxIoBytes,
                                                  .deviceBytes = request.size,
                                                  .dataPath = DataPath::copy,
                                                  .charDevice = inherited_->charDevice,
                                                  .descriptors = inherited_->descriptors,
                                                  .header = &inherited_->shared.header(),
                                                  .page = page_,
                                                  .inflight = inherited_->shared.inflight(inherited_->queue),
                                                  .faults = inherited_->shared.faults()},
                                       static_cast<Backend&>(*this));
      // The registered file of this ring, and of those of stores below the backend, is now the only reference.
      close(std::exchange(inherited_->charDevice, -1));
      eventfd_ = FileDescriptor(checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd"));
      queue_->notify(eventfd_.get());
      // Only the buffers: V8 gives memory back with madvise(), which locked memory refuses.
      const std::span<std::byte> memory = queue_->buffers();
      checked(mlock(memory.data(), memory.size()), "locking request buffers");
      held_.resize(request.depth);
      buffers_ = Napi::Persistent(Napi::ArrayBuffer::New(info.Env(), memory.data(), memory.size()));
      requests_ = array(info.Env(), 3 * held_.size(), requestData_);
      offsets_ = array(info.Env(), held_.size(), offsetData_);
      answers_ = array(info.Env(), 2 * held_.size(), answerData_);
      progress_ = Napi::Persistent(Napi::ArrayBuffer::New(info.Env(), &page_->progress, sizeof page_->progress));
    });
  }

 private:
  // ---- Backend -----------------------------------------------------------------------------------------------------

  void open(const BackendSetup&) override {}

  // requests[3i]: tag; [3i + 1]: operation, 256 added for FUA, 512 for may-unmap; [3i + 2]: bytes. offsets[i]: bytes.
  void submit(Responder&, const Request& request) override {
    held_[request.tag] = request;
    requestData_[3 * batch_] = request.tag;
    requestData_[3 * batch_ + 1] =
        static_cast<int32_t>(request.operation) | (request.fua ? 256 : 0) | (request.mayUnmap ? 512 : 0);
    requestData_[3 * batch_ + 2] = static_cast<int32_t>(request.length);
    offsetData_[batch_] = static_cast<double>(request.offset);
    batch_++;
  }

  // ---- JavaScript --------------------------------------------------------------------------------------------------

  // start(): waits for the device's other queue processes, then fetches.
  void start(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      queue_->fetchWithSiblings();
      watchForDrain(*page_, eventfd_.get());
    });
    Ref();
    watcher_.start(info.Env(), eventfd_.get(), [this] { readable(); });
  }

  // answer(count): sends the first `count` of `answers`, pairs of tag and result (bytes or -errno). Only what is
  // outstanding can be answered, and only once, whatever JavaScript says.
  void answer(const Napi::CallbackInfo& info) {
    if (!watcher_.active()) return;
    const size_t count = std::min(info[0].As<Napi::Number>().Uint32Value(), inherited_->request.depth);
    for (size_t i = 0; i < count; i++) {
      const auto tag = static_cast<uint32_t>(answerData_[2 * i]);
      if (tag >= held_.size() || !held_[tag]) continue;
      queue_->responder().complete(*std::exchange(held_[tag], std::nullopt), answerData_[2 * i + 1]);
    }
    // Answers from within a batch go out with the look for the next one.
    if (!taking_) take();
  }

  void readable() {
    const Napi::HandleScope scope(Env());
    uint64_t ignored;
    if (read(eventfd_.get(), &ignored, sizeof ignored) < 0 && errno != EAGAIN) std::abort();
    take();
  }

  // Sends the answers and hands over what came in, until nothing does, as its event may be behind us, or until it has had
  // its turn; then it makes an event. What came in may be for the queue alone, which answers some requests that JavaScript never sees.
  // A queue that cannot go on ends its process, as a native one does.
  void take() {
    taking_ = true;
    Queue::Taken taken = Queue::Taken::nothing;
    const uint64_t began = uv_hrtime();
    try {
      do {
        batch_ = 0;
        taken = queue_->take();
        if (batch_ > 0) onBatch_.MakeCallback(Env().Global(), {Napi::Number::New(Env(), static_cast<double>(batch_))});
      } while (taken == Queue::Taken::something && uv_hrtime() - began < kTurnNs);
      if (taken != Queue::Taken::nothing) queue_->submit();
      if (taken == Queue::Taken::something) checked(eventfd_write(eventfd_.get(), 1), "eventfd_write");
    } catch (const std::system_error& error) {
      reportFailure(*page_, error);
      _exit(1);
    }
    taking_ = false;
    if (!draining_ && page_->drain.load(std::memory_order_relaxed)) {
      draining_ = true;
      onDrain_.MakeCallback(Env().Global(), {});
    }
    if (taken == Queue::Taken::all) end();
  }

  void end() {
    page_->phase = static_cast<uint32_t>(Phase::released);
    watcher_.stop();
    Unref();
    onEnd_.MakeCallback(Env().Global(), {});
  }

  template <typename Item>
  static Napi::Reference<Napi::ArrayBuffer> array(Napi::Env env, size_t items, Item*& data) {
    Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, items * sizeof(Item));
    data = static_cast<Item*>(buffer.Data());
    return Napi::Persistent(buffer);
  }

  Napi::Value buffers(const Napi::CallbackInfo&) { return buffers_.Value(); }
  Napi::Value requests(const Napi::CallbackInfo&) { return requests_.Value(); }
  Napi::Value offsets(const Napi::CallbackInfo&) { return offsets_.Value(); }
  Napi::Value answers(const Napi::CallbackInfo&) { return answers_.Value(); }
  // In the shared page: a loop in the middle of a batch counts there what it has answered of it.
  Napi::Value progress(const Napi::CallbackInfo&) { return progress_.Value(); }

  Napi::FunctionReference onBatch_;
  Napi::FunctionReference onDrain_;
  Napi::FunctionReference onEnd_;
  Inheritance* inherited_ = nullptr;
  QueuePage* page_ = nullptr;
  std::unique_ptr<Queue> queue_;
  FileDescriptor eventfd_;
  Watcher watcher_;
  size_t batch_ = 0;  // requests in the present one
  bool taking_ = false;
  bool draining_ = false;
  std::vector<std::optional<Request>> held_;  // by tag
  Napi::Reference<Napi::ArrayBuffer> buffers_;
  Napi::Reference<Napi::ArrayBuffer> requests_;
  Napi::Reference<Napi::ArrayBuffer> offsets_;
  Napi::Reference<Napi::ArrayBuffer> answers_;
  Napi::Reference<Napi::ArrayBuffer> progress_;
  int32_t* requestData_ = nullptr;
  double* offsetData_ = nullptr;
  int32_t* answerData_ = nullptr;
};

}  // namespace

void exportJsQueue(Napi::Env env, Napi::Object exports) {
  exports.Set("dropPrivileges", Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
                guarded(info.Env(), [&] {
                  const User user{info[0].As<Napi::Number>().Uint32Value(), info[1].As<Napi::Number>().Uint32Value()};
                  dropPrivileges(user, false);
                  confine(false);
                });
              }));
  exports.Set("inheritedQueue", Napi::Function::New(env, inheritedQueue));
  JsQueue::define(env, exports);
}

}  // namespace ublk::addon
