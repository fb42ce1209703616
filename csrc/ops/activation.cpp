// Host side of the activations.
#include "ops/call.h"
#include "ops/check.h"
#include "ops/stable.h"

namespace lightvl {
namespace {

constexpr int64_t kExpCost = 4;  // element operations that an exponential is worth

void silu_mul(const Tensor& gate_up, const Tensor& out) {
  Op op{"silu_mul"};
  Dim T{"T"}, F{"F"};
  Type dtype;
  op.match("out", out).shape(T, F).type(dtype).rows();
  op.match("gate_up", gate_up).shape(T, 2 * F).type(dtype).rows();
  if (T == 0) return;
  const SiluMulParams p{
      .gate_up = gate_up.const_data_ptr(),
      .out = out.mutable_data_ptr(),
      .num_tokens = T,
      .width = F,
      .gate_up_stride = gate_up.stride(0),
      .out_stride = out.stride(0),
      .dtype = dtype,
  };
  if constexpr (kCudaBuild) {
    if (gate_up.is_cuda()) return launch(op.name, cuda::silu_mul, p, gate_up);
  }
  run_rows(cpu::kernels().silu_mul, p, T, F * kExpCost);
}

void gelu(const Tensor& x, const std::optional<Tensor>& bias, const Tensor& out) {
  Op op{"gelu"};
  Dim T{"T"}, C{"C"};
  Type dtype;
  op.match("x", x).shape(T, C).type(dtype).rows();
  if (bias) op.match("bias", *bias).shape(C).type(dtype).contiguous();
  op.match("out", out).shape(T, C).type(dtype).rows();
  if (T == 0) return;
  const GeluParams p{
      .x = x.const_data_ptr(),
      .bias = data_or_null(bias),
      .out = out.mutable_data_ptr(),
      .num_tokens = T,
      .width = C,
      .x_stride = x.stride(0),
      .out_stride = out.stride(0),
      .dtype = dtype,
  };
  if constexpr (kCudaBuild) {
    if (x.is_cuda()) return launch(op.name, cuda::gelu, p, x);
  }
  run_rows(cpu::kernels().gelu, p, T, C * kExpCost);
}

template <class Library>
void implement_all(Library& m) {
  implement<&silu_mul>(m, "silu_mul");
  implement<&gelu>(m, "gelu");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvl, CPU, m) { implement_all(m); }
#ifdef LIGHTVL_CUDA
STABLE_TORCH_LIBRARY_IMPL(lightvl, CUDA, m) { implement_all(m); }
#endif

}  // namespace lightvl
