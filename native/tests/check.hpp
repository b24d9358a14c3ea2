// native/tests/check.hpp — the whole test framework: named tests, checks that say what they saw.
// Ownership: the registry lives as long as the process.
// Threads:   tests run one after the other on the main thread; CHECK may be used from any.
// Errors:    a failed CHECK is counted and printed; main returns 1 if there was one.
#pragma once

#include <atomic>
#include <cstdio>
#include <cstring>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
inline std::atomic<int> failures{0};
/// Under a sanitizer everything is many times slower: fewer rounds, longer patience.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool sanitized = true;
#else
inline constexpr bool sanitized = false;
#endif
struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

}  // namespace check

#define TEST(name)                                               \
  static void test_##name();                                     \
  static const check::Register register_##name{#name, test_##name}; \
  static void test_##name()

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      ++check::failures;                                                          \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                             \
  } while (false)

/// Runs all tests, or those whose name contains argv[1].
int main(int argc, char** argv) {
  int ran = 0;
  for (const check::Test& test : check::tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    test.run();
    ++ran;
  }
  std::printf("%d tests, %d failed checks\n", ran, check::failures.load());
  return check::failures.load() == 0 && ran > 0 ? 0 : 1;
}
