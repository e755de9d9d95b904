#include "mount_namespace.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "common/cached_path.hpp"

namespace ublk {

namespace {

// A line of proc_pid_mountinfo(5).
struct Mount {
  uint64_t id;
  std::string device;  // major:minor
  std::string point;
  std::string type;
  std::string source;
  std::string options;  // of the file system
};

using MountIds = std::set<uint64_t>;

// The mount that a path of this namespace is on; 0: not known.
uint64_t mountOf(const std::string& path) {
  struct statx found {};
  const FileDescriptor file = openCached(path);
  const int flags = AT_EMPTY_PATH | AT_STATX_DONT_SYNC;
  if (!file || statx(file.get(), "", flags, STATX_MNT_ID, &found) < 0 || !(found.stx_mask & STATX_MNT_ID)) return 0;
  return found.stx_mnt_id;
}

// What the loop device of this directory below /sys is made of; empty: it is none, or has nothing.
std::string backingFileOf(const std::string& directory) {
  std::string path;
  std::getline(std::ifstream(directory + "/loop/backing_file"), path);
  return path;
}

// Whether a block device, by its directory below /sys, is one of ublk, a partition of one, or is made of one: as those of
// device-mapper and md are, or as a loop device by a file on one of `mounts`.
bool restsOnUblk(const std::string& directory, const MountIds& mounts) {
  char real[PATH_MAX];
  if (!realpath(directory.c_str(), real)) return false;
  if (std::strstr(real, "/ublkb")) return true;
  const std::string file = backingFileOf(real);
  if (!file.empty() && mounts.contains(mountOf(file))) return true;
  const std::string lower = std::string(real) + "/slaves";
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(opendir(lower.c_str()), closedir);
  if (!listing) return false;
  while (const dirent* entry = readdir(listing.get())) {
    if (entry->d_name[0] != '.' && restsOnUblk(lower + "/" + entry->d_name, mounts)) return true;
  }
  return false;
}

// Whether a layer of this overlay, as `lowerdir=/a:/b,upperdir=/c` names them, is on one of `mounts`.
bool hasLayerOn(const std::string& options, const MountIds& mounts) {
  std::istringstream all(options);
  for (std::string option; std::getline(all, option, ',');) {
    const size_t equals = option.find('=');
    if (equals == std::string::npos || option.substr(0, equals).find("dir") == std::string::npos) continue;
    std::istringstream layers(option.substr(equals + 1));
    for (std::string layer; std::getline(layers, layer, ':');) {
      if (layer.starts_with('/') && mounts.contains(mountOf(layer))) return true;
    }
  }
  return false;
}

// The source counts too, because btrfs has a device number of its own.
bool restsOnUblk(const Mount& mount, const MountIds& mounts) {
  return mount.source.starts_with("/dev/ublkb") || restsOnUblk("/sys/dev/block/" + mount.device, mounts) ||
         (mount.type == "overlay" && hasLayerOn(mount.options, mounts));
}

// The kernel writes blanks and backslashes in mount points as octal numbers.
std::string unescaped(const char* field) {
  std::string text;
  for (; *field; field++) {
    unsigned character;
    if (*field == '\\' && std::sscanf(field + 1, "%3o", &character) == 1) {
      text += static_cast<char>(character);
      field += 3;
    } else {
      text += *field;
    }
  }
  return text;
}

// ID PARENT MAJOR:MINOR ROOT MOUNT-POINT OPTIONS TAG... - TYPE SOURCE OPTIONS
std::vector<Mount> mountTable() {
  std::vector<Mount> mounts;
  const std::unique_ptr<FILE, int (*)(FILE*)> table(fopen("/proc/self/mountinfo", "re"), fclose);
  if (!table) throw std::system_error(errno, std::generic_category(), "reading the mount table");
  char* line = nullptr;
  size_t capacity = 0;
  while (getline(&line, &capacity, table.get()) > 0) {
    std::vector<char*> fields;
    for (char *rest = line, *field; (field = strsep(&rest, " \n"));) fields.push_back(field);
    size_t separator = 6;
    while (separator < fields.size() && std::strcmp(fields[separator], "-") != 0) separator++;
    if (separator + 3 >= fields.size()) continue;
    mounts.push_back({std::strtoull(fields[0], nullptr, 10), fields[2], unescaped(fields[4]), fields[separator + 1],
                      unescaped(fields[separator + 2]), unescaped(fields[separator + 3])});
  }
  free(line);
  return mounts;
}

// Where something is mounted that is on a ublk device, or on something that is.
std::vector<std::string> ublkMounts() {
  const std::vector<Mount> mounts = mountTable();
  MountIds found;
  std::optional<size_t> before;
  while (before != found.size()) {
    before = found.size();
    for (const Mount& mount : mounts) {
      if (!found.contains(mount.id) && restsOnUblk(mount, found)) found.insert(mount.id);
    }
  }
  std::vector<std::string> points;
  for (const Mount& mount : mounts) {
    if (found.contains(mount.id) && mount.point != "/") points.push_back(mount.point);
  }
  return points;
}

// From the last one, which may be on top of others. One that cannot be reached stays.
bool detachUblkMounts() {
  bool detached = false;
  const std::vector<std::string> mounts = ublkMounts();
  for (auto place = mounts.rbegin(); place != mounts.rend(); ++place) {
    detached |= umount2(place->c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0;
  }
  return detached;
}

}  // namespace

// A slave, and not private: what is unmounted outside is unmounted here too, else our copy would keep every file system
// of the machine busy for as long as a device is served.
void enterOwnMountNamespace() {
  checked(unshare(CLONE_NEWNS), "unsharing the mount namespace");
  checked(mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr), "making the mounts slaves");
  while (detachUblkMounts()) {
  }
}

}  // namespace ublk
