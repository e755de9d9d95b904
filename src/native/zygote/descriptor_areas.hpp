#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "common/file_descriptor.hpp"
#include "common/ublk_uapi.hpp"

namespace ublk {

// Mappings of the descriptors of a device's queues. They are inherited by the queue processes; the zygote drops its own, which
// would keep the kernel from recovering the device.
class DescriptorAreas {
 public:
  // Throws std::system_error.
  DescriptorAreas(int device, uint32_t queues, uint32_t depth) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    bytes_ = (depth * sizeof(IoDescriptor) + page - 1) / page * page;
    bases_.reserve(queues);
    for (uint32_t queue = 0; queue < queues; queue++) {
      void* base = mmap(nullptr, bytes_, PROT_READ, MAP_SHARED | MAP_POPULATE, device,
                        static_cast<off_t>(descriptorOffset(queue)));
      if (base == MAP_FAILED) {
        const int error = errno;
        unmapAll();
        throw std::system_error(error, std::generic_category(), "mapping the descriptors");
      }
      bases_.push_back(static_cast<const IoDescriptor*>(base));
    }
  }
  ~DescriptorAreas() { unmapAll(); }
  DescriptorAreas(const DescriptorAreas&) = delete;
  DescriptorAreas& operator=(const DescriptorAreas&) = delete;

  // For the process of one queue.
  void keepOnly(uint32_t queue) {
    const IoDescriptor* kept = release(queue);
    unmapAll();
    bases_[queue] = kept;
  }

  // The mapping stays beyond this object.
  const IoDescriptor* release(uint32_t queue) { return std::exchange(bases_[queue], nullptr); }

 private:
  void unmapAll() {
    for (const IoDescriptor*& base : bases_) {
      if (base) munmap(const_cast<IoDescriptor*>(std::exchange(base, nullptr)), bytes_);
    }
  }

  size_t bytes_ = 0;
  std::vector<const IoDescriptor*> bases_;
};

}  // namespace ublk
