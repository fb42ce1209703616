// The one door to torch: its stable C++ interface, and nothing else of it.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef LIGHTVL_CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include <algorithm>
#include <optional>

#include "cpu/kernels.h"

namespace lightvl {

using torch::headeronly::ScalarType;

// Runs a CPU kernel over `num_rows` rows of about `row_cost` element operations each, on as many
// threads as the work is worth; little work stays on the caller's thread.
template <class Params>
void run_rows(cpu::RowKernel<Params>* kernel, const Params& p, int64_t num_rows, int64_t row_cost) {
  constexpr int64_t kCostPerThread = 32768;
  const int64_t grain = kCostPerThread / std::max<int64_t>(row_cost, 1) + 1;
  if (num_rows <= grain) return kernel(p, 0, num_rows);
  torch::stable::parallel_for(0, num_rows, grain,
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace lightvl
