// Host side of attention: check the arguments, cut the work into tasks, run them.
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/attention_plan.h"
#include "ops/call.h"
#include "ops/check.h"
#include "ops/stable.h"

namespace lightvl {
namespace {

constexpr int64_t kTaskRows = 64;  // of paged attention: a multiple of 64

constexpr int64_t kCostUnit = 1024;  // multiply-adds of a score or a value

// The tasks of one call and the sequences that need merging.
struct Plan {
  std::vector<cpu::AttentionTask> tasks;
  std::vector<cpu::AttentionMerge> merges;
  int64_t cost = 0;
  int64_t partial_rows = 0;

  // Adds the tasks of `sequence`, which has `q_len` new tokens and `keys` keys with them.
  void add(const PagedAttentionParams& p, int32_t sequence, int32_t q_len, int32_t keys) {
    const auto group = static_cast<int32_t>(p.num_heads / p.num_kv_heads);
    const int32_t rows = q_len * group;
    const int32_t splits = rows <= kTaskRows ? (keys + cpu::kKeySplit - 1) / cpu::kKeySplit : 1;
    if (splits > 1) merges.push_back({sequence, rows, splits, partial_rows});
    for (int32_t split = 0; split < splits; ++split) {
      const int32_t key_begin = split * cpu::kKeySplit;
      for (int32_t row = 0; row < rows; row += kTaskRows) {
        const int32_t row_end = std::min<int32_t>(row + kTaskRows, rows);
        const int32_t seen = keys - q_len + (row_end - 1) / group + 1;
        const int32_t key_end = splits > 1 ? std::min(key_begin + cpu::kKeySplit, seen) : seen;
        push(p, {.sequence = sequence,
                 .few_rows = rows <= cpu::kFewRows,
                 .row_begin = row,
                 .row_end = row_end,
                 .key_begin = key_begin,
                 .key_end = key_end,
                 .partial_row = splits > 1 ? partial_rows : -1});
      }
      if (splits > 1) partial_rows += rows * p.num_kv_heads;
    }
  }

 private:
  void push(const PagedAttentionParams& p, cpu::AttentionTask task) {
    const int64_t rows = task.row_end - task.row_begin;
    const int64_t work = task.few_rows ? 4 * rows + 8 : rows + 16;
    task.cost = (task.key_end - task.key_begin) * p.head_dim * work / kCostUnit + 8;
    task.cost_begin = cost;
    cost += task.cost * p.num_kv_heads;
    tasks.push_back(task);
  }
};

// Checks that the tables describe rows and pages that exist, and plans the call.
Plan make_plan(const Op& op, const PagedAttentionParams& p, int64_t num_tokens, int64_t num_pages,
               int64_t pages_per_seq, int64_t max_q_len) {
  Plan plan;
  op.require(p.cu_q_lens[0] == 0 && p.cu_q_lens[p.num_seqs] == num_tokens,
             "cu_q_lens must run from 0 to the number of tokens");
  for (int32_t s = 0; s < p.num_seqs; ++s) {
    const int32_t q_len = p.cu_q_lens[s + 1] - p.cu_q_lens[s], keys = p.context_lens[s];
    if (q_len == 0) continue;
    op.require(q_len > 0 && q_len <= max_q_len, "cu_q_lens must ascend by at most max_q_len");
    op.require(keys >= q_len, "context_lens must include the new tokens");
    const int64_t pages = (keys + p.page_size - 1) / p.page_size;
    op.require(pages <= pages_per_seq, "page_table has too few columns for context_lens");
    const int32_t* page = p.page_table + s * p.page_table_stride;
    for (int64_t i = 0; i < pages; ++i) {
      op.require(page[i] >= 0 && page[i] < num_pages, "page_table names a page out of range");
    }
    plan.add(p, s, q_len, keys);
  }
  return plan;
}

// What the CUDA kernels take less of than the CPU's.
void check_cuda(Op& op, DType dtype, int64_t head_dim, const Tensor& q, const Tensor& k,
                const Tensor& v, const Tensor& out) {
  op.require(head_dim == 64 || head_dim == 96 || head_dim == 128,
             "head dim must be 64, 96 or 128 on a GPU");
  op.require(dtype != DType::kFloat32, "float32 is not supported on a GPU");
  op.match("q", q).aligned();
  op.match("k", k).aligned();
  op.match("v", v).aligned();
  op.match("out", out).aligned();
}

// LIGHTVL_ATTENTION=sm80 keeps to the kernels that run on every GPU.
bool only_sm80() {
  static const bool only = [] {
    const char* wanted = std::getenv("LIGHTVL_ATTENTION");
    if (wanted == nullptr || *wanted == 0) return false;
    if (std::string_view(wanted) == "sm80") return true;
    throw std::invalid_argument("LIGHTVL_ATTENTION is \"" + std::string(wanted) +
                                "\"; it may be \"sm80\" or unset");
  }();
  return only;
}

void paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                     const Tensor& page_table, const Tensor& cu_q_lens, const Tensor& context_lens,
                     double scale, int64_t max_q_len, const Tensor& out,
                     const std::optional<Tensor>& lse) {
  Op op{"paged_attention"};
  Dim T{"T"}, H{"H"}, D{"D"}, N{"N"}, K{"K"}, P{"P"}, S{"S"}, M{"M"};
  Type dtype;
  op.match("q", q).shape(T, H, D).type(dtype).rows();
  op.match("k_cache", k_cache).shape(N, K, P, D).type(dtype).rows();
  op.match("v_cache", v_cache).shape(N, K, P, D).type(dtype).rows();
  op.match("page_table", page_table).shape(S, M).type(ScalarType::Int).rows();
  op.match("cu_q_lens", cu_q_lens).shape(S + 1).type(ScalarType::Int).contiguous();
  op.match("context_lens", context_lens).shape(S).type(ScalarType::Int).contiguous();
  op.match("out", out).shape(T, H, D).type(dtype).rows();
  if (lse) op.match("lse", *lse).shape(T, H).type(ScalarType::Float).contiguous();
  op.require(D % 8 == 0 && D <= cpu::kMaxHeadDim, "head dim must be a multiple of 8 up to 256");
  op.require(P == 16 || P == 32 || P == 64, "page size must be 16, 32 or 64");
  op.require(K > 0 && H % K == 0, "query heads must be a multiple of KV heads");
  if (T * H == 0) return;
  const PagedAttentionParams p{
      .q = q.const_data_ptr(),
      .k_cache = k_cache.const_data_ptr(),
      .v_cache = v_cache.const_data_ptr(),
      .page_table = page_table.const_data_ptr<int32_t>(),
      .cu_q_lens = cu_q_lens.const_data_ptr<int32_t>(),
      .context_lens = context_lens.const_data_ptr<int32_t>(),
      .out = out.mutable_data_ptr(),
      .lse = mutable_data_or_null<float>(lse),
      .num_seqs = S,
      .num_heads = H,
      .num_kv_heads = K,
      .head_dim = D,
      .page_size = P,
      .q_stride = {q.stride(0), q.stride(1)},
      .out_stride = {out.stride(0), out.stride(1)},
      .k_stride = {k_cache.stride(0), k_cache.stride(1), k_cache.stride(2)},
      .v_stride = {v_cache.stride(0), v_cache.stride(1), v_cache.stride(2)},
      .page_table_stride = page_table.stride(0),
      .scale = static_cast<float>(scale),
      .dtype = dtype,
  };
  if constexpr (kCudaBuild) {
    if (q.is_cuda()) {
      check_cuda(op, p.dtype, D, q, k_cache, v_cache, out);
      cuda::PagedAttentionWork work{
          .params = p,
          .num_tokens = T,
          .max_q_len = max_q_len,
          .max_pages = M,
          .only_sm80 = only_sm80(),
      };
      const OnDevice guard(q.get_device_index());
      cuda::plan_paged_attention(work);
      const Workspace room(work.workspace.bytes);
      work.workspace.data = room.data();
      work.workspace.tag = next_tag();
      return launch(op.name, cuda::paged_attention, work, q);
    }
  }
  const Plan plan = make_plan(op, p, T, N, M, max_q_len);
  const std::unique_ptr<float[]> partials(new float[plan.partial_rows * (D + 2)]);
  const cpu::PagedAttentionWork work{
      .params = p,
      .tasks = plan.tasks.data(),
      .num_tasks = static_cast<int64_t>(plan.tasks.size()),
      .merges = plan.merges.data(),
      .partials = partials.get(),
  };
  run_rows(cpu::kernels().paged_attention, work, plan.cost, 64);
  const auto num_merges = static_cast<int64_t>(plan.merges.size());
  if (num_merges > 0) {
    run_rows(cpu::kernels().merge_attention, work, num_merges * K,
             plan.partial_rows * D / num_merges);
  }
}

void vision_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_lens,
                      int64_t max_len, double scale, const Tensor& out) {
  Op op{"vision_attention"};
  Dim T{"T"}, H{"H"}, D{"D"};
  Type dtype;
  op.match("q", q).shape(T, H, D).type(dtype).rows();
  op.match("k", k).shape(T, H, D).type(dtype).rows();
  op.match("v", v).shape(T, H, D).type(dtype).rows();
  op.match("out", out).shape(T, H, D).type(dtype).rows();
  op.require(cu_lens.dim() == 1 && cu_lens.size(0) > 0, "cu_lens must be [S + 1]");
  op.match("cu_lens", cu_lens).type(ScalarType::Int).contiguous();
  op.require(D % 8 == 0 && D <= cpu::kMaxHeadDim, "head dim must be a multiple of 8 up to 256");
  if (T * H == 0) return;
  VisionAttentionParams p{
      .q = q.const_data_ptr(),
      .k = k.const_data_ptr(),
      .v = v.const_data_ptr(),
      .cu_lens = cu_lens.const_data_ptr<int32_t>(),
      .out = out.mutable_data_ptr(),
      .num_seqs = cu_lens.size(0) - 1,
      .num_heads = H,
      .head_dim = D,
      .tile_rows = 64,
      .q_stride = {q.stride(0), q.stride(1)},
      .k_stride = {k.stride(0), k.stride(1)},
      .v_stride = {v.stride(0), v.stride(1)},
      .out_stride = {out.stride(0), out.stride(1)},
      .scale = static_cast<float>(scale),
      .dtype = dtype,
  };
  if constexpr (kCudaBuild) {
    if (q.is_cuda()) {
      check_cuda(op, p.dtype, D, q, k, v, out);
      const cuda::VisionAttentionWork work{p, max_len, T, only_sm80()};
      return launch(op.name, cuda::vision_attention, work, q);
    }
  }
  op.require(p.cu_lens[0] == 0 && p.cu_lens[p.num_seqs] == T,
             "cu_lens must run from 0 to the number of tokens");
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t most_rows = cpu::max_tile_rows(D);
  while (p.tile_rows < most_rows && T * H > 4 * threads * p.tile_rows) p.tile_rows += 64;
  int64_t num_tasks = 0;
  for (int64_t s = 0; s < p.num_seqs; ++s) {
    const int64_t len = p.cu_lens[s + 1] - p.cu_lens[s];
    op.require(len >= 0 && len <= max_len, "cu_lens must ascend by at most max_len");
    num_tasks += (len + p.tile_rows - 1) / p.tile_rows * H;
  }
  run_rows(cpu::kernels().vision_attention, p, num_tasks,
           max_len * std::min(max_len, p.tile_rows) * D / 16);
}

template <class Library>
void implement_all(Library& m) {
  implement<&paged_attention>(m, "paged_attention");
  implement<&vision_attention>(m, "vision_attention");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvl, CPU, m) { implement_all(m); }
#ifdef LIGHTVL_CUDA
STABLE_TORCH_LIBRARY_IMPL(lightvl, CUDA, m) { implement_all(m); }
#endif

}  // namespace lightvl
