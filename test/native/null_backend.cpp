#include <algorithm>

#include "../../backends/null/null.hpp"
#include "client.hpp"
#include "harness.hpp"

namespace ublk {

TEST("the null backend reads zeros over whatever the buffer held and takes everything else") {
  for (const DataPath path : {DataPath::copy, DataPath::userCopy}) {
    NullBackend backend;
    backend.open({.size = 1ull << 40, .maxIoBytes = 65536, .files = {}});
    test::Client client(backend, path, 65536);
    for (const uint32_t length : {512u, 4096u, 65536u}) {
      std::vector<std::byte> data(length, std::byte{1});
      EXPECT_EQUAL(client.run(Operation::write, (1ull << 40) - length, length, data.data()), length);
      EXPECT_EQUAL(client.run(Operation::read, (1ull << 40) - length, length, data.data()), length);
      EXPECT(std::all_of(data.begin(), data.end(), [](std::byte b) { return b == std::byte{0}; }));
      EXPECT(client.run(Operation::discard, 0, length) >= 0);
      EXPECT(client.run(Operation::writeZeroes, 0, length) >= 0);
    }
    EXPECT(client.run(Operation::flush, 0, 0) >= 0);
  }
}

}  // namespace ublk
