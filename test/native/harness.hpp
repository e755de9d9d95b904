// What the native tests share: tests register themselves, main.cpp runs them and prints TAP.
#pragma once

#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace ublk::test {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Skipped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Adds a test to those that main() runs, in the order of their files' names.
struct Registration {
  Registration(const char* name, void (*run)());
};

template <typename Value>
std::string shown(const Value& value) {
  std::ostringstream text;
  text << +value;
  return text.str();
}

[[noreturn]] void fail(const char* file, int line, const std::string& what);

template <typename Left, typename Right>
void expectEqual(const Left& left, const Right& right, const char* text, const char* file, int line) {
  bool equal;
  if constexpr (std::is_integral_v<Left> && std::is_integral_v<Right>) {
    equal = static_cast<long long>(left) == static_cast<long long>(right);
  } else {
    equal = left == right;
  }
  if (!equal) fail(file, line, std::string(text) + ": " + shown(left) + " is not " + shown(right));
}

// The errno of the std::system_error that `action` throws; 0 when it throws nothing.
int errnoOf(const std::function<void()>& action);

// How many file descriptors this process has open.
size_t openFiles();

}  // namespace ublk::test

#define TEST_JOIN2(a, b) a##b
#define TEST_JOIN(a, b) TEST_JOIN2(a, b)
#define TEST(name)                                                                                              \
  static void TEST_JOIN(test_, __LINE__)();                                                                     \
  static const ::ublk::test::Registration TEST_JOIN(registration_, __LINE__)(name, TEST_JOIN(test_, __LINE__)); \
  static void TEST_JOIN(test_, __LINE__)()

#define EXPECT(condition)                                                 \
  do {                                                                    \
    if (!(condition)) ::ublk::test::fail(__FILE__, __LINE__, #condition); \
  } while (false)

#define EXPECT_EQUAL(left, right) ::ublk::test::expectEqual((left), (right), #left " == " #right, __FILE__, __LINE__)
