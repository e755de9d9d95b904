#include <dirent.h>

#include <cstdio>
#include <system_error>
#include <vector>

#include "harness.hpp"

namespace ublk::test {

namespace {

struct Test {
  const char* name;
  void (*run)();
};

// Filled by initialisers of other files, which may run before any of this one.
std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

}  // namespace

Registration::Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }

void fail(const char* file, int line, const std::string& what) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

int errnoOf(const std::function<void()>& action) {
  try {
    action();
  } catch (const std::system_error& error) {
    return error.code().value();
  }
  return 0;
}

size_t openFiles() {
  DIR* directory = opendir("/proc/self/fd");
  if (!directory) throw Failure("/proc is not mounted");
  size_t count = 0;
  while (readdir(directory)) count++;
  closedir(directory);
  return count;
}

}  // namespace ublk::test

// Prints TAP version 14. A sanitizer's finding ends the program at once, with a plan that was not fulfilled.
int main() {
  using namespace ublk::test;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  std::printf("TAP version 14\n1..%zu\n", tests().size());
  int failures = 0;
  int number = 0;
  for (const auto& [name, run] : tests()) {
    number++;
    try {
      run();
      std::printf("ok %d - %s\n", number, name);
    } catch (const Skipped& reason) {
      std::printf("ok %d - %s # SKIP %s\n", number, name, reason.what());
    } catch (const std::exception& error) {
      failures++;
      std::printf("not ok %d - %s\n  ---\n  message: >-\n    %s\n  ...\n", number, name, error.what());
    }
  }
  return failures == 0 ? 0 : 1;
}
