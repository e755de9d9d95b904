// Who has block devices open, as far as /proc and /sys tell.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "common/cached_path.hpp"

namespace ublk::addon {

namespace {

struct Opener {
  int pid;
  std::string device;
};

struct Loop {
  std::string name;
  std::string backingFile;
  std::string device;  // empty: not known to be on a block device
};

// Calls `visit` with the name of each entry; a directory that is not there has none.
template <typename Visit>
void forEachEntry(const char* path, Visit&& visit) {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(opendir(path), closedir);
  if (!directory) return;
  while (const dirent* entry = readdir(directory.get())) {
    if (entry->d_name[0] != '.') visit(dirfd(directory.get()), entry->d_name);
  }
}

bool isNumber(const char* text) {
  return *text && std::all_of(text, text + std::char_traits<char>::length(text),
                              [](unsigned char c) { return std::isdigit(c); });
}

// The block device that a file is, as `major:minor`. The file system is not asked, as it may be of a server that does not
// answer; what a file is never changes.
std::optional<std::string> blockDevice(int directory, const char* name, int flags) {
  struct statx status {};
  if (statx(directory, name, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT | flags, STATX_TYPE, &status) < 0) return {};
  if (!S_ISBLK(status.stx_mode)) return {};
  return std::to_string(status.stx_rdev_major) + ":" + std::to_string(status.stx_rdev_minor);
}

std::vector<Opener> findOpeners() {
  std::vector<Opener> openers;
  forEachEntry("/proc", [&](int, const char* pid) {
    if (!isNumber(pid)) return;
    const std::string files = std::string("/proc/") + pid + "/fd";
    const size_t before = openers.size();
    forEachEntry(files.c_str(), [&](int directory, const char* fd) {
      const auto device = blockDevice(directory, fd, 0);
      if (!device) return;
      const bool known = std::any_of(openers.begin() + static_cast<ptrdiff_t>(before), openers.end(),
                                     [&](const Opener& opener) { return opener.device == *device; });
      if (!known) openers.push_back({std::stoi(pid), *device});
    });
  });
  return openers;
}

std::vector<Loop> findLoops() {
  std::vector<Loop> loops;
  forEachEntry("/sys/block", [&](int, const char* name) {
    const std::string loop = name;
    if (!loop.starts_with("loop")) return;
    const FileDescriptor attribute(
        open(("/sys/block/" + loop + "/loop/backing_file").c_str(), O_RDONLY | O_CLOEXEC));  // ENOENT: it has none
    if (!attribute) return;
    char text[4096];
    const ssize_t length = read(attribute.get(), text, sizeof text);
    if (length <= 0) return;
    const std::string file(text, static_cast<size_t>(length) - (text[length - 1] == '\n' ? 1 : 0));
    const FileDescriptor backing = openCached(file);
    loops.push_back({loop, file, backing ? blockDevice(backing.get(), "", AT_EMPTY_PATH).value_or("") : ""});
  });
  return loops;
}

// A thread of its own: on a machine with many processes this takes a moment.
class Search final : public Napi::AsyncWorker {
 public:
  explicit Search(Napi::Env env) : Napi::AsyncWorker(env), done_(Napi::Promise::Deferred::New(env)) {}

  Napi::Promise promise() const { return done_.Promise(); }

 private:
  void Execute() override {
    openers_ = findOpeners();
    loops_ = findLoops();
  }
  void OnOK() override {
    Napi::Array openers = Napi::Array::New(Env(), openers_.size());
    for (uint32_t i = 0; i < openers_.size(); i++) {
      Napi::Object opener = Napi::Object::New(Env());
      opener.Set("pid", openers_[i].pid);
      opener.Set("device", openers_[i].device);
      openers.Set(i, opener);
    }
    Napi::Array loops = Napi::Array::New(Env(), loops_.size());
    for (uint32_t i = 0; i < loops_.size(); i++) {
      Napi::Object loop = Napi::Object::New(Env());
      loop.Set("name", loops_[i].name);
      loop.Set("backingFile", loops_[i].backingFile);
      loop.Set("device", loops_[i].device);
      loops.Set(i, loop);
    }
    Napi::Object found = Napi::Object::New(Env());
    found.Set("openers", openers);
    found.Set("loops", loops);
    done_.Resolve(found);
  }
  void OnError(const Napi::Error& error) override { done_.Reject(error.Value()); }

  const Napi::Promise::Deferred done_;
  std::vector<Opener> openers_;
  std::vector<Loop> loops_;
};

// openBlockDevices(): Promise<{ openers: { pid, device }[], loops: { name, backingFile, device }[] }>.
Napi::Value openBlockDevices(const Napi::CallbackInfo& info) {
  auto* search = new Search(info.Env());  // deletes itself
  search->Queue();
  return search->promise();
}

}  // namespace

void exportBlockDevices(Napi::Env env, Napi::Object exports) {
  exports.Set("openBlockDevices", Napi::Function::New(env, openBlockDevices));
}

}  // namespace ublk::addon
