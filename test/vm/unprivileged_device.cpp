// Adds a ublk device as a user without privileges may, prints its id and ends. Nobody serves it.
#include <fcntl.h>

#include <cstdio>

#include "common/control_ring.hpp"

int main() {
  const int control = open("/dev/ublk-control", O_RDWR | O_CLOEXEC);
  if (control < 0) return 1;
  ublk::ControlRing ring(control);
  ublk::DeviceInfo device{};
  device.queues = 1;
  device.depth = 4;
  device.maxIoBytes = 1u << 18;
  device.deviceId = UINT32_MAX;
  device.flags = ublk::kUnprivilegedDevice | ublk::kIoctlEncode;
  const int result = ring.run(ublk::Control::addDevice, UINT32_MAX, 0, &device, sizeof device);
  if (result < 0) return 2;
  std::printf("%u\n", device.deviceId);
}
