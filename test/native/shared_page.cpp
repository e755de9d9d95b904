#include "common/shared_page.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "harness.hpp"

namespace ublk {

TEST("a histogram's buckets are in the order of their values and cover all of them") {
  EXPECT_EQUAL(Histogram::bucketOf(0), 0u);
  EXPECT_EQUAL(Histogram::bucketOf(UINT64_MAX), Histogram::kBuckets - 1);
  std::vector<uint64_t> values;
  for (uint32_t bit = 2; bit < 64; bit++) {
    const uint64_t power = 1ull << bit;
    for (const uint64_t quarter : {4u, 5u, 6u, 7u})
      values.insert(values.end(), {power / 4 * quarter, power / 4 * quarter - 1});
  }
  std::sort(values.begin(), values.end());
  uint32_t previous = 0;
  for (const uint64_t value : values) {
    const uint32_t bucket = Histogram::bucketOf(value);
    EXPECT(bucket >= previous && bucket < Histogram::kBuckets);
    previous = bucket;
  }
}

TEST("a histogram's bucket stands for its values within 13 %") {
  std::mt19937_64 random(1);
  for (int i = 0; i < 200000; i++) {
    const uint64_t value = random() >> (random() % 64);
    const double shown = Histogram::valueOf(Histogram::bucketOf(value));
    EXPECT(std::abs(shown - static_cast<double>(value)) <= 0.13 * static_cast<double>(value));
  }
}

TEST("a histogram's quantiles are those of the samples within 13 %") {
  std::mt19937_64 random(2);
  for (const size_t samples : {1u, 2u, 3u, 100u, 5000u}) {
    const auto histogram = std::make_unique<Histogram>();
    std::vector<uint64_t> values;
    for (size_t i = 0; i < samples; i++) {
      values.push_back(1000 + (random() >> (random() % 40 + 24)));
      histogram->add(values.back());
    }
    std::sort(values.begin(), values.end());
    for (const double share : {0.0, 0.5, 0.9, 0.99, 1.0}) {
      const size_t rank = std::min(samples - 1, static_cast<size_t>(share * static_cast<double>(samples)));
      const auto exact = static_cast<double>(values[rank]);
      EXPECT(std::abs(histogram->quantile(share) - exact) <= 0.13 * exact);
    }
  }
}

TEST("a histogram without samples has no quantile") {
  const auto histogram = std::make_unique<Histogram>();
  EXPECT_EQUAL(histogram->quantile(0.5), 0.0);
  EXPECT_EQUAL(histogram->quantile(1), 0.0);
}

TEST("the parts of the shared page are aligned and do not overlap") {
  for (const uint32_t queues : {1u, 2u, 3u, 7u, 128u}) {
    for (const uint32_t depth : {1u, 2u, 3u, 31u, 128u, 1000u, 4096u}) {
      const SharedLayout layout{queues, depth, false};
      size_t end = sizeof(DeviceHeader);
      for (uint32_t queue = 0; queue < queues; queue++) {
        // A cache line, and the one that the processor fetches along with it.
        EXPECT_EQUAL(layout.queueOffset(queue) % 128, 0u);
        EXPECT(layout.queueOffset(queue) >= end);
        end = layout.queueOffset(queue) + sizeof(QueuePage);
        EXPECT_EQUAL(layout.inflightOffset(queue) % 128, 0u);
        EXPECT(layout.inflightOffset(queue) >= end);
        end = layout.inflightOffset(queue) + depth * sizeof(InflightEntry);
      }
      EXPECT(layout.bytes() >= end);
    }
  }
}

TEST("a map of the shared page finds the parts where the layout has them") {
  const SharedLayout layout{3, 5, false};
  std::vector<std::byte> memory(layout.bytes() + 128);
  void* base = memory.data();
  size_t room = memory.size();
  std::align(128, layout.bytes(), base, room);
  const SharedMap map(base, layout);
  map.header().fetched = 3;
  for (uint32_t queue = 0; queue < 3; queue++) {
    map.queue(queue).phase = queue + 1;
    map.queue(queue).operations[kOperationKinds - 1].latency.add(UINT64_MAX);
    for (uint32_t tag = 0; tag < 5; tag++) map.inflight(queue)[tag].startNs = queue * 10 + tag + 1;
  }
  EXPECT_EQUAL(map.header().fetched.load(), 3u);
  for (uint32_t queue = 0; queue < 3; queue++) {
    EXPECT_EQUAL(map.queue(queue).phase.load(), queue + 1);
    EXPECT(map.queue(queue).operations[kOperationKinds - 1].latency.quantile(0) > 1e19);
    for (uint32_t tag = 0; tag < 5; tag++) EXPECT_EQUAL(map.inflight(queue)[tag].startNs.load(), queue * 10 + tag + 1);
  }
}

}  // namespace ublk
