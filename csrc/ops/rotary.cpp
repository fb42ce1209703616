// Host side of the rotary embedding with its page write.
#include "ops/call.h"
#include "ops/check.h"
#include "ops/stable.h"

namespace lightvl {
namespace {

constexpr int64_t kMaxHeadDim = 256;

void rope_write_kv(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos_sin,
                   const Tensor& rows, const Tensor& slots, const Tensor& k_cache,
                   const Tensor& v_cache, const std::optional<Tensor>& q_norm,
                   const std::optional<Tensor>& k_norm, double eps) {
  Op op{"rope_write_kv"};
  Dim T{"T"}, H{"H"}, K{"K"}, D{"D"}, R{"R"}, N{"N"}, P{"P"};
  Type dtype;
  op.match("q", q).shape(T, H, D).type(dtype).rows();
  op.match("k", k).shape(T, K, D).type(dtype).rows();
  op.match("v", v).shape(T, K, D).type(dtype).rows();
  op.match("cos_sin", cos_sin).shape(R, D).type(ScalarType::Float).contiguous();
  op.match("rows", rows).shape(T).type(ScalarType::Int).contiguous();
  op.match("slots", slots).shape(T).type(ScalarType::Long).contiguous();
  op.match("k_cache", k_cache).shape(N, K, P, D).type(dtype).contiguous();
  op.match("v_cache", v_cache).shape(N, K, P, D).type(dtype).contiguous();
  if (q_norm) op.match("q_norm", *q_norm).shape(D).type(dtype).contiguous();
  if (k_norm) op.match("k_norm", *k_norm).shape(D).type(dtype).contiguous();
  op.require(D % 2 == 0 && D <= kMaxHeadDim, "head dim D must be even and at most 256");
  op.match("rows", rows).values(0, R);
  op.match("slots", slots).values(-1, N * P);
  if (T == 0) return;
  const RopeWriteKvParams p{
      .q = q.mutable_data_ptr(),
      .k = k.const_data_ptr(),
      .v = v.const_data_ptr(),
      .cos_sin = cos_sin.const_data_ptr<float>(),
      .rows = rows.const_data_ptr<int32_t>(),
      .slots = slots.const_data_ptr<int64_t>(),
      .k_cache = k_cache.mutable_data_ptr(),
      .v_cache = v_cache.mutable_data_ptr(),
      .q_norm = data_or_null(q_norm),
      .k_norm = data_or_null(k_norm),
      .num_tokens = T,
      .num_heads = H,
      .num_kv_heads = K,
      .head_dim = D,
      .page_size = P,
      .q_stride_t = q.stride(0),
      .q_stride_h = q.stride(1),
      .k_stride_t = k.stride(0),
      .k_stride_h = k.stride(1),
      .v_stride_t = v.stride(0),
      .v_stride_h = v.stride(1),
      .eps = static_cast<float>(eps),
      .dtype = dtype,
  };
  if constexpr (kCudaBuild) {
    if (q.is_cuda()) return launch(op.name, cuda::rope_write_kv, p, q);
  }
  run_rows(cpu::kernels().rope_write_kv, p, T, (H + 2 * K) * D);
}

template <class Library>
void implement_all(Library& m) {
  implement<&rope_write_kv>(m, "rope_write_kv");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvl, CPU, m) { implement_all(m); }
#ifdef LIGHTVL_CUDA
STABLE_TORCH_LIBRARY_IMPL(lightvl, CUDA, m) { implement_all(m); }
#endif

}  // namespace lightvl
