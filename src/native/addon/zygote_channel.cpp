#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "common/protocol.hpp"
#include "connection.hpp"

namespace ublk::addon {

namespace {

// forkZygote(nursery, listener, connection): has a nursery fork a zygote that listens there and is connected so. Throws
// where the nursery does not read.
void forkZygote(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const auto fd = [&info](size_t index) { return info[index].As<Napi::Number>().Int32Value(); };
    const MessageHeader message = headerOf(MessageType::fork);
    const int files[] = {fd(1), fd(2)};
    sendMessage(fd(0), &message, sizeof message, files);
  });
}

// The supervisor's end of the connection to a zygote.
// new ZygoteChannel(fd, onMessage(message), onClose()) takes the descriptor over. Every request returns the sequence number
// that its answer carries; the shapes of messages are those of ZygoteMessage in zygote-channel.ts.
class ZygoteChannel final : public Napi::ObjectWrap<ZygoteChannel> {
 public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set("ZygoteChannel", DefineClass(env, "ZygoteChannel",
                                             {
                                                 InstanceMethod<&ZygoteChannel::spawn>("spawn"),
                                                 InstanceMethod<&ZygoteChannel::control>("control"),
                                                 InstanceMethod<&ZygoteChannel::cancel>("cancel"),
                                                 InstanceMethod<&ZygoteChannel::retire>("retire"),
                                                 InstanceMethod<&ZygoteChannel::inventory>("inventory"),
                                                 InstanceMethod<&ZygoteChannel::close>("close"),
                                             }));
  }

  explicit ZygoteChannel(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<ZygoteChannel>(info),
        onMessage_(Napi::Persistent(info[1].As<Napi::Function>())),
        onClose_(Napi::Persistent(info[2].As<Napi::Function>())),
        connection_(info[0].As<Napi::Number>().Int32Value()) {
    Ref();
    connection_.start(info.Env(), [this] { readable(); });
  }

 private:
  // spawn({ deviceId, generation, queues, depth, maxIoBytes, dataPath, size, backend }, sharedPage fd, backend fds,
  // fds that only the zygote keeps)
  Napi::Value spawn(const Napi::CallbackInfo& info) {
    const Napi::Object request = info[0].As<Napi::Object>();
    SpawnMessage message{};
    message.header = headerOf(MessageType::spawn, ++lastSequence_);
    message.deviceId = request.Get("deviceId").ToNumber().Int32Value();
    message.generation = request.Get("generation").ToNumber().Uint32Value();
    message.queues = request.Get("queues").ToNumber().Uint32Value();
    message.depth = request.Get("depth").ToNumber().Uint32Value();
    message.maxIoBytes = request.Get("maxIoBytes").ToNumber().Uint32Value();
    message.dataPath = static_cast<DataPath>(request.Get("dataPath").ToNumber().Uint32Value());
    message.size = static_cast<uint64_t>(request.Get("size").ToNumber().Int64Value());
    message.user = {request.Get("uid").ToNumber().Uint32Value(), request.Get("gid").ToNumber().Uint32Value()};
    message.javascript = request.Get("javascript").ToBoolean();
    message.coreDump = request.Get("coreDump").ToBoolean();
    const std::string backend = request.Get("backend").ToString();
    std::strncpy(message.backend, backend.c_str(), sizeof message.backend - 1);
    std::vector<int> files{info[1].As<Napi::Number>().Int32Value()};
    const auto append = [&files](const Napi::Array& more) {
      for (uint32_t i = 0; i < more.Length(); i++) files.push_back(more.Get(i).ToNumber().Int32Value());
      return more.Length();
    };
    message.backendFiles = append(info[2].As<Napi::Array>());
    message.keptFiles = append(info[3].As<Napi::Array>());
    return guarded(info.Env(), [&] {
      auto room = makeRoom(message.queues);
      const Napi::Value sequence = send(info.Env(), message, files);
      room_[lastSequence_] = std::move(room);
      return sequence;
    });
  }

  // Without room for them the kernel would drop the pidfds that the answer brings, and no process would have the queue processes.
  std::vector<FileDescriptor> makeRoom(uint32_t descriptors) const {
    std::vector<FileDescriptor> room;
    for (uint32_t i = 0; i < descriptors; i++) {
      room.emplace_back(
          checked(fcntl(connection_.socket(), F_DUPFD_CLOEXEC, 0), "making room for the pidfds of queue processes"));
    }
    return room;
  }

  // control({ action, command, deviceId, deadlineMs, data, ... }), with one of { device: {...} } for ADD_DEV,
  // { parameters: {...} } for SET_PARAMS and { sharedPage: fd, pids: [...] } for whenFetched.
  Napi::Value control(const Napi::CallbackInfo& info) {
    const Napi::Object request = info[0].As<Napi::Object>();
    ControlMessage message{};
    message.header = headerOf(MessageType::control, ++lastSequence_);
    message.action = static_cast<ControlAction>(request.Get("action").ToNumber().Uint32Value());
    message.command = static_cast<Control>(request.Get("command").ToNumber().Uint32Value());
    message.deviceId = request.Get("deviceId").ToNumber().Uint32Value();
    message.deadlineMs = request.Get("deadlineMs").ToNumber().Uint32Value();
    message.data = static_cast<uint64_t>(request.Get("data").ToNumber().Int64Value());
    if (request.Get("device").IsObject()) {
      message.payload.info = deviceInfo(request.Get("device").As<Napi::Object>());
      message.payloadBytes = sizeof(DeviceInfo);
    } else if (request.Get("parameters").IsObject()) {
      message.payload.parameters = parameters(request.Get("parameters").As<Napi::Object>());
      message.payloadBytes = message.payload.parameters.length;
    }
    std::vector<int> files;
    if (request.Get("sharedPage").IsNumber()) {
      files.push_back(request.Get("sharedPage").ToNumber().Int32Value());
      const Napi::Array pids = request.Get("pids").As<Napi::Array>();
      message.queues = std::min(pids.Length(), kMaxQueues);
      for (uint32_t queue = 0; queue < message.queues; queue++) {
        message.pids[queue] = pids.Get(queue).ToNumber().Int32Value();
      }
    }
    return send(info.Env(), message, files);
  }

  static DeviceInfo deviceInfo(const Napi::Object& device) {
    DeviceInfo info{};
    bool lossless;
    info.queues = static_cast<uint16_t>(device.Get("queues").ToNumber().Uint32Value());
    info.depth = static_cast<uint16_t>(device.Get("depth").ToNumber().Uint32Value());
    info.maxIoBytes = device.Get("maxIoBytes").ToNumber().Uint32Value();
    info.deviceId = device.Get("id").ToNumber().Uint32Value();
    info.flags = device.Get("flags").As<Napi::BigInt>().Uint64Value(&lossless);
    info.serverFlags = device.Get("cookie").As<Napi::BigInt>().Uint64Value(&lossless);
    return info;
  }

  static Parameters parameters(const Napi::Object& wanted) {
    const auto number = [&wanted](const char* key) { return wanted.Get(key).ToNumber().Int64Value(); };
    Parameters parameters{};
    parameters.length = offsetof(Parameters, tail);
    parameters.types = kBasicParameters;
    parameters.basic.attributes = static_cast<uint32_t>(number("attributes"));
    parameters.basic.logicalBlockShift = static_cast<uint8_t>(number("logicalBlockShift"));
    parameters.basic.physicalBlockShift = static_cast<uint8_t>(number("physicalBlockShift"));
    parameters.basic.ioMinimumShift = parameters.basic.physicalBlockShift;
    parameters.basic.ioOptimalShift = parameters.basic.physicalBlockShift;
    parameters.basic.maxSectors = static_cast<uint32_t>(number("maxSectors"));
    parameters.basic.deviceSectors = static_cast<uint64_t>(number("deviceSectors"));
    const auto discardSectors = static_cast<uint32_t>(number("maxDiscardSectors"));
    const auto writeZeroesSectors = static_cast<uint32_t>(number("maxWriteZeroesSectors"));
    if (discardSectors > 0 || writeZeroesSectors > 0) {
      parameters.types |= kDiscardParameters;
      parameters.discard.granularity = static_cast<uint32_t>(number("discardGranularity"));
      parameters.discard.maxSectors = discardSectors;
      parameters.discard.maxWriteZeroesSectors = writeZeroesSectors;
      parameters.discard.maxSegments = 1;
    }
    return parameters;
  }

  void cancel(const Napi::CallbackInfo& info) {
    send(info.Env(), headerOf(MessageType::cancel, info[0].As<Napi::Number>().Uint32Value()));
  }

  void retire(const Napi::CallbackInfo& info) { send(info.Env(), headerOf(MessageType::retire)); }

  Napi::Value inventory(const Napi::CallbackInfo& info) {
    return send(info.Env(), headerOf(MessageType::inventory, ++lastSequence_));
  }

  void close(const Napi::CallbackInfo&) { closeSocket(); }

  template <typename Message>
  Napi::Value send(Napi::Env env, const Message& message, std::span<const int> files = {}) {
    return guarded(env, [&] {
      connection_.send(&message, sizeof message, files);
      return Napi::Number::New(env, lastSequence_);
    });
  }

  void readable() {
    const Napi::HandleScope scope(Env());
    union {
      MessageHeader header;
      HelloMessage hello;
      SpawnedMessage spawned;
      ControlledMessage controlled;
      ExitedMessage exited;
      HeldMessage held;
    } message;
    while (connection_) {
      MessageHeader next{};
      if (recv(connection_.socket(), &next, sizeof next, MSG_PEEK | MSG_DONTWAIT) == sizeof next) {
        room_.erase(next.sequence);
      }
      Received received = connection_.receive(&message, sizeof message);
      if (received.wouldBlock) return;
      Napi::Object decoded;
      if (received.bytes >= sizeof message.header && message.header.magic == kProtocolMagic &&
          message.header.version == kProtocolVersion) {
        decoded = decode(message.header, &message, received);
      }
      if (decoded.IsEmpty()) {
        closeSocket();
        onClose_.MakeCallback(Env().Global(), {});
        return;
      }
      onMessage_.MakeCallback(Env().Global(), {decoded});
    }
  }

  // Empty when the message is not one that a zygote of this build sends.
  Napi::Object decode(const MessageHeader& header, const void* message, Received& received) {
    Napi::Object object = Napi::Object::New(Env());
    object.Set("sequence", header.sequence);
    if (header.type == MessageType::hello && received.bytes == sizeof(HelloMessage)) {
      object.Set("type", "hello");
      object.Set("pid", static_cast<const HelloMessage*>(message)->pid);
      object.Set("error", static_cast<const HelloMessage*>(message)->error);
    } else if (header.type == MessageType::spawned && received.bytes == sizeof(SpawnedMessage)) {
      const auto& spawned = *static_cast<const SpawnedMessage*>(message);
      if (spawned.queues > kMaxQueues || received.files.size() != spawned.queues) return {};
      Napi::Array pids = Napi::Array::New(Env(), spawned.queues);
      Napi::Array pidfds = Napi::Array::New(Env(), spawned.queues);
      for (uint32_t i = 0; i < spawned.queues; i++) {
        pids.Set(i, spawned.pids[i]);
        pidfds.Set(i, received.files[i].release());
      }
      object.Set("type", "spawned");
      object.Set("error", spawned.error);
      object.Set("step", std::string(spawned.step, strnlen(spawned.step, sizeof spawned.step)));
      object.Set("pids", pids);
      object.Set("pidfds", pidfds);
    } else if (header.type == MessageType::controlled && received.bytes == sizeof(ControlledMessage)) {
      const auto& controlled = *static_cast<const ControlledMessage*>(message);
      object.Set("type", "controlled");
      object.Set("result", controlled.result);
      object.Set("pid", controlled.pid);
      object.Set("id", controlled.info.deviceId);
      object.Set("queues", controlled.info.queues);
      object.Set("depth", controlled.info.depth);
      object.Set("flags", Napi::BigInt::New(Env(), controlled.info.flags));
    } else if (header.type == MessageType::exited && received.bytes == sizeof(ExitedMessage)) {
      const auto& exited = *static_cast<const ExitedMessage*>(message);
      object.Set("type", "exited");
      setExit(object, exited.pid, exited.waitStatus);
    } else if (header.type == MessageType::held && received.bytes == sizeof(HeldMessage)) {
      return decodeHeld(object, *static_cast<const HeldMessage*>(message), received);
    } else {
      return {};
    }
    return object;
  }

  Napi::Object decodeHeld(Napi::Object object, const HeldMessage& held, Received& received) {
    object.Set("type", "held");
    object.Set("controls", held.controls);
    object.Set("generation", Env().Null());
    if (held.queues == 0 && received.files.empty()) return object;
    if (held.queues > kMaxQueues || received.files.size() != 1 + held.files) return {};
    Napi::Array processes = Napi::Array::New(Env(), held.queues);
    for (uint32_t i = 0; i < held.queues; i++) {
      Napi::Object process = Napi::Object::New(Env());
      const bool running = held.waitStatus[i] == kStillRunning;
      setExit(process, held.pids[i], running ? 0 : held.waitStatus[i]);
      process.Set("running", running);
      processes.Set(i, process);
    }
    Napi::Array files = Napi::Array::New(Env(), held.files);
    for (uint32_t i = 0; i < held.files; i++) files.Set(i, received.files[1 + i].release());
    Napi::Object generation = Napi::Object::New(Env());
    generation.Set("deviceId", held.deviceId);
    generation.Set("generation", held.generation);
    generation.Set("queues", held.queues);
    generation.Set("depth", held.depth);
    generation.Set("sharedPage", received.files[0].release());
    generation.Set("files", files);
    generation.Set("processes", processes);
    object.Set("generation", generation);
    return object;
  }

  // How a process ended, as waitpid() says it.
  void setExit(Napi::Object& object, pid_t pid, int status) const {
    const auto numberIf = [this](bool known, int number) {
      return known ? Napi::Value(Napi::Number::New(Env(), number)) : Napi::Value(Env().Null());
    };
    object.Set("pid", pid);
    object.Set("code", numberIf(WIFEXITED(status), WEXITSTATUS(status)));
    object.Set("signal", numberIf(WIFSIGNALED(status), WTERMSIG(status)));
  }

  void closeSocket() {
    if (!connection_) return;
    connection_.close();
    room_.clear();
    Unref();
  }

  Napi::FunctionReference onMessage_;
  Napi::FunctionReference onClose_;
  Connection connection_;
  uint32_t lastSequence_ = 0;
  std::map<uint32_t, std::vector<FileDescriptor>> room_;  // by sequence
};

}  // namespace

void exportZygoteChannel(Napi::Env env, Napi::Object exports) {
  exports.Set("forkZygote", Napi::Function::New(env, forkZygote));
  ZygoteChannel::define(env, exports);
}

}  // namespace ublk::addon
