// What Node does not offer of files, for the backends that have one.
#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "common/file_descriptor.hpp"
#include "connection.hpp"

namespace ublk::addon {

namespace {

// A system call that may wait for a file system, in one of libuv's threads. `call` throws std::system_error.
class FileCall final : public Napi::AsyncWorker {
 public:
  using Call = std::function<void()>;
  using Result = std::function<Napi::Value(Napi::Env)>;

  static Napi::Value run(Napi::Env env, Call call, Result result) {
    auto* worker = new FileCall(env, std::move(call), std::move(result));  // deletes itself
    worker->Queue();
    return worker->done_.Promise();
  }

 private:
  FileCall(Napi::Env env, Call call, Result result)
      : Napi::AsyncWorker(env),
        done_(Napi::Promise::Deferred::New(env)),
        call_(std::move(call)),
        result_(std::move(result)) {}

  void Execute() override {
    try {
      call_();
    } catch (const std::system_error& error) {
      errno_ = error.code().value();
      SetError(error.what());
    }
  }
  void OnOK() override { done_.Resolve(result_(Env())); }
  void OnError(const Napi::Error& error) override {
    error.Set("errno", Napi::Number::New(Env(), errno_));
    done_.Reject(error.Value());
  }

  const Napi::Promise::Deferred done_;
  const Call call_;
  const Result result_;
  int errno_ = 0;
};

int fileOf(const Napi::CallbackInfo& info) { return info[0].As<Napi::Number>().Int32Value(); }

// flock(fd): Promise of a boolean, false when another process holds the lock.
Napi::Value lockFile(const Napi::CallbackInfo& info) {
  const auto locked = std::make_shared<bool>(true);
  return FileCall::run(
      info.Env(),
      [file = fileOf(info), locked] {
        const int result = flock(file, LOCK_EX | LOCK_NB);
        *locked = !(result < 0 && errno == EWOULDBLOCK);
        if (*locked) checked(result, "flock");
      },
      [locked](Napi::Env env) { return Napi::Boolean::New(env, *locked); });
}

// lockForProcess(fd, locked): takes, or gives back, the lock of fcntl(2) on the whole file, and waits for it: it keeps out
// other processes that have the same open file.
Napi::Value lockForProcess(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    struct flock lock {};
    lock.l_type = info[1].ToBoolean() ? F_WRLCK : F_UNLCK;
    lock.l_whence = SEEK_SET;
    int result;
    do {
      result = fcntl(fileOf(info), F_SETLKW, &lock);
    } while (result < 0 && errno == EINTR);
    checked(result, "fcntl");
  });
  return info.Env().Undefined();
}

// directIoAlignment(fd): Promise of { memory, offset } in bytes, or null.
Napi::Value directIoAlignment(const Napi::CallbackInfo& info) {
  const auto status = std::make_shared<struct statx>();
  return FileCall::run(
      info.Env(),
      [file = fileOf(info), status] { checked(statx(file, "", AT_EMPTY_PATH, STATX_DIOALIGN, status.get()), "statx"); },
      [status](Napi::Env env) -> Napi::Value {
        if (!(status->stx_mask & STATX_DIOALIGN) || status->stx_dio_offset_align == 0) return env.Null();
        Napi::Object alignment = Napi::Object::New(env);
        alignment.Set("memory", status->stx_dio_mem_align);
        alignment.Set("offset", status->stx_dio_offset_align);
        return alignment;
      });
}

// takesDirectIo(fd, bytes): Promise of a boolean: whether blocks of `bytes`, a power of two, can be read past the cache.
Napi::Value takesDirectIo(const Napi::CallbackInfo& info) {
  const auto takes = std::make_shared<bool>(false);
  return FileCall::run(
      info.Env(),
      [file = fileOf(info), bytes = size_t{info[1].As<Napi::Number>().Uint32Value()}, takes] {
        const std::string path = "/proc/self/fd/" + std::to_string(file);
        const FileDescriptor direct(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
        const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(bytes, bytes), &std::free);
        *takes = direct && memory && pread(direct.get(), memory.get(), bytes, 0) >= 0;
      },
      [takes](Napi::Env env) { return Napi::Boolean::New(env, *takes); });
}

// fallocate(fd, mode, offset, length): Promise.
Napi::Value fallocateFile(const Napi::CallbackInfo& info) {
  const int mode = info[1].As<Napi::Number>().Int32Value();
  const off_t offset = info[2].As<Napi::Number>().Int64Value();
  const off_t length = info[3].As<Napi::Number>().Int64Value();
  return FileCall::run(
      info.Env(),
      [file = fileOf(info), mode, offset, length] {
        while (::fallocate(file, mode, offset, length) < 0) {
          if (errno != EINTR) throw std::system_error(errno, std::generic_category(), "fallocate");
        }
      },
      [](Napi::Env env) { return env.Undefined(); });
}

// writeAtOnce(fd, bytes): how many were written, 0 when there is no room now, or -errno. The file may be shared with processes that
// do not expect O_NONBLOCK, so it is left as it is: a pipe or terminal that poll calls writable takes PIPE_BUF bytes.
Napi::Value writeAtOnce(const Napi::CallbackInfo& info) {
  const int file = fileOf(info);
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

// makeNode(path, block, major, minor): a device's node, which root alone may open.
Napi::Value makeNode(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const std::string path = info[0].As<Napi::String>();
    const mode_t type = info[1].As<Napi::Boolean>() ? S_IFBLK : S_IFCHR;
    const dev_t number = makedev(info[2].As<Napi::Number>().Uint32Value(), info[3].As<Napi::Number>().Uint32Value());
    checked(mknod(path.c_str(), type | 0600, number), "mknod");
    return info.Env().Undefined();
  });
}

// parkFiles(fds): fd of a socket that has them.
Napi::Value park(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return Napi::Number::New(info.Env(), parkFiles(descriptorsOf(info[0])).release()); });
}

// parkedFiles(fd): fds of what is parked in that socket.
Napi::Value parked(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    std::vector<FileDescriptor> files = parkedFiles(fileOf(info));
    return handedOver(info.Env(), files);
  });
}

}  // namespace

void exportFiles(Napi::Env env, Napi::Object exports) {
  exports.Set("flock", Napi::Function::New(env, lockFile));
  exports.Set("lockForProcess", Napi::Function::New(env, lockForProcess));
  exports.Set("writeAtOnce", Napi::Function::New(env, writeAtOnce));
  exports.Set("directIoAlignment", Napi::Function::New(env, directIoAlignment));
  exports.Set("takesDirectIo", Napi::Function::New(env, takesDirectIo));
  exports.Set("fallocate", Napi::Function::New(env, fallocateFile));
  exports.Set("makeNode", Napi::Function::New(env, makeNode));
  exports.Set("parkFiles", Napi::Function::New(env, park));
  exports.Set("parkedFiles", Napi::Function::New(env, parked));
}

}  // namespace ublk::addon
