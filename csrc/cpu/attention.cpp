// Attention of new tokens over paged keys and values; attention_plan.h says how it is cut into
// tasks, attention_rows.h has the arithmetic.
#include "cpu/attention_rows.h"
#include "cpu/kernels.h"

namespace lightvl::cpu::LIGHTVL_ISA {
namespace {

// One task for one KV head, element type T.
template <class T>
struct PagedTask {
  const PagedAttentionParams& p;
  const AttentionTask& task;
  int64_t kv_head;
  float* partial;  // [rows, D + 2], or null: the task's result is final

  int num_rows() const { return task.row_end - task.row_begin; }
  int head_dim() const { return static_cast<int>(p.head_dim); }
  int64_t group() const { return p.num_heads / p.num_kv_heads; }
  int64_t token(int row) const {
    return p.cu_q_lens[task.sequence] + (task.row_begin + row) / group();
  }
  int64_t head(int row) const { return kv_head * group() + (task.row_begin + row) % group(); }

  // The keys that the row sees: all up to its own.
  int32_t limit(int row) const {
    const int64_t tokens_behind = p.cu_q_lens[task.sequence + 1] - 1 - token(row);
    return static_cast<int32_t>(p.context_lens[task.sequence] - tokens_behind);
  }

  const T* cached(const void* cache, const int64_t (&stride)[3], int64_t key) const {
    const int64_t page = p.page_table[task.sequence * p.page_table_stride + key / p.page_size];
    return static_cast<const T*>(cache) + page * stride[0] + kv_head * stride[1] +
           key % p.page_size * stride[2];
  }

  // Keys [key, key + n): in place where they are fp32 of one page, else copied.
  KeyValueBlock block(BlockCopy& copy, int key, int n) const {
    const int page_size = static_cast<int>(p.page_size);
    if constexpr (std::is_same_v<T, float>) {
      if (key % page_size + n <= page_size && head_dim() % kLanes == 0) {
        return {cached(p.k_cache, p.k_stride, key), p.k_stride[2],
                cached(p.v_cache, p.v_stride, key), p.v_stride[2]};
      }
    }
    for (int i = 0; i < n;) {
      const int left_in_page = page_size - (key + i) % page_size;
      const int rows = left_in_page < n - i ? left_in_page : n - i;
      copy.load(i, rows, head_dim(), cached(p.k_cache, p.k_stride, key + i), p.k_stride[2],
                cached(p.v_cache, p.v_stride, key + i), p.v_stride[2]);
      i += rows;
    }
    return copy.block(head_dim());
  }

  template <class Attention>
  void read_queries(Attention& attention) const {
    attention.begin(num_rows(), head_dim());
    for (int row = 0; row < num_rows(); ++row) {
      const T* q =
          static_cast<const T*>(p.q) + token(row) * p.q_stride[0] + head(row) * p.q_stride[1];
      attention.set_query(row, q, p.scale * kLog2E);
      attention.limits[row] = limit(row);
    }
  }

  template <class Attention>
  void write_outputs(const Attention& attention) const {
    for (int row = 0; row < num_rows(); ++row) {
      const float maximum = attention.maximum[row], sum = attention.sum[row];
      const float scale = sum > 0.0f ? 1.0f / sum : 0.0f;
      if (partial != nullptr) {
        float* dst = partial + row * (head_dim() + 2);
        store_row(attention.output(row), head_dim(), scale, dst);
        dst[head_dim()] = maximum;
        dst[head_dim() + 1] = sum;
      } else {
        T* dst =
            static_cast<T*>(p.out) + token(row) * p.out_stride[0] + head(row) * p.out_stride[1];
        store_row(attention.output(row), head_dim(), scale, dst);
        if (p.lse != nullptr) p.lse[token(row) * p.num_heads + head(row)] = lse(maximum, sum);
      }
    }
  }

  template <class Attention>
  void run() const {
    Attention attention;
    BlockCopy copy;
    const int page_size = static_cast<int>(p.page_size);
    read_queries(attention);
    attention.run(task.key_begin, task.key_end, page_size,
                  [&](int key, int n) { return block(copy, key, n); });
    write_outputs(attention);
  }
};

void run_task(const PagedAttentionWork& work, const AttentionTask& task, int64_t kv_head) {
  float* partial = nullptr;
  if (task.partial_row >= 0) {
    const int64_t row = task.partial_row + kv_head * (task.row_end - task.row_begin);
    partial = work.partials + row * (work.params.head_dim + 2);
  }
  dispatch_dtype(work.params.dtype, [&]<class T>(std::type_identity<T>) {
    const PagedTask<T> run{work.params, task, kv_head, partial};
    task.few_rows ? run.template run<FewAttention>() : run.template run<TileAttention>();
  });
}

// The first task that ends behind position `cost`.
const AttentionTask* find_task(const PagedAttentionWork& work, int64_t cost) {
  const AttentionTask* first = work.tasks;
  for (int64_t count = work.num_tasks; count > 0;) {
    const int64_t half = count / 2;
    const AttentionTask& middle = first[half];
    if (middle.cost_begin + middle.cost * work.params.num_kv_heads > cost) {
      count = half;
    } else {
      first += half + 1;
      count -= half + 1;
    }
  }
  return first;
}

// Adds up one row's partial results, `step` floats apart.
template <class T>
void merge_row(const float* partial, int64_t step, int num_splits, int head_dim, T* out,
               float* lse_out) {
  float maximum = kNoKeyYet;
  for (int i = 0; i < num_splits; ++i) {
    const float m = partial[i * step + head_dim];
    maximum = m > maximum ? m : maximum;
  }
  float sums[kMaxHeadDim] = {};
  float total = 0.0f;
  for (int i = 0; i < num_splits; ++i) {
    const float* row = partial + i * step;
    const float weight =
        row[head_dim + 1] * exp2_nonpositive(broadcast(row[head_dim] - maximum))[0];
    for (int d = 0; d < head_dim; ++d) sums[d] += weight * row[d];
    total += weight;
  }
  store_row(sums, head_dim, 1.0f / total, out);
  if (lse_out != nullptr) *lse_out = lse(maximum, total);
}

}  // namespace

void paged_attention(const PagedAttentionWork& work, int64_t begin, int64_t end) {
  const AttentionTask* last = work.tasks + work.num_tasks;
  for (const AttentionTask* task = find_task(work, begin); task < last; ++task) {
    for (int64_t head = 0; head < work.params.num_kv_heads; ++head) {
      const int64_t cost = task->cost_begin + head * task->cost;
      if (cost >= end) return;
      if (cost >= begin) run_task(work, *task, head);
    }
  }
}

void merge_attention(const PagedAttentionWork& work, int64_t begin, int64_t end) {
  const PagedAttentionParams& p = work.params;
  const int64_t group = p.num_heads / p.num_kv_heads;
  for (int64_t i = begin; i < end; ++i) {
    const AttentionMerge& merge = work.merges[i / p.num_kv_heads];
    const int64_t kv_head = i % p.num_kv_heads, width = p.head_dim + 2;
    for (int row = 0; row < merge.num_rows; ++row) {
      const int64_t token = p.cu_q_lens[merge.sequence] + row / group;
      const int64_t head = kv_head * group + row % group;
      const float* partial =
          work.partials + (merge.partial_row + kv_head * merge.num_rows + row) * width;
      dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
        merge_row(partial, p.num_kv_heads * merge.num_rows * width, merge.num_splits,
                  static_cast<int>(p.head_dim),
                  static_cast<T*>(p.out) + token * p.out_stride[0] + head * p.out_stride[1],
                  p.lse == nullptr ? nullptr : p.lse + token * p.num_heads + head);
      });
    }
  }
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
