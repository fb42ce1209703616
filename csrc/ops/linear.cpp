// Host side of the matrix products.
#include "ops/call.h"
#include "ops/check.h"
#include "ops/stable.h"

namespace lightvl {
namespace {

constexpr int64_t kMaxRows = 16;

void linear_small(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& residual, bool silu_mul, const Tensor& out) {
  Op op{"linear_small"};
  Dim T{"T"}, C{"C"}, F{"F"};
  Type dtype;
  op.match("x", x).shape(T, C).type(dtype).rows().aligned();
  op.match("out", out).shape(T, F).type(dtype).rows();
  const int64_t weight_rows = silu_mul ? 2 * F : F;
  op.match("weight", weight).shape(weight_rows, C).type(dtype).rows().aligned();
  if (bias) op.match("bias", *bias).shape(weight_rows).type(dtype).contiguous();
  if (residual) op.match("residual", *residual).shape(T, F).type(dtype).rows();
  op.require(T <= kMaxRows, "x must have at most 16 rows");
  op.require(C % 8 == 0, "the width must be a multiple of 8");
  op.require(dtype != DType::kFloat32, "float32 is not supported");
  if (T * F == 0) return;
  const LinearSmallParams p{
      .x = x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .bias = data_or_null(bias),
      .residual = data_or_null(residual),
      .out = out.mutable_data_ptr(),
      .num_tokens = T,
      .width = C,
      .out_width = F,
      .x_stride = x.stride(0),
      .weight_stride = weight.stride(0),
      .residual_stride = residual ? residual->stride(0) : 0,
      .out_stride = out.stride(0),
      .silu_mul = silu_mul,
      .dtype = dtype,
  };
  if constexpr (kCudaBuild) {
    if (x.is_cuda()) return launch(op.name, cuda::linear_small, p, x);
  }
  op.require(false, "runs on a GPU only; on the CPU, torch's products are as fast");
}

template <class Library>
void implement_all(Library& m) {
  implement<&linear_small>(m, "linear_small");
}

}  // namespace

// The CPU has the checks alone.
STABLE_TORCH_LIBRARY_IMPL(lightvl, CPU, m) { implement_all(m); }
#ifdef LIGHTVL_CUDA
STABLE_TORCH_LIBRARY_IMPL(lightvl, CUDA, m) { implement_all(m); }
#endif

}  // namespace lightvl
