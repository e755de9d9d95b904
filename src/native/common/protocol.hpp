// Messages between supervisor and zygote over a SOCK_SEQPACKET socket: one fixed-size struct a message, the same build
// on both sides. A message of another size or version is an error, never a guess. A zygote serves one device.
#pragma once

#include <cstdint>

#include "backend.hpp"
#include "shared_page.hpp"
#include "ublk_uapi.hpp"
#include "user.hpp"

namespace ublk {

constexpr uint32_t kProtocolMagic = 0x7a6c6275;  // "ublz"
constexpr uint16_t kProtocolVersion = 11;
constexpr uint32_t kMaxBackendFiles = kMaxQueues + 2;

enum class MessageType : uint16_t {
  hello = 1,  // zygote -> supervisor, on connection; or its nursery, which could not fork it
  spawn,      // supervisor -> zygote, with the shared page's memfd and the backend's files: fork a generation
  spawned,    // answer, with a pidfd per queue process
  control,    // supervisor -> zygote, whenFetched with the shared page's memfd: run one control command in a process of
              // its own
  controlled,  // answer, from that process itself
  cancel,      // supervisor -> zygote: end the control process of `sequence`
  exited,      // zygote -> supervisor: a child was reaped
  retire,      // supervisor -> zygote: end every child, then yourself
  inventory,   // supervisor -> zygote: what do you hold for a supervisor that is gone
  held,        // answer, with the shared page and the files of the last generation
  fork,        // supervisor -> nursery, with a listening socket and a connection: fork a zygote that has them
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
  int32_t pid;    // of the zygote
  int32_t error;  // 0, or a positive errno: there is no zygote
};

struct SpawnMessage {
  MessageHeader header;
  int32_t deviceId;
  uint32_t generation;
  uint32_t queues;
  uint32_t depth;
  uint32_t maxIoBytes;
  DataPath dataPath;
  // The backend's files are then a channel to the supervisor for each queue, where to print, and the socket in which the
  // device's shared memory is parked.
  uint32_t javascript;
  uint32_t coreDump;
  uint64_t size;
  User user;              // whom the queue processes run as
  uint32_t backendFiles;  // for the queue processes: of a native backend at most one, in which its files are parked
  uint32_t keptFiles;     // javascript: that socket, and the supervisor's ends of the rest, for its successor
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
  claim,           // no command: keep everybody else from claiming the block device, until it is cancelled
  whenFetched,     // one command once every queue process has fetched, if none of them is about to exit
};

struct ControlMessage {
  MessageHeader header;
  ControlAction action;
  Control command;
  uint32_t deviceId;
  uint32_t deadlineMs;
  uint32_t payloadBytes;
  uint32_t queues;  // whenFetched: how many of `pids` count
  uint64_t data;
  int32_t pids[kMaxQueues];  // whenFetched: who has to have fetched
  union {
    DeviceInfo info;
    Parameters parameters;
    uint8_t bytes[64];
  } payload;
};

struct ControlledMessage {
  MessageHeader header;
  int32_t result;   // >= 0 or -errno
  int32_t pid;      // of the control process
  DeviceInfo info;  // ADD_DEV: as granted
};

struct ExitedMessage {
  MessageHeader header;
  int32_t pid;
  int32_t waitStatus;
};

// The device's last generation; `queues` is 0 where there was none. With it come the shared page's memfd and `files` more:
// the socket with the backend's files; of a backend in JavaScript with it the supervisor's ends of what its processes have.
struct HeldMessage {
  MessageHeader header;
  int32_t deviceId;
  uint32_t generation;
  uint32_t queues;
  uint32_t depth;
  uint32_t files;
  uint32_t controls;  // control processes of the supervisor that is gone which still run
  int32_t pids[kMaxQueues];
  int32_t waitStatus[kMaxQueues];  // kStillRunning, or as waitpid() gave it
};

constexpr int32_t kStillRunning = -1;

static_assert(sizeof(Parameters) <= sizeof(ControlMessage::payload));

}  // namespace ublk
