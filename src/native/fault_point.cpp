// Fault points of the test build. A test writes lines `POINT QUEUE SIGNAL COUNT` to /run/ublk-faults, for example
// `fetching 1 9 2`: the next 2 times that a process of queue 1 gets to `fetching` it sends itself SIGKILL.
#include "fault_point.hpp"

#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>

namespace ublk {

namespace {
constexpr const char* kFile = "/run/ublk-faults";
}

void faultPoint(const char* name, uint32_t queue) {
  FILE* file = std::fopen(kFile, "r+");
  if (!file) return;
  flock(fileno(file), LOCK_EX);  // queue processes get here at the same time
  std::string rest;
  char line[128];
  int raised = 0;
  while (std::fgets(line, sizeof line, file)) {
    char point[32];
    unsigned wantedQueue;
    int signal;
    int count;
    if (std::sscanf(line, "%31s %u %d %d", point, &wantedQueue, &signal, &count) != 4) continue;
    if (!raised && count > 0 && wantedQueue == queue && std::strcmp(point, name) == 0) {
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
  std::fclose(file);
  if (raised) raise(raised);
}

}  // namespace ublk
