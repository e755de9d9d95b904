// The part of the kernel's <linux/ublk_cmd.h> that this project uses, restated because distributions ship the header
// of their own kernel (Debian 12: 6.1), which lacks most of it. Layouts are fixed by the kernel; the static_asserts
// below fail the build when a field moves. Read against Linux 7.2.
#pragma once

#include <sys/ioctl.h>

#include <cstddef>
#include <cstdint>

namespace ublk {

// struct ublksrv_ctrl_cmd: carried in the SQE of a control command, so the control ring needs SQE128.
struct ControlCommand {
  uint32_t deviceId;
  uint16_t queueId;  // 0xffff unless the command is about one queue
  uint16_t length;   // of the buffer at `address`
  uint64_t address;
  uint64_t data;
  uint16_t devicePathLength;
  uint16_t pad;
  uint32_t reserved;
};
static_assert(sizeof(ControlCommand) == 32);

// struct ublksrv_ctrl_dev_info: in and out of ADD_DEV, out of GET_DEV_INFO.
struct DeviceInfo {
  uint16_t queues;
  uint16_t depth;
  uint16_t state;
  uint16_t pad0;
  uint32_t maxIoBytes;
  uint32_t deviceId;
  int32_t serverPid;
  uint32_t pad1;
  uint64_t flags;
  uint64_t serverFlags;  // ours: the driver stores and returns it
  uint32_t ownerUid;
  uint32_t ownerGid;
  uint64_t reserved1;
  uint64_t reserved2;
};
static_assert(sizeof(DeviceInfo) == 64);
static_assert(offsetof(DeviceInfo, serverFlags) == 32);

struct BasicParameters {
  uint32_t attributes;
  uint8_t logicalBlockShift;
  uint8_t physicalBlockShift;
  uint8_t ioOptimalShift;
  uint8_t ioMinimumShift;
  uint32_t maxSectors;
  uint32_t chunkSectors;
  uint64_t deviceSectors;
  uint64_t virtualBoundaryMask;
};
static_assert(sizeof(BasicParameters) == 32);

struct DiscardParameters {
  uint32_t alignment;
  uint32_t granularity;
  uint32_t maxSectors;
  uint32_t maxWriteZeroesSectors;
  uint16_t maxSegments;
  uint16_t reserved;
};
static_assert(sizeof(DiscardParameters) == 20);

// The head of struct ublk_params. The driver takes any prefix: `length` says how much of it is there.
struct Parameters {
  uint32_t length;
  uint32_t types;
  BasicParameters basic;
  DiscardParameters discard;
  uint32_t tail;  // keeps sizeof a multiple of 8; not sent
};
static_assert(offsetof(Parameters, basic) == 8);
static_assert(offsetof(Parameters, discard) == 40);
static_assert(offsetof(Parameters, tail) == 60);

// struct ublksrv_io_desc: one per tag, written by the driver, read-only for us.
struct IoDescriptor {
  uint32_t opFlags;  // bits 0-7 operation, the rest flags; not shifted
  uint32_t sectors;  // of 512 bytes, whatever the logical block size
  uint64_t startSector;
  uint64_t address;
};
static_assert(sizeof(IoDescriptor) == 24);

// struct ublksrv_io_cmd: the command part of FETCH and COMMIT_AND_FETCH.
struct IoCommand {
  uint16_t queueId;
  uint16_t tag;
  int32_t result;
  uint64_t address;  // of the tag's buffer; 0 but on the copy path
};
static_assert(sizeof(IoCommand) == 16);

constexpr uint32_t controlOpcode(uint32_t direction, uint32_t number) {
  return direction | ('u' << _IOC_TYPESHIFT) | (number << _IOC_NRSHIFT) | (sizeof(ControlCommand) << _IOC_SIZESHIFT);
}
constexpr uint32_t kRead = _IOC_READ << _IOC_DIRSHIFT;
constexpr uint32_t kReadWrite = (_IOC_READ | _IOC_WRITE) << _IOC_DIRSHIFT;

enum class Control : uint32_t {
  getDeviceInfo = controlOpcode(kRead, 0x02),
  addDevice = controlOpcode(kReadWrite, 0x04),
  startDevice = controlOpcode(kReadWrite, 0x06),
  stopDevice = controlOpcode(kReadWrite, 0x07),
  setParameters = controlOpcode(kReadWrite, 0x08),
  startUserRecovery = controlOpcode(kReadWrite, 0x10),
  endUserRecovery = controlOpcode(kReadWrite, 0x11),
  getFeatures = controlOpcode(kRead, 0x13),
  deleteDeviceAsync = controlOpcode(kRead, 0x14),
  updateSize = controlOpcode(kReadWrite, 0x15),  // data: sectors
  tryStopDevice = controlOpcode(kReadWrite, 0x17),
};
static_assert(static_cast<uint32_t>(Control::addDevice) == _IOWR('u', 0x04, ControlCommand));
static_assert(static_cast<uint32_t>(Control::getDeviceInfo) == _IOR('u', 0x02, ControlCommand));

constexpr uint32_t kFetch = _IOWR('u', 0x20, IoCommand);
constexpr uint32_t kCommitAndFetch = _IOWR('u', 0x21, IoCommand);

enum Feature : uint64_t {
  kUserRecovery = 1ull << 3,
  kUserRecoveryReissue = 1ull << 4,
  kUnprivilegedDevice = 1ull << 5,
  kIoctlEncode = 1ull << 6,
  kUserCopy = 1ull << 7,
  kUserRecoveryFailIo = 1ull << 9,
  kSafeStop = 1ull << 17,
  kNoAutoPartitionScan = 1ull << 18,
};

enum ParameterType : uint32_t { kBasicParameters = 1u << 0, kDiscardParameters = 1u << 1 };

enum Attribute : uint32_t {
  kReadOnly = 1u << 0,
  kRotational = 1u << 1,
  kVolatileCache = 1u << 2,
  kFua = 1u << 3,
};

enum class Operation : uint8_t { read = 0, write = 1, flush = 2, discard = 3, writeZeroes = 5 };

constexpr uint32_t kOperationMask = 0xff;
constexpr uint32_t kIoFua = 1u << 13;
constexpr uint32_t kIoNoUnmap = 1u << 15;

constexpr uint32_t kMaxDepth = 4096;
constexpr uint32_t kSectorShift = 9;

// Where queue `queue`'s descriptors are in /dev/ublkcN. The stride is that of the deepest possible queue.
constexpr uint64_t descriptorOffset(uint32_t queue) { return uint64_t{queue} * kMaxDepth * sizeof(IoDescriptor); }
static_assert(kMaxDepth * sizeof(IoDescriptor) % 4096 == 0);

// Where the data of a request is in /dev/ublkcN for pread(2) and pwrite(2) (user-copy).
constexpr uint64_t requestDataOffset(uint32_t queue, uint32_t tag) {
  return 0x80000000ull + (uint64_t{queue} << 41) + (uint64_t{tag} << 25);
}

// struct ublk_auto_buf_reg in the `addr` of a FETCH or COMMIT_AND_FETCH: the driver registers the next request's data as
// the ring's buffer `index` before it hands the request over, and takes it back with the commit.
constexpr uint64_t registeredBufferAddress(uint16_t index) { return index; }

}  // namespace ublk
