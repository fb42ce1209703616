// Run-time choice of the instruction set; the one file of this folder that is compiled once.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/kernels.h"

namespace lightvl::cpu {

namespace generic {
extern const Kernels table;
}
#ifdef __x86_64__
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

struct Isa {
  const char* name;
  const Kernels* table;
  bool supported;
};

// Best first. avx2 and avx512 stand for the x86-64-v3 and x86-64-v4 levels.
const std::vector<Isa>& sets() {
  static const std::vector<Isa> all = {
#ifdef __x86_64__
      {"avx512", &avx512::table,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl")},
      {"avx2", &avx2::table,
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")},
#endif
      {"generic", &generic::table, true},
  };
  return all;
}

const Isa& choose() {
  const char* wanted = std::getenv("LIGHTVL_CPU_ISA");
  for (const Isa& set : sets()) {
    if (set.supported && (wanted == nullptr || std::string_view(wanted) == set.name)) return set;
  }
  throw std::invalid_argument("LIGHTVL_CPU_ISA is \"" + std::string(wanted) +
                              "\", which this build or this processor does not have");
}

const Isa& chosen() {
  static const Isa& set = choose();
  return set;
}

}  // namespace

bool is_supported(std::string_view name) {
  for (const Isa& set : sets()) {
    if (set.supported && name == set.name) return true;
  }
  return false;
}

const char* isa() { return chosen().name; }
const Kernels& kernels() { return *chosen().table; }

}  // namespace lightvl::cpu
