// What the blocks of a row share, how the row is drawn from, and the noise of its tokens.
#pragma once

#include "cuda/launchers.h"
#include "cuda/sampling/cluster_select.cuh"
#include "cuda/sampling/philox.cuh"

namespace lightvl::cuda {

// How a row is drawn from.
struct RowSettings {
  float temperature;
  int top_k;
  float top_p, min_p;
  int64_t seed, offset;
};

// Starts to bring them to shared memory. By one thread, which waits with wait_for_settings().
__device__ inline void copy_settings(RowSettings& to, const SampleParams& p, int64_t row) {
  const auto copy = [](auto& to, const auto* from) {
    static_assert(sizeof(to) == sizeof(*from));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(smem_address(&to)), "l"(from),
                 "n"(sizeof(to))
                 : "memory");
  };
  copy(to.temperature, p.temperature + row);
  copy(to.top_k, p.top_k + row);
  copy(to.top_p, p.top_p + row);
  copy(to.min_p, p.min_p + row);
  copy(to.seed, p.seeds + row);
  copy(to.offset, p.offsets + row);
}
__device__ inline void wait_for_settings() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// A list of few scores in block 0, as the others and this block see it.
struct FewList {
  Barrier come;  // counts what comes, in block 0
  int own;       // scores that this block has listed; may exceed its share
};

struct RowShared {
  Exchange exchange;
  RowSettings settings;
  Barrier come[kRowWarps];  // of each warp's part
  FewList top, few;         // of the most probable scores; of those to draw from
  Selection selection;
  uint32_t bound_bits;

  // By one thread, before a barrier of the cluster.
  __device__ void init() {
    exchange.init();
    for (FewList* list : {&top, &few}) {
      init_barrier(list->come, 1);
      list->own = 0;
    }
  }
};

// The filters of a row whose best score is `max`.
struct Filters {
  float max, temperature, inverse_temperature;
  int top_k;        // 0: off
  float top_p;      // 1: off
  float min_score;  // of min-p; lowest float: off

  __device__ Filters(const RowSettings& s, int64_t vocab_size, float best)
      : max(best), temperature(s.temperature), top_p(s.top_p) {
    inverse_temperature = 1.0f / temperature;
    top_k = top_k_of(s, vocab_size);
    min_score = min_score_of(s, best);
  }

  __device__ static int top_k_of(const RowSettings& s, int64_t vocab_size) {
    return s.top_k > 0 && s.top_k < vocab_size ? s.top_k : 0;
  }
  __device__ static float min_score_of(const RowSettings& s, float best) {
    return s.min_p > 0.0f ? fminf(best + s.temperature * logf(s.min_p), best) : -FLT_MAX;
  }

  __device__ uint32_t weight(float x) const { return weight_of(x, max, inverse_temperature); }
  __device__ float scaled(float x) const { return (x - max) * inverse_temperature; }
};

struct Noise {
  uint64_t seed, offset;

  __device__ explicit Noise(const RowSettings& s)
      : seed(static_cast<uint64_t>(s.seed)), offset(static_cast<uint64_t>(s.offset)) {}

  // Words of tokens 64 n / 16 + n % 16 + {0, 16, 32, 48}.
  __device__ uint4 words(uint32_t n) const { return philox(seed, offset, n); }

  __device__ uint32_t word_of(int id) const {
    const uint4 four = words(static_cast<uint32_t>(id / 64 * 16 + id % 16));
    const int i = id / 16 % 4;
    return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
  }
};

}  // namespace lightvl::cuda
