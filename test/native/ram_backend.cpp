#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "../../backends/ram/ram.hpp"
#include "client.hpp"
#include "common/file_descriptor.hpp"
#include "harness.hpp"

namespace ublk {

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint32_t kMaxIo = 64 * 1024;

uint64_t pagesOf(uint64_t bytes) { return (bytes + kPage - 1) / kPage; }

// As ram-file.ts makes it: the data behind the space for the bitmap.
uint64_t fileBytes(uint64_t size) { return RamBackend::kDataOffset + pagesOf(size) * kPage; }

FileDescriptor ramFile(uint64_t size) {
  FileDescriptor file(checked(memfd_create("ram", MFD_CLOEXEC), "memfd_create"));
  checked(ftruncate(file.get(), static_cast<off_t>(fileBytes(size))), "ftruncate");
  return file;
}

uint64_t allocatedPages(int file) {
  struct stat status {};
  checked(fstat(file, &status), "fstat");
  return static_cast<uint64_t>(status.st_blocks) * 512 / kPage;
}

// A backend on `file` and somebody who uses it.
struct Disk {
  Disk(int file, uint64_t size, DataPath path) : client(backend, path, kMaxIo) {
    backend.open({.size = size, .depth = 1, .maxIoBytes = kMaxIo, .files = std::span(&file, 1)});
  }
  RamBackend backend;
  test::Client client;
};

// What a RAM disk does, in the most obvious way.
struct Model {
  explicit Model(uint64_t size) : bytes(size), present(pagesOf(size)) {}

  void write(uint64_t offset, const std::vector<std::byte>& data) {
    std::copy(data.begin(), data.end(), bytes.begin() + static_cast<ptrdiff_t>(offset));
    for (uint64_t page = offset / kPage; page <= (offset + data.size() - 1) / kPage; page++) present[page] = true;
  }
  // Discard leaves the ends of the range alone where they are parts of pages; write zeroes does not.
  void clear(uint64_t offset, uint64_t length, bool exactly) {
    const uint64_t end = offset + length;
    for (uint64_t at = offset; at < end; at++) {
      const uint64_t page = at / kPage;
      const bool whole = page * kPage >= offset && (page + 1) * kPage <= end;
      if (whole) present[page] = false;
      if (whole || exactly) bytes[at] = std::byte{0};
    }
  }
  uint64_t pages() const { return static_cast<uint64_t>(std::count(present.begin(), present.end(), true)); }

  std::vector<std::byte> bytes;
  std::vector<bool> present;
};

std::vector<std::byte> randomBytes(std::mt19937_64& random, uint64_t length) {
  std::vector<std::byte> data(length);
  for (auto& byte : data) byte = static_cast<std::byte>(random());
  return data;
}

// Random requests through one of `paths.size()` queue processes' backends each, all compared with the model.
void compareWithModel(const std::vector<DataPath>& paths, uint64_t seed, bool sparse) {
  // The last page is a part of one, and 70 pages need a second word of the bitmap.
  const uint64_t size = 70 * kPage + 512;
  std::mt19937_64 random(seed);
  const FileDescriptor file = ramFile(size);
  std::vector<std::unique_ptr<Disk>> disks;
  for (const DataPath path : paths) disks.push_back(std::make_unique<Disk>(file.get(), size, path));
  Model model(size);
  for (int i = 0; i < 6000; i++) {
    test::Client& client = disks[random() % disks.size()]->client;
    const uint64_t sectors = size / 512;
    const uint64_t first = random() % sectors;
    const uint64_t most = std::min<uint64_t>(sectors - first, random() % 2 ? kMaxIo / 512 : 9);
    const uint64_t offset = first * 512;
    const auto length = static_cast<uint32_t>((1 + random() % most) * 512);
    switch (random() % 8) {
      case 0:
      case 1:
      case 2: {
        std::vector<std::byte> data = randomBytes(random, length);
        EXPECT_EQUAL(client.run(Operation::write, offset, length, data.data()), length);
        model.write(offset, data);
        break;
      }
      case 3:
        EXPECT(client.run(Operation::discard, offset, length) >= 0);
        model.clear(offset, length, false);
        break;
      case 4:
        EXPECT(client.run(Operation::writeZeroes, offset, length) >= 0);
        model.clear(offset, length, true);
        break;
      case 5:
        if (random() % 50 == 0) {
          EXPECT(client.run(Operation::discard, 0, size) >= 0);
          model.clear(0, size, false);
        }
        EXPECT(client.run(Operation::flush, 0, 0) >= 0);
        break;
      default: {
        std::vector<std::byte> data(length, std::byte{0x55});
        EXPECT_EQUAL(client.run(Operation::read, offset, length, data.data()), length);
        EXPECT(std::equal(data.begin(), data.end(), model.bytes.begin() + static_cast<ptrdiff_t>(offset)));
      }
    }
    if (sparse) EXPECT_EQUAL(allocatedPages(file.get()), model.pages() + 1);
  }
  Disk fresh(file.get(), size, DataPath::copy);
  for (uint64_t at = 0; at < size; at += 512) {
    std::byte sector[512];
    EXPECT_EQUAL(fresh.client.run(Operation::read, at, 512, sector), 512);
    EXPECT(std::equal(std::begin(sector), std::end(sector), model.bytes.begin() + static_cast<ptrdiff_t>(at)));
  }
}

// A file in a tmpfs of its own, of that many pages, which is mounted nowhere.
FileDescriptor fileInSmallTmpfs(uint64_t pages) {
  const FileDescriptor context(fsopen("tmpfs", FSOPEN_CLOEXEC));
  if (!context) throw test::Skipped("needs CAP_SYS_ADMIN");
  const std::string size = std::to_string(pages * kPage);
  checked(fsconfig(context.get(), FSCONFIG_SET_STRING, "size", size.c_str(), 0), "fsconfig");
  checked(fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0), "fsconfig");
  const FileDescriptor mount(checked(fsmount(context.get(), FSMOUNT_CLOEXEC, 0), "fsmount"));
  return FileDescriptor(checked(openat(mount.get(), "file", O_RDWR | O_CREAT | O_CLOEXEC, 0600), "openat"));
}

}  // namespace

TEST("a RAM disk does what a simple model does (copy), and uses the pages that were written") {
  for (const uint64_t seed : {1u, 2u}) compareWithModel({DataPath::copy}, seed, true);
}

TEST("a RAM disk does what a simple model does (user-copy)") {
  for (const uint64_t seed : {3u, 4u}) compareWithModel({DataPath::userCopy}, seed, false);
}

TEST("several queue processes serve one RAM disk") {
  compareWithModel({DataPath::copy, DataPath::copy, DataPath::copy}, 5, true);
  compareWithModel({DataPath::userCopy, DataPath::userCopy}, 6, false);
}

TEST("a RAM disk's data outlives the process that wrote it and a change of the data path") {
  compareWithModel({DataPath::copy, DataPath::userCopy}, 7, false);
}

TEST("reading a sparse RAM disk uses no memory") {
  const uint64_t size = 64 * 1024 * 1024;
  for (const DataPath path : {DataPath::copy, DataPath::userCopy}) {
    const FileDescriptor file = ramFile(size);
    Disk disk(file.get(), size, path);
    EXPECT(allocatedPages(file.get()) <= 1);
    std::vector<std::byte> data(kMaxIo, std::byte{1});
    const auto readsAs = [&](uint64_t at, auto expected) {
      EXPECT_EQUAL(disk.client.run(Operation::read, at, kMaxIo, data.data()), kMaxIo);
      for (uint64_t i = 0; i < kMaxIo; i++) EXPECT(data[i] == (expected(at + i) ? std::byte{1} : std::byte{0}));
    };
    for (uint64_t at = 0; at < size; at += kMaxIo) readsAs(at, [](uint64_t) { return false; });
    // One page in each three requests, and what is around it; not aligned to pages, too.
    const uint64_t stride = 3 * kMaxIo;
    std::vector<std::byte> ones(kPage, std::byte{1});
    for (uint64_t at = kPage; at < size; at += stride) {
      EXPECT_EQUAL(disk.client.run(Operation::write, at, kPage, ones.data()), kPage);
    }
    const uint64_t written = allocatedPages(file.get());
    for (uint64_t at = 0; at + stride <= size; at += stride) {
      for (const uint64_t shift : {uint64_t{0}, uint64_t{512}}) {
        readsAs(at + shift, [&](uint64_t where) { return where / kPage % (stride / kPage) == 1; });
      }
    }
    EXPECT_EQUAL(allocatedPages(file.get()), written);
  }
}

TEST("a RAM disk of several bitmap pages keeps its ends apart") {
  const uint64_t size = 3 * 4096ull * 8 * kPage;  // three pages of bitmap
  const FileDescriptor file = ramFile(size);
  Disk disk(file.get(), size, DataPath::copy);
  std::vector<std::byte> data(kPage, std::byte{7});
  const uint64_t places[] = {0, size / 3 - kPage, size / 3, 2 * size / 3, size - kPage};
  for (const uint64_t at : places) EXPECT_EQUAL(disk.client.run(Operation::write, at, kPage, data.data()), kPage);
  EXPECT_EQUAL(allocatedPages(file.get()), std::size(places) + 3);
  EXPECT(disk.client.run(Operation::discard, 0, 2 * size / 3) >= 0);
  for (const uint64_t at : places) {
    EXPECT_EQUAL(disk.client.run(Operation::read, at, kPage, data.data()), kPage);
    EXPECT_EQUAL(data[kPage - 1] == std::byte{7}, at >= 2 * size / 3);
    std::fill(data.begin(), data.end(), std::byte{7});
  }
}

TEST("a RAM disk that grew has its data, then zeros") {
  const uint64_t size = 100 * kPage;
  const FileDescriptor file = ramFile(size);
  std::vector<std::byte> data(kPage, std::byte{7});
  {
    Disk disk(file.get(), size, DataPath::copy);
    EXPECT_EQUAL(disk.client.run(Operation::write, size - kPage, kPage, data.data()), kPage);
  }
  // A bitmap of more than a page.
  const uint64_t larger = size + 2 * 4096ull * 8 * kPage;
  checked(ftruncate(file.get(), static_cast<off_t>(fileBytes(larger))), "ftruncate");
  Disk disk(file.get(), larger, DataPath::copy);
  for (const uint64_t at : {size - kPage, size, larger - kPage}) {
    EXPECT_EQUAL(disk.client.run(Operation::read, at, kPage, data.data()), kPage);
    EXPECT(std::all_of(data.begin(), data.end(),
                       [&](std::byte b) { return b == (at < size ? std::byte{7} : std::byte{0}); }));
  }
}

TEST("a RAM disk file that shrank, or is not there, is refused") {
  const uint64_t size = 16 * kPage;
  const FileDescriptor file = ramFile(size);
  checked(ftruncate(file.get(), static_cast<off_t>(fileBytes(size) - 1)), "ftruncate");
  EXPECT_EQUAL(test::errnoOf([&] { Disk(file.get(), size, DataPath::copy); }), ENODATA);
  EXPECT_EQUAL(test::errnoOf([&] { Disk(-1, size, DataPath::copy); }), EBADF);
  RamBackend backend;
  EXPECT_EQUAL(test::errnoOf([&] { backend.open({.size = size, .maxIoBytes = kMaxIo, .files = {}}); }), EBADF);
}

TEST("a full tmpfs is ENOSPC for writes and nothing for reads") {
  const uint64_t size = 64 * kPage;
  const FileDescriptor file = fileInSmallTmpfs(12);
  checked(ftruncate(file.get(), static_cast<off_t>(fileBytes(size))), "ftruncate");
  Disk disk(file.get(), size, DataPath::copy);
  std::vector<std::byte> data(kPage, std::byte{9});
  int64_t result = 0;
  uint64_t written = 0;
  for (; written < 64; written++) {
    result = disk.client.run(Operation::write, written * kPage, kPage, data.data());
    if (result < 0) break;
  }
  EXPECT_EQUAL(result, -ENOSPC);
  EXPECT(written > 8);
  for (uint64_t page = 0; page < 64; page++) {
    EXPECT_EQUAL(disk.client.run(Operation::read, page * kPage, kPage, data.data()), kPage);
    EXPECT(data[0] == (page < written ? std::byte{9} : std::byte{0}));
  }
  // What is there may be written again, and a discard makes room.
  std::fill(data.begin(), data.end(), std::byte{8});
  EXPECT_EQUAL(disk.client.run(Operation::write, 0, kPage, data.data()), kPage);
  EXPECT(disk.client.run(Operation::discard, 0, kPage) >= 0);
  EXPECT_EQUAL(disk.client.run(Operation::write, 63 * kPage, kPage, data.data()), kPage);
}

TEST("a tmpfs that is full before the first write does not end the queue process") {
  const uint64_t size = 64 * kPage;
  const FileDescriptor file = fileInSmallTmpfs(4);
  checked(ftruncate(file.get(), static_cast<off_t>(fileBytes(size))), "ftruncate");
  // Somebody else took the memory; here it is the disk's own file, beyond what the disk uses.
  const auto fill = [&](off_t pages) {
    return fallocate(file.get(), FALLOC_FL_KEEP_SIZE, 1 << 30, pages * static_cast<off_t>(kPage));
  };
  EXPECT_EQUAL(fill(4), 0);
  EXPECT_EQUAL(test::errnoOf([&] { Disk(file.get(), size, DataPath::copy); }), ENOSPC);
  checked(fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 30, kPage), "fallocate");
  Disk disk(file.get(), size, DataPath::copy);
  std::vector<std::byte> data(kPage, std::byte{9});
  EXPECT_EQUAL(disk.client.run(Operation::read, 0, kPage, data.data()), kPage);
  EXPECT_EQUAL(disk.client.run(Operation::write, 0, kPage, data.data()), -ENOSPC);
}

}  // namespace ublk
