// What the supervisor and `doctor` ask the system directly, because it cannot block.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "common/control_ring.hpp"
#include "common/file_descriptor.hpp"

namespace ublk::addon {

namespace {

FileDescriptor openControl() {
  return FileDescriptor(checked(open("/dev/ublk-control", O_RDWR | O_CLOEXEC), "opening /dev/ublk-control"));
}

// ublkFeatures(): bigint, the UBLK_F_* bits that this kernel's driver knows.
Napi::Value ublkFeatures(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const FileDescriptor control = openControl();
    ControlRing ring(control.get());
    uint64_t features = 0;
    const int result = ring.run(Control::getFeatures, UINT32_MAX, 0, &features, sizeof features);
    if (result < 0) throw std::system_error(-result, std::generic_category(), "GET_FEATURES");
    return Napi::BigInt::New(info.Env(), features);
  });
}

// ublkDeviceInfo(id): object or null when there is no such device. Of one that was made without privileges, and so not by
// us, only that it is.
Napi::Value ublkDeviceInfo(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const FileDescriptor control = openControl();
    ControlRing ring(control.get());
    DeviceInfo device{};
    const int result =
        ring.run(Control::getDeviceInfo, info[0].As<Napi::Number>().Uint32Value(), 0, &device, sizeof device);
    if (result == -ENODEV) return info.Env().Null();
    // The kernel asks, root too, for the path of a device that was made without privileges, and says no more without it.
    if (result == -EINVAL)
      device.flags = kUnprivilegedDevice;
    else if (result < 0)
      throw std::system_error(-result, std::generic_category(), "GET_DEV_INFO");
    Napi::Object answer = Napi::Object::New(info.Env());
    answer.Set("state", device.state);
    answer.Set("ownerPid", device.serverPid);
    answer.Set("queues", device.queues);
    answer.Set("depth", device.depth);
    answer.Set("flags", Napi::BigInt::New(info.Env(), device.flags));
    answer.Set("cookie", Napi::BigInt::New(info.Env(), device.serverFlags));
    return answer;
  });
}

// ioUringErrno(): 0 when this process may set up a ring as the queue processes do, else the errno.
Napi::Value ioUringErrno(const Napi::CallbackInfo& info) {
  io_uring ring{};
  const int result =
      io_uring_queue_init(2, &ring, IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
  if (result == 0) io_uring_queue_exit(&ring);
  return Napi::Number::New(info.Env(), -result);
}

// `what` is said when the path is too long for an address.
sockaddr_un addressOf(const std::string& path, const char* what) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw std::system_error(ENAMETOOLONG, std::generic_category(), what);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

// listenSeqpacket(path): fd of a listening socket that only its owner may connect to.
Napi::Value listenSeqpacket(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const sockaddr_un address = addressOf(info[0].As<Napi::String>(), "binding the zygote's socket");
    FileDescriptor listener(checked(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), "socket"));
    checked(fchmod(listener.get(), 0600), "restricting the zygote's socket");
    checked(bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address),
            "binding the zygote's socket");
    checked(listen(listener.get(), 4), "listening on the zygote's socket");
    return Napi::Number::New(info.Env(), listener.release());
  });
}

// connectSeqpacket(path): fd of a connection to what listens there.
Napi::Value connectSeqpacket(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const sockaddr_un address = addressOf(info[0].As<Napi::String>(), "connecting to the zygote");
    FileDescriptor connection(checked(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "socket"));
    checked(connect(connection.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address),
            "connecting to the zygote");
    return Napi::Number::New(info.Env(), connection.release());
  });
}

// mapShared(fd, offset, bytes): ArrayBuffer, that part of the file, shared with all that map it, for the process' life.
Napi::Value mapShared(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const int fd = info[0].As<Napi::Number>().Int32Value();
    const auto offset = static_cast<off_t>(info[1].As<Napi::Number>().Int64Value());
    const auto bytes = static_cast<size_t>(info[2].As<Napi::Number>().Int64Value());
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mapping shared memory");
    return Napi::ArrayBuffer::New(info.Env(), memory, bytes);
  });
}

Napi::Array arrayOf(Napi::Env env, const int (&ends)[2]) {
  Napi::Array pair = Napi::Array::New(env, 2);
  for (uint32_t i = 0; i < 2; i++) pair.Set(i, ends[i]);
  return pair;
}

Napi::Value socketPair(const Napi::CallbackInfo& info, int type) {
  return guarded(info.Env(), [&] {
    int ends[2];
    checked(socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), "socketpair");
    return arrayOf(info.Env(), ends);
  });
}

// streamPair(): [fd, fd], the two ends of a stream socket; seqpacketPair() likewise.
Napi::Value streamPair(const Napi::CallbackInfo& info) { return socketPair(info, SOCK_STREAM); }
Napi::Value seqpacketPair(const Napi::CallbackInfo& info) { return socketPair(info, SOCK_SEQPACKET); }

// outputPipe(): [reading end, writing end].
Napi::Value outputPipe(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    int ends[2];
    checked(pipe2(ends, O_CLOEXEC | O_NONBLOCK), "pipe2");
    return arrayOf(info.Env(), ends);
  });
}

// replaceProcess(path, argv, environment, fd): execve(2), which keeps the standard streams open and, unless it is negative,
// `fd`. Returns only by throwing.
Napi::Value replaceProcess(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto strings = [](const Napi::Array& from) {
      std::vector<std::string> all;
      for (uint32_t i = 0; i < from.Length(); i++) all.push_back(from.Get(i).ToString());
      return all;
    };
    const auto pointers = [](std::vector<std::string>& from) {
      std::vector<char*> all;
      for (auto& text : from) all.push_back(text.data());
      all.push_back(nullptr);
      return all;
    };
    const std::string path = info[0].As<Napi::String>();
    auto argv = strings(info[1].As<Napi::Array>());
    auto environment = strings(info[2].As<Napi::Array>());
    const int kept = info[3].As<Napi::Number>().Int32Value();
    // Node sets FD_CLOEXEC on all that it inherits. What is not open needs not stay so.
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, kept}) fcntl(fd, F_SETFD, 0);
    checked(execve(path.c_str(), pointers(argv).data(), pointers(environment).data()), "execve");
    return info.Env().Undefined();
  });
}

void markThread(int) {
  const int error = errno;
  prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
  errno = error;
}

// endWithParent(): the kernel ends this process, stopped or not, with the one that started it.
void endWithParent(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [] { checked(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl(PR_SET_PDEATHSIG)"); });
}

// becomeIoFlusher(): no thread of this process, nor anything that they start from now on, waits for memory that only
// writing to a block device would free. The mark is each thread's own, so they are all sent a signal that nobody else
// uses; its handler stays. Only node's thread that waits for a debugger blocks it, and nobody waits for that one.
void becomeIoFlusher(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [] {
    checked(prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0), "PR_SET_IO_FLUSHER, which needs CAP_SYS_RESOURCE");
    struct sigaction action {};
    action.sa_handler = markThread;
    action.sa_flags = SA_RESTART;
    checked(sigaction(SIGRTMAX, &action, nullptr), "handling a signal");
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
      const pid_t thread = std::stoi(task.path().filename());
      if (thread != gettid()) syscall(SYS_tgkill, getpid(), thread, SIGRTMAX);
    }
  });
}

}  // namespace

void exportSystem(Napi::Env env, Napi::Object exports) {
  exports.Set("ublkFeatures", Napi::Function::New(env, ublkFeatures));
  exports.Set("ublkDeviceInfo", Napi::Function::New(env, ublkDeviceInfo));
  exports.Set("ioUringErrno", Napi::Function::New(env, ioUringErrno));
  exports.Set("mapShared", Napi::Function::New(env, mapShared));
  exports.Set("replaceProcess", Napi::Function::New(env, replaceProcess));
  exports.Set("endWithParent", Napi::Function::New(env, endWithParent));
  exports.Set("becomeIoFlusher", Napi::Function::New(env, becomeIoFlusher));
  exports.Set("streamPair", Napi::Function::New(env, streamPair));
  exports.Set("outputPipe", Napi::Function::New(env, outputPipe));
  exports.Set("seqpacketPair", Napi::Function::New(env, seqpacketPair));
  exports.Set("connectSeqpacket", Napi::Function::New(env, connectSeqpacket));
  exports.Set("listenSeqpacket", Napi::Function::New(env, listenSeqpacket));
}

}  // namespace ublk::addon
