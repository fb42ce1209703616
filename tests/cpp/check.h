// The C++ tests' few lines of framework: TEST bodies register themselves, CHECK reports and goes
// on, check_main.h's main runs them all.
#pragma once

#include <cstdio>
#include <vector>

struct TestCase {
  const char* name;
  void (*body)();
};

inline std::vector<TestCase>& test_cases() {
  static std::vector<TestCase> cases;
  return cases;
}

inline int& failures() {
  static int count = 0;
  return count;
}

#define TEST(name)                                                                     \
  static void name();                                                                  \
  static const bool name##_registered = (test_cases().push_back({#name, name}), true); \
  static void name()

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      ++failures();                                                             \
      std::printf("%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                           \
  } while (false)

// The name that LIGHTVL_ISA stands for.
#define LIGHTVL_STRING_OF(x) #x
#define LIGHTVL_STRING(x) LIGHTVL_STRING_OF(x)

#define TEST_MAIN()                                                                 \
  int main() {                                                                      \
    if (!lightvl::cpu::is_supported(LIGHTVL_STRING(LIGHTVL_ISA))) return 77;        \
    for (const TestCase& test : test_cases()) test.body();                          \
    std::printf("%zu passed, %d failed checks\n", test_cases().size(), failures()); \
    return failures() == 0 ? 0 : 1;                                                 \
  }
