// Host side of the norms: check the arguments, fill the parameters, run the kernel.
#include "ops/call.h"
#include "ops/check.h"
#include "ops/stable.h"

namespace lightvl {
namespace {

void rms_norm(const Tensor& x, const Tensor& weight, double eps, const Tensor& out) {
  Op op{"rms_norm"};
  Dim T{"T"}, H{"H"}, C{"C"};
  Type dtype;
  const bool per_head = x.dim() == 3;
  if (per_head) {
    op.match("x", x).shape(T, H, C).type(dtype).rows();
    op.match("out", out).shape(T, H, C).type(dtype).rows();
  } else {
    op.match("x", x).shape(T, C).type(dtype).rows();
    op.match("out", out).shape(T, C).type(dtype).rows();
  }
  op.match("weight", weight).shape(C).type(dtype).contiguous();
  const int64_t num_heads = per_head ? int64_t{H} : 1;
  if (T * num_heads == 0) return;
  const RmsNormParams p{
      .x = x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .out = out.mutable_data_ptr(),
      .num_tokens = T,
      .num_heads = num_heads,
      .width = C,
      .x_stride_t = x.stride(0),
      .x_stride_h = per_head ? x.stride(1) : 0,
      .out_stride_t = out.stride(0),
      .out_stride_h = per_head ? out.stride(1) : 0,
      .eps = static_cast<float>(eps),
      .dtype = dtype,
  };
  if constexpr (kCudaBuild) {
    if (x.is_cuda()) return launch(op.name, cuda::rms_norm, p, x);
  }
  run_rows(cpu::kernels().rms_norm, p, T * num_heads, C);
}

void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps,
                  const Tensor& out) {
  Op op{"add_rms_norm"};
  Dim T{"T"}, C{"C"};
  Type dtype;
  op.match("x", x).shape(T, C).type(dtype).rows();
  op.match("residual", residual).shape(T, C).type(dtype).rows();
  op.match("weight", weight).shape(C).type(dtype).contiguous();
  op.match("out", out).shape(T, C).type(dtype).rows();
  if (T == 0) return;
  const AddRmsNormParams p{
      .x = x.const_data_ptr(),
      .residual = residual.mutable_data_ptr(),
      .weight = weight.const_data_ptr(),
      .out = out.mutable_data_ptr(),
      .num_tokens = T,
      .width = C,
      .x_stride = x.stride(0),
      .residual_stride = residual.stride(0),
      .out_stride = out.stride(0),
      .eps = static_cast<float>(eps),
      .dtype = dtype,
  };
  if constexpr (kCudaBuild) {
    if (x.is_cuda()) return launch(op.name, cuda::add_rms_norm, p, x);
  }
  run_rows(cpu::kernels().add_rms_norm, p, T, C);
}

void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
                const Tensor& out) {
  Op op{"layer_norm"};
  Dim T{"T"}, C{"C"};
  Type dtype;
  op.match("x", x).shape(T, C).type(dtype).rows();
  op.match("weight", weight).shape(C).type(dtype).contiguous();
  op.match("bias", bias).shape(C).type(dtype).contiguous();
  op.match("out", out).shape(T, C).type(dtype).rows();
  if (T == 0) return;
  const LayerNormParams p{
      .x = x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .bias = bias.const_data_ptr(),
      .out = out.mutable_data_ptr(),
      .num_tokens = T,
      .width = C,
      .x_stride = x.stride(0),
      .out_stride = out.stride(0),
      .eps = static_cast<float>(eps),
      .dtype = dtype,
  };
  if constexpr (kCudaBuild) {
    if (x.is_cuda()) return launch(op.name, cuda::layer_norm, p, x);
  }
  run_rows(cpu::kernels().layer_norm, p, T, C);
}

void scale_add(const Tensor& x, const std::optional<Tensor>& bias, const Tensor& scale,
               const Tensor& residual, const Tensor& out) {
  Op op{"scale_add"};
  Dim T{"T"}, C{"C"};
  Type dtype;
  op.match("x", x).shape(T, C).type(dtype).rows();
  if (bias) op.match("bias", *bias).shape(C).type(dtype).contiguous();
  op.match("scale", scale).shape(C).type(dtype).contiguous();
  op.match("residual", residual).shape(T, C).type(dtype).rows();
  op.match("out", out).shape(T, C).type(dtype).rows();
  if (T == 0) return;
  const ScaleAddParams p{
      .x = x.const_data_ptr(),
      .bias = data_or_null(bias),
      .scale = scale.const_data_ptr(),
      .residual = residual.const_data_ptr(),
      .out = out.mutable_data_ptr(),
      .num_tokens = T,
      .width = C,
      .x_stride = x.stride(0),
      .residual_stride = residual.stride(0),
      .out_stride = out.stride(0),
      .dtype = dtype,
  };
  if constexpr (kCudaBuild) {
    if (x.is_cuda()) return launch(op.name, cuda::scale_add, p, x);
  }
  run_rows(cpu::kernels().scale_add, p, T, C);
}

template <class Library>
void implement_all(Library& m) {
  implement<&rms_norm>(m, "rms_norm");
  implement<&add_rms_norm>(m, "add_rms_norm");
  implement<&layer_norm>(m, "layer_norm");
  implement<&scale_add>(m, "scale_add");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvl, CPU, m) { implement_all(m); }
#ifdef LIGHTVL_CUDA
STABLE_TORCH_LIBRARY_IMPL(lightvl, CUDA, m) { implement_all(m); }
#endif

}  // namespace lightvl
