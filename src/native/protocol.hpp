// Messages between supervisor and zygote over a SOCK_SEQPACKET socket: one fixed-size struct a message, the same build
// on both sides. A message of another size or version is an error, never a guess.
#pragma once

#include <cstdint>

#include "backend.hpp"
#include "shared_page.hpp"
#include "ublk_uapi.hpp"
#include "user.hpp"

namespace ublk {

constexpr uint32_t kProtocolMagic = 0x7a6c6275;  // "ublz"
constexpr uint16_t kProtocolVersion = 4;
constexpr uint32_t kMaxBackendFiles = kMaxQueues;

enum class MessageType : uint16_t {
  hello = 1,  // zygote -> supervisor, on connection: who serves
  spawn,      // supervisor -> zygote, with the shared page's memfd and the backend's files: fork a generation
  spawned,    // answer, with a pidfd per queue process
  control,    // supervisor -> zygote, whenFetched with the shared page's memfd: run one control command in a process of
              // its own
  controlled,   // answer, from that process itself
  cancel,       // supervisor -> zygote: end the control process of `sequence`
  exited,       // zygote -> supervisor: a child was reaped
  retire,       // supervisor -> zygote: end every child, then yourself
  inventory,    // supervisor -> zygote: what do you hold for a supervisor that is gone
  held,         // a part of the answer, one for each device, with its shared page and its files
  inventoried,  // the end of the answer
  forget,       // supervisor -> zygote: let go of a device's shared page and files
  forgotten,    // answer
  expire,       // supervisor -> zygote: end yourself once you serve nothing
};

struct MessageHeader {
  uint32_t magic;
  uint16_t version;
  MessageType type;
  uint32_t sequence;  // chosen by the supervisor, echoed by answers
  uint32_t reserved;
};

constexpr MessageHeader headerOf(MessageType type, uint32_t sequence = 0) {
  return {kProtocolMagic, kProtocolVersion, type, sequence, 0};
}

struct HelloMessage {
  MessageHeader header;
  int32_t pid;
  uint32_t expiring;  // it was told to
};

struct SpawnMessage {
  MessageHeader header;
  int32_t deviceId;
  uint32_t generation;
  uint32_t queues;
  uint32_t depth;
  uint32_t maxIoBytes;
  DataPath dataPath;
  uint32_t javascript;  // the backend's files are then a channel to the supervisor for each queue
  uint32_t coreDump;
  uint64_t size;
  User user;              // whom the queue processes run as
  uint32_t backendFiles;  // for the queue processes
  uint32_t keptFiles;     // javascript: the supervisor's ends of the channels, for its successor
  char backend[32];
};

struct SpawnedMessage {
  MessageHeader header;
  int32_t error;  // 0 or a positive errno
  uint32_t queues;
  char step[64];  // what failed
  int32_t pids[kMaxQueues];
};

// What the control process does. The blocking ublk commands and the operations on the block device that can block.
enum class ControlAction : uint32_t {
  command,         // one ublk control command
  retryWhileBusy,  // the same, again while it is refused with EBUSY, until the deadline
  writeBack,       // no command: write the block device's dirty pages back
  claimed,         // one command while nobody else can claim the block device
  whenFetched,     // one command once every queue process has fetched, if none of them is about to exit
};

struct ControlMessage {
  MessageHeader header;
  ControlAction action;
  Control command;
  uint32_t deviceId;
  uint32_t exclusively;  // writeBack: only if nobody else claims the block device
  uint32_t deadlineMs;
  uint32_t payloadBytes;
  uint64_t data;
  union {
    DeviceInfo info;
    Parameters parameters;
    uint8_t bytes[64];
  } payload;
};

struct ControlledMessage {
  MessageHeader header;
  int32_t result;  // >= 0 or -errno
  uint32_t reserved;
  DeviceInfo info;  // ADD_DEV: as granted
};

struct ExitedMessage {
  MessageHeader header;
  int32_t pid;
  int32_t waitStatus;
};

// A device's last generation. With it come the shared page's memfd and `files` more: the backend's files, or the
// supervisor's ends of the channels of a backend in JavaScript.
struct HeldMessage {
  MessageHeader header;
  int32_t deviceId;
  uint32_t generation;
  uint32_t queues;
  uint32_t depth;
  uint32_t files;
  uint32_t reserved;
  int32_t pids[kMaxQueues];
  int32_t waitStatus[kMaxQueues];  // kStillRunning, or as waitpid() gave it
};

constexpr int32_t kStillRunning = -1;

struct InventoriedMessage {
  MessageHeader header;
  uint32_t controls;  // control processes of the supervisor that is gone which still run
};

struct ForgetMessage {
  MessageHeader header;
  int32_t deviceId;
};

static_assert(sizeof(Parameters) <= sizeof(ControlMessage::payload));

}  // namespace ublk
