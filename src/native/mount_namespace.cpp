#include "mount_namespace.hpp"

#include <dirent.h>
#include <sched.h>
#include <sys/mount.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "file_descriptor.hpp"

namespace ublk {

namespace {

// Whether a block device, by its directory below /sys, is one of ublk, a partition of one, or (as device-mapper and md
// are) made of one.
bool restsOnUblk(const std::string& directory) {
  char real[PATH_MAX];
  if (!realpath(directory.c_str(), real)) return false;
  if (std::strstr(real, "/ublkb")) return true;
  const std::string lower = std::string(real) + "/slaves";
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(opendir(lower.c_str()), closedir);
  if (!listing) return false;
  while (const dirent* entry = readdir(listing.get())) {
    if (entry->d_name[0] != '.' && restsOnUblk(lower + "/" + entry->d_name)) return true;
  }
  return false;
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

// proc_pid_mountinfo(5): ID PARENT MAJOR:MINOR ROOT MOUNT-POINT OPTIONS TAG... - TYPE SOURCE OPTIONS. The source counts
// too, because btrfs has a device number of its own.
std::vector<std::string> ublkMounts() {
  std::vector<std::string> found;
  const std::unique_ptr<FILE, int (*)(FILE*)> table(fopen("/proc/self/mountinfo", "re"), fclose);
  if (!table) throw std::system_error(errno, std::generic_category(), "reading the mount table");
  char* line = nullptr;
  size_t capacity = 0;
  while (getline(&line, &capacity, table.get()) > 0) {
    std::vector<char*> fields;
    for (char *rest = line, *field; (field = strsep(&rest, " \n"));) fields.push_back(field);
    size_t separator = 6;
    while (separator < fields.size() && std::strcmp(fields[separator], "-") != 0) separator++;
    if (separator + 2 >= fields.size() || std::strcmp(fields[4], "/") == 0) continue;
    if (std::strncmp(fields[separator + 2], "/dev/ublkb", 10) == 0 ||
        restsOnUblk(std::string("/sys/dev/block/") + fields[2])) {
      found.push_back(unescaped(fields[4]));
    }
  }
  free(line);
  return found;
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
