// Host side of sampling.
#include "ops/call.h"
#include "ops/check.h"
#include "ops/stable.h"

namespace lightvl {
namespace {

using Optional = std::optional<Tensor>;

void sample(const Tensor& logits, const Tensor& temperature, const Tensor& top_k,
            const Tensor& top_p, const Tensor& min_p, const Tensor& seeds, const Tensor& offsets,
            const Optional& penalties, const Optional& counts, const Optional& count_rows,
            const Optional& bias_offsets, const Optional& bias_ids, const Optional& bias_values,
            const Optional& allowed_mask, const Tensor& out_ids, const Optional& logprobs,
            const Optional& top_ids, const Optional& top_logprobs) {
  Op op{"sample"};
  Dim S{"S"}, V{"V"}, R{"R"}, M{"M"}, n{"n"};
  Type dtype;
  op.match("logits", logits).shape(S, V).type(dtype).rows();
  const auto per_row = [&](const char* name, const Tensor& tensor, ScalarType type) {
    op.match(name, tensor).shape(S).type(type).contiguous();
  };
  per_row("temperature", temperature, ScalarType::Float);
  per_row("top_k", top_k, ScalarType::Int);
  per_row("top_p", top_p, ScalarType::Float);
  per_row("min_p", min_p, ScalarType::Float);
  per_row("seeds", seeds, ScalarType::Long);
  per_row("offsets", offsets, ScalarType::Long);
  per_row("out_ids", out_ids, ScalarType::Long);
  op.require(counts.has_value() == count_rows.has_value(), "counts and count_rows go together");
  op.require(counts || !penalties, "penalties need counts");
  if (penalties) {
    op.match("penalties", *penalties).shape(S, 3).type(ScalarType::Float).contiguous();
  }
  if (counts) {
    op.match("counts", *counts).shape(R, V).type(ScalarType::Short).rows();
    per_row("count_rows", *count_rows, ScalarType::Int);
    op.match("count_rows", *count_rows).values(-1, R);
  }
  op.require(bias_offsets.has_value() == bias_ids.has_value() &&
                 bias_offsets.has_value() == bias_values.has_value(),
             "bias_offsets, bias_ids and bias_values go together");
  if (bias_offsets) {
    op.match("bias_offsets", *bias_offsets).shape(S + 1).type(ScalarType::Int).contiguous();
    op.match("bias_offsets", *bias_offsets).values(0, bias_ids->numel() + 1);
    op.match("bias_ids", *bias_ids).shape(M).type(ScalarType::Int).contiguous();
    op.match("bias_ids", *bias_ids).values(0, V);
    op.match("bias_values", *bias_values).shape(M).type(ScalarType::Float).contiguous();
  }
  if (allowed_mask) {
    op.match("allowed_mask", *allowed_mask).shape(S, (V + 31) / 32).type(ScalarType::Int);
    op.match("allowed_mask", *allowed_mask).contiguous();
  }
  if (logprobs) per_row("logprobs", *logprobs, ScalarType::Float);
  op.require(top_ids.has_value() == top_logprobs.has_value(),
             "top_ids and top_logprobs go together");
  if (top_ids) {
    op.match("top_ids", *top_ids).shape(S, n).type(ScalarType::Int).contiguous();
    op.match("top_logprobs", *top_logprobs).shape(S, n).type(ScalarType::Float).contiguous();
    op.require(n <= V, "top_ids asks for more ids than the vocabulary has");
  }
  op.require(S == 0 || V > 0, "logits have an empty vocabulary");
  if (S == 0) return;
  const SampleParams p{
      .logits = logits.const_data_ptr(),
      .temperature = temperature.const_data_ptr<float>(),
      .top_k = top_k.const_data_ptr<int32_t>(),
      .top_p = top_p.const_data_ptr<float>(),
      .min_p = min_p.const_data_ptr<float>(),
      .seeds = seeds.const_data_ptr<int64_t>(),
      .offsets = offsets.const_data_ptr<int64_t>(),
      .penalties = data_or_null<float>(penalties),
      .counts = mutable_data_or_null<int16_t>(counts),
      .count_rows = data_or_null<int32_t>(count_rows),
      .bias_offsets = data_or_null<int32_t>(bias_offsets),
      .bias_ids = data_or_null<int32_t>(bias_ids),
      .bias_values = data_or_null<float>(bias_values),
      .allowed_mask = data_or_null<int32_t>(allowed_mask),
      .out_ids = out_ids.mutable_data_ptr<int64_t>(),
      .logprobs = mutable_data_or_null<float>(logprobs),
      .top_ids = mutable_data_or_null<int32_t>(top_ids),
      .top_logprobs = mutable_data_or_null<float>(top_logprobs),
      .num_sequences = S,
      .vocab_size = V,
      .num_top = top_ids ? int64_t{n} : 0,
      .logits_stride = logits.stride(0),
      .counts_stride = counts ? counts->stride(0) : 0,
      .dtype = dtype,
  };
  if constexpr (kCudaBuild) {
    if (logits.is_cuda()) {
      cuda::SampleWork work{p, nullptr};
      std::optional<Workspace> scores;
      if (!cuda::cluster_holds_row(V, logits.get_device_index())) {
        const OnDevice guard(logits.get_device_index());
        scores.emplace(S * V * sizeof(float));
        work.scores = static_cast<float*>(scores->data());
      }
      return launch(op.name, cuda::sample, work, logits);
    }
  }
  run_rows(cpu::kernels().sample, p, S, V);
}

template <class Library>
void implement_all(Library& m) {
  implement<&sample>(m, "sample");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvl, CPU, m) { implement_all(m); }
#ifdef LIGHTVL_CUDA
STABLE_TORCH_LIBRARY_IMPL(lightvl, CUDA, m) { implement_all(m); }
#endif

}  // namespace lightvl
