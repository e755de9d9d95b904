#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "../../../backends/registry.hpp"
#include "bindings.hpp"
#include "common/file_descriptor.hpp"
#include "inherited.hpp"
#include "queue/process_setup.hpp"
#include "queue/queue.hpp"
#include "watcher.hpp"

namespace ublk::addon {

namespace {

constexpr uint32_t kDepth = 32;
constexpr uint32_t kMaxIoBytes = 256 * 1024;

// A native backend below one in JavaScript, with a ring of its own.
//
// new NativeDisk(backend, size, files, onAnswer(tag, result)): `files` as BackendSetup has them. In a queue process only
// before its JsQueue. A request's data is at `tag` times `maxIoBytes` in `buffers`.
class NativeDisk final : public Napi::ObjectWrap<NativeDisk>, private Responder {
 public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set("NativeDisk", DefineClass(env, "NativeDisk",
                                          {
                                              InstanceMethod<&NativeDisk::submit>("submit"),
                                              InstanceMethod<&NativeDisk::close>("close"),
                                              InstanceAccessor<&NativeDisk::buffers>("buffers"),
                                              StaticValue("depth", Napi::Number::New(env, kDepth)),
                                              StaticValue("maxIoBytes", Napi::Number::New(env, kMaxIoBytes)),
                                          }));
  }

  explicit NativeDisk(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<NativeDisk>(info), onAnswer_(Napi::Persistent(info[3].As<Napi::Function>())) {
    guarded(info.Env(), [&] {
      const std::string name = info[0].As<Napi::String>();
      const auto size = static_cast<uint64_t>(info[1].As<Napi::Number>().Int64Value());
      const auto list = info[2].As<Napi::Array>();
      const Inheritance* const inherited = inheritance();
      if (inherited && inherited->charDevice < 0) {
        throw std::system_error(EBUSY, std::generic_category(), "opening a store while the queue serves");
      }
      page_ = inherited ? &inherited->shared.queue(inherited->queue) : nullptr;
      backend_ = makeBackend(name);
      if (!backend_) throw std::system_error(ENOENT, std::generic_category(), "finding backend " + name);
      // As in a queue's ring, so that the device cannot be recovered while an operation on the store is under way.
      std::vector<int> registered{inherited ? inherited->charDevice : -1};
      for (uint32_t i = 0; i < list.Length(); i++) registered.push_back(list.Get(i).As<Napi::Number>().Int32Value());
      int result = io_uring_queue_init(2 * kDepth, &ring_, 0);
      if (result < 0) throw std::system_error(-result, std::generic_category(), "setting up io_uring");
      hasRing_ = true;
      result = io_uring_register_files(&ring_, registered.data(), static_cast<unsigned>(registered.size()));
      if (result < 0) throw std::system_error(-result, std::generic_category(), "registering files");
      eventfd_ = FileDescriptor(checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd"));
      result = io_uring_register_eventfd(&ring_, eventfd_.get());
      if (result < 0) throw std::system_error(-result, std::generic_category(), "registering an eventfd");
      memory_ = mapMemory(size_t{kDepth} * kMaxIoBytes, PROT_READ | PROT_WRITE);
      zeros_ = mapMemory(kMaxIoBytes, PROT_READ);
      if (inherited) checked(mlock(memory_, size_t{kDepth} * kMaxIoBytes), "locking buffers");
      const std::span<const int> files(registered.data() + 1, registered.size() - 1);
      backend_->open({.size = size, .depth = kDepth, .maxIoBytes = kMaxIoBytes, .files = files});
      requests_.resize(kDepth);
      buffers_ = Napi::Persistent(Napi::ArrayBuffer::New(info.Env(), memory_, size_t{kDepth} * kMaxIoBytes));
    });
    watcher_.start(info.Env(), eventfd_.get(), [this] { readable(); });
    watcher_.unref();
  }

  ~NativeDisk() override {
    watcher_.stop();
    if (hasRing_) io_uring_queue_exit(&ring_);
    backend_.reset();
    if (zeros_) munmap(zeros_, kMaxIoBytes);
    if (memory_) munmap(memory_, size_t{kDepth} * kMaxIoBytes);
  }

 private:
  // ---- Responder ---------------------------------------------------------------------------------------------------

  void complete(const Request& request, int64_t result) override {
    const int32_t committed = committedResult(request.operation, result, request.length);
    requests_[request.tag].reset();
    if (submitting_ == request.tag) {
      answer_ = committed;
      return;
    }
    pending_--;
    if (pending_ == 0) watcher_.unref();
    onAnswer_.MakeCallback(Env().Global(),
                           {Napi::Number::New(Env(), request.tag), Napi::Number::New(Env(), committed)});
  }

  // For queues whose data the kernel copies itself.
  void copyAndComplete(const Request&, std::byte*, int32_t) override { std::abort(); }
  void copyAndComplete(const Request&, std::span<const iovec>, int32_t) override { std::abort(); }

  io_uring_sqe* prepare(uint16_t tag) override {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (!sqe) throw std::system_error(EOVERFLOW, std::generic_category(), "queueing a submission");
    std::memset(sqe, 0, sizeof *sqe);
    sqe->user_data = tag;
    return sqe;
  }

  std::byte* zeros() const override { return zeros_; }
  void working() override {
    if (page_) page_->progress.fetch_add(1, std::memory_order_relaxed);
  }

  // ---- JavaScript --------------------------------------------------------------------------------------------------

  // submit(tag, operation, offset, length, fua, mayUnmap): bytes or -errno; undefined when `onAnswer` will say it. The range is within
  // the store, `length` at most `maxIoBytes` of what has data, and the tag has no other request.
  Napi::Value submit(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const auto tag = static_cast<uint16_t>(info[0].As<Napi::Number>().Uint32Value());
      if (closed_ || tag >= kDepth || requests_[tag]) {
        throw std::system_error(EINVAL, std::generic_category(), "submitting a request");
      }
      const Request& request =
          requests_[tag].emplace(Request{.tag = tag,
                                         .operation = static_cast<Operation>(info[1].As<Napi::Number>().Uint32Value()),
                                         .fua = info[4].As<Napi::Boolean>(),
                                         .mayUnmap = info[5].As<Napi::Boolean>(),
                                         .offset = static_cast<uint64_t>(info[2].As<Napi::Number>().Int64Value()),
                                         .length = info[3].As<Napi::Number>().Uint32Value(),
                                         .data = memory_ + size_t{tag} * kMaxIoBytes});
      answer_.reset();
      submitting_ = tag;
      // A copy: what is answered is forgotten.
      backend_->submit(*this, Request(request));
      submitting_ = -1;
      send();
      if (answer_) return Napi::Number::New(info.Env(), *answer_);
      if (pending_++ == 0) watcher_.ref();
      return info.Env().Undefined();
    });
  }

  // close(): nothing is under way any more, and nothing more comes.
  void close(const Napi::CallbackInfo&) {
    closed_ = true;
    watcher_.stop();
  }

  void readable() {
    const Napi::HandleScope scope(Env());
    uint64_t ignored;
    if (read(eventfd_.get(), &ignored, sizeof ignored) < 0 && errno != EAGAIN) std::abort();
    io_uring_cqe* cqe = nullptr;
    while (!closed_ && io_uring_peek_cqe(&ring_, &cqe) == 0) {
      const auto tag = static_cast<uint16_t>(cqe->user_data);
      const int32_t result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);
      backend_->completed(*this, tag, result);
      send();
    }
  }

  void send() {
    if (io_uring_sq_ready(&ring_) == 0) return;
    const int result = io_uring_submit(&ring_);
    if (result < 0) throw std::system_error(-result, std::generic_category(), "submitting to io_uring");
  }

  Napi::Value buffers(const Napi::CallbackInfo&) { return buffers_.Value(); }

  Napi::FunctionReference onAnswer_;
  QueuePage* page_ = nullptr;  // of the queue process that this is in
  std::unique_ptr<Backend> backend_;
  io_uring ring_{};
  bool hasRing_ = false;
  bool closed_ = false;
  FileDescriptor eventfd_;
  Watcher watcher_;
  std::byte* memory_ = nullptr;
  std::byte* zeros_ = nullptr;
  std::vector<std::optional<Request>> requests_;  // by tag
  int submitting_ = -1;
  std::optional<int32_t> answer_;  // of the one that is being submitted
  uint32_t pending_ = 0;
  Napi::Reference<Napi::ArrayBuffer> buffers_;
};

}  // namespace

void exportNativeDisk(Napi::Env env, Napi::Object exports) { NativeDisk::define(env, exports); }

}  // namespace ublk::addon
