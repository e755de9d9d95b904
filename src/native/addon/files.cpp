// What Node does not offer of files, for the backends that have one.
#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

#include "../file_descriptor.hpp"
#include "bindings.hpp"

namespace ublk::addon {

namespace {

// flock(fd): boolean, false when somebody else holds the lock.
Napi::Value lockFile(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const int result = flock(info[0].As<Napi::Number>().Int32Value(), LOCK_EX | LOCK_NB);
    if (result < 0 && errno == EWOULDBLOCK) return Napi::Boolean::New(info.Env(), false);
    checked(result, "flock");
    return Napi::Boolean::New(info.Env(), true);
  });
}

// directIoAlignment(fd): { memory, offset } in bytes, or null.
Napi::Value directIoAlignment(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    struct statx status {};
    checked(statx(info[0].As<Napi::Number>().Int32Value(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &status), "statx");
    if (!(status.stx_mask & STATX_DIOALIGN) || status.stx_dio_offset_align == 0) return info.Env().Null();
    Napi::Object alignment = Napi::Object::New(info.Env());
    alignment.Set("memory", status.stx_dio_mem_align);
    alignment.Set("offset", status.stx_dio_offset_align);
    return alignment;
  });
}

// writeAtOnce(fd, bytes): how many were written, 0 when there is no room now, or -errno. The file may be shared with processes that
// do not expect O_NONBLOCK, so it is left as it is: a pipe or terminal that poll calls writable takes PIPE_BUF bytes.
Napi::Value writeAtOnce(const Napi::CallbackInfo& info) {
  const int file = info[0].As<Napi::Number>().Int32Value();
  const auto bytes = info[1].As<Napi::Uint8Array>();
  ssize_t written = send(file, bytes.Data(), bytes.ByteLength(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (written < 0 && errno == ENOTSOCK) {
    pollfd target{file, POLLOUT, 0};
    if (poll(&target, 1, 0) == 0) return Napi::Number::New(info.Env(), 0);
    written = write(file, bytes.Data(), std::min<size_t>(bytes.ByteLength(), PIPE_BUF));
  }
  if (written < 0) written = errno == EAGAIN || errno == EINTR ? 0 : -errno;
  return Napi::Number::New(info.Env(), static_cast<double>(written));
}

class Fallocate final : public Napi::AsyncWorker {
 public:
  explicit Fallocate(const Napi::CallbackInfo& info)
      : Napi::AsyncWorker(info.Env()),
        done_(Napi::Promise::Deferred::New(info.Env())),
        file_(info[0].As<Napi::Number>().Int32Value()),
        mode_(info[1].As<Napi::Number>().Int32Value()),
        offset_(info[2].As<Napi::Number>().Int64Value()),
        length_(info[3].As<Napi::Number>().Int64Value()) {}

  Napi::Promise promise() const { return done_.Promise(); }

 private:
  void Execute() override {
    while (::fallocate(file_, mode_, offset_, length_) < 0) {
      if (errno == EINTR) continue;
      errno_ = errno;
      return SetError("fallocate");
    }
  }
  void OnOK() override { done_.Resolve(Env().Undefined()); }
  void OnError(const Napi::Error& error) override {
    error.Set("errno", Napi::Number::New(Env(), errno_));
    done_.Reject(error.Value());
  }

  const Napi::Promise::Deferred done_;
  const int file_;
  const int mode_;
  const off_t offset_;
  const off_t length_;
  int errno_ = 0;
};

// fallocate(fd, mode, offset, length): Promise.
Napi::Value fallocateFile(const Napi::CallbackInfo& info) {
  auto* worker = new Fallocate(info);  // deletes itself
  worker->Queue();
  return worker->promise();
}

// duplicate(fd): fd of the same open file.
Napi::Value duplicate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const int fd =
        checked(fcntl(info[0].As<Napi::Number>().Int32Value(), F_DUPFD_CLOEXEC, 3), "duplicating a descriptor");
    return Napi::Number::New(info.Env(), fd);
  });
}

}  // namespace

void exportFiles(Napi::Env env, Napi::Object exports) {
  exports.Set("duplicate", Napi::Function::New(env, duplicate));
  exports.Set("flock", Napi::Function::New(env, lockFile));
  exports.Set("writeAtOnce", Napi::Function::New(env, writeAtOnce));
  exports.Set("directIoAlignment", Napi::Function::New(env, directIoAlignment));
  exports.Set("fallocate", Napi::Function::New(env, fallocateFile));
}

}  // namespace ublk::addon
