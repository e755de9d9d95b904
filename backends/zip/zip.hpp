#pragma once

#include <memory>

#include "common/backend.hpp"
#include "index.hpp"

namespace ublk {

// Serves an entry of a zip archive, read-only, from the archive itself and the index that ZipIndexer made of it. What is
// behind the entry's last byte, up to the device's end, is zero.
//
// A stored entry is read where it is. A deflated one is inflated from the restart point before the request, or goes on
// where an earlier request stopped if that is nearer: several decoders remember such places, so that as many sequential
// readers do not begin again at every request.
class ZipBackend final : public Backend {
 public:
  ZipBackend();
  ~ZipBackend() override;
  void open(const BackendSetup& setup) override;
  void submit(Responder& queue, const Request& request) override;

 private:
  struct Decoder;
  struct Memory;

  // Reads as `read` does, and once more if the archive was touched.
  int readUnchanged(Responder& queue, uint64_t offset, std::byte* data, uint32_t length);
  // Whether the archive, which is not in `state_`, has the entry that the index is of. `buffer` holds nothing yet.
  bool hasEntry(Responder& queue, std::byte* buffer, uint32_t length);
  void forgetPlaces();
  // 0 or -errno; the range is within the entry.
  int read(Responder& queue, uint64_t offset, std::byte* data, uint32_t length);
  Decoder& decoderFor(uint64_t offset);
  void restart(Decoder& decoder, uint32_t point);
  int inflateInto(Decoder& decoder, std::byte* data, uint32_t length);
  int refill(Decoder& decoder);

  int archive_ = -1;
  const ZipIndex* index_ = nullptr;
  ArchiveState state_{};     // in which the archive was found to have the entry
  ArchiveState rejected_{};  // in which it was found not to
  size_t mappedBytes_ = 0;
  std::unique_ptr<Memory> memory_;
  uint64_t turn_ = 0;
};

}  // namespace ublk
