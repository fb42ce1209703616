// Every operator's schema, one line each. Implementations register in their family's file.
#include "ops/stable.h"

STABLE_TORCH_LIBRARY(lightvl, m) {
  m.def("cpu_isa() -> str");
  m.def("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) out) -> ()");
}

namespace lightvl {
namespace {

std::string cpu_isa() { return cpu::isa(); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvl, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}

}  // namespace lightvl
