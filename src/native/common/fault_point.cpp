// Fault points of the test build. A test writes lines `POINT QUEUE SIGNAL COUNT` to /run/ublk-faults, for example
// `fetching 1 9 2`: the next 2 times that a process of queue 1 gets to `fetching` it sends itself SIGKILL. With signal 0 it
// only says that it came by, and that neither a file nor a process is in its reach.
#include "fault_point.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

namespace ublk {

namespace {
constexpr const char* kFile = "/run/ublk-faults";

FILE* open() {
  FILE* file = std::fopen(kFile, "r+");
  if (file) std::setvbuf(file, nullptr, _IONBF, 0);  // others write to it
  return file;
}

bool isConfined() { return ::open("/", O_RDONLY) < 0 && errno == EACCES && kill(getppid(), 0) < 0 && errno == EPERM; }
}  // namespace

void faultPoint(const char* name, uint32_t queue) {
  // From the first of a process' fault points on, which is before it is confined.
  static FILE* const file = open();
  if (!file) return;
  flock(fileno(file), LOCK_EX);  // queue processes get here at the same time
  std::rewind(file);
  std::string rest;
  char line[128];
  int raised = 0;
  while (std::fgets(line, sizeof line, file)) {
    char point[32];
    unsigned wantedQueue;
    int signal;
    int count;
    if (std::sscanf(line, "%31s %u %d %d", point, &wantedQueue, &signal, &count) != 4) continue;
    if (!raised && count > 0 && wantedQueue == queue && std::strcmp(point, name) == 0 &&
        (signal != 0 || isConfined())) {
      raised = signal;
      count--;
    }
    rest += std::string(point) + " " + std::to_string(wantedQueue) + " " + std::to_string(signal) + " " +
            std::to_string(count) + "\n";
  }
  std::rewind(file);
  std::fputs(rest.c_str(), file);
  std::fflush(file);
  if (ftruncate(fileno(file), static_cast<off_t>(rest.size())) < 0) _exit(99);
  flock(fileno(file), LOCK_UN);
  if (raised) raise(raised);
}

}  // namespace ublk
