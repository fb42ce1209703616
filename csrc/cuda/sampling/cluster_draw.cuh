// Filters and the Gumbel-max draw of a row that a cluster holds.
//
// Where few scores can survive the filters, they are listed in block 0, which compares them in
// pairs and draws; else thresholds come from histograms (cluster_select.cuh) and all blocks draw.
#pragma once

#include "cuda/launchers.h"
#include "cuda/sampling/cluster_select.cuh"
#include "cuda/sampling/philox.cuh"

namespace lightvl::cuda {

constexpr Key kNoKey = 0;

struct RowShared {
  Exchange exchange;
  Candidates few;
  Selection selection;
};

// The filters of a row whose best score is `max`.
struct Filters {
  float max, temperature, inverse_temperature;
  int top_k;        // 0: off
  float top_p;      // 1: off
  float min_score;  // of min-p; lowest float: off

  __device__ Filters(const SampleParams& p, int64_t row, float best)
      : max(best), temperature(p.temperature[row]), top_p(p.top_p[row]) {
    inverse_temperature = 1.0f / temperature;
    const int k = p.top_k[row];
    top_k = k > 0 && k < p.vocab_size ? k : 0;
    const float min_p = p.min_p[row];
    min_score = min_p > 0.0f ? fminf(max + temperature * logf(min_p), max) : -FLT_MAX;
  }

  __device__ uint32_t weight(float x) const { return weight_of(x, max, inverse_temperature); }
  __device__ float scaled(float x) const { return (x - max) * inverse_temperature; }
};

struct Noise {
  uint64_t seed, offset;

  __device__ Noise(const SampleParams& p, int64_t row)
      : seed(static_cast<uint64_t>(p.seeds[row])), offset(static_cast<uint64_t>(p.offsets[row])) {}

  // Words of tokens 64 n / 16 + n % 16 + {0, 16, 32, 48}.
  __device__ uint4 words(uint32_t n) const { return philox(seed, offset, n); }

  __device__ uint32_t word_of(int id) const {
    const uint4 four = words(static_cast<uint32_t>(id / 64 * 16 + id % 16));
    const int i = id / 16 % 4;
    return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
  }
};

// scaled + gumbel(word), or -inf, told cheaply, if that is below `best`: gumbel(v) <= -log(v).
__device__ inline float with_noise(float scaled, uint32_t word, float best) {
  const float v = (static_cast<float>(word >> 1) + 0.5f) * 0x1p-31f;
  return v > __expf(scaled - best) * 1.01f ? -INFINITY : scaled + gumbel(word);
}

// Best of this thread's part of the slice, among scores from `cut` on.
__device__ inline Key draw_slice(const RowSlice& slice, const Filters& f, const Noise& noise,
                                 float cut) {
  float best = -INFINITY;
  int best_at = INT32_MAX;
  const int num_quads = (slice.size + 63) / 64 * 16;
  for (int q = threadIdx.x; q < num_quads; q += kRowThreads) {
    float score[4];
    bool any = false;
    const int first = q / 16 * 64 + q % 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = first + 16 * i;
      score[i] = at < slice.size ? slice.score[at] : -INFINITY;
      any |= score[i] >= cut;
    }
    if (!any) continue;
    const uint4 words = noise.words(static_cast<uint32_t>(slice.begin / 4 + q));
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!(score[i] >= cut)) continue;
      const int at = first + 16 * i;
      const float noisy = with_noise(f.scaled(score[i]), word[i], best);
      if (noisy > best || (noisy == best && noisy > -INFINITY && at < best_at)) {
        best = noisy;
        best_at = at;
      }
    }
  }
  return best == -INFINITY ? kNoKey : make_key(best, slice.begin + best_at);
}

// Lists scores in block 0, which pass(x) lets in; true if there was room for them.
template <class Pass>
__device__ bool list_few(Candidates& few, const RowSlice& slice, Pass&& pass) {
  Candidates* list = in_block(&few, 0);
  for_slice(slice, [&](int i) {
    const float x = slice.score[i];
    if (!pass(x)) return;
    const int at = atomicAdd(&list->count, 1);
    if (at >= kMaxCandidates) return;
    list->score[at] = x;
    list->id[at] = slice.begin + i;
  });
  cluster_sync();
  return list->count <= kMaxCandidates;
}

// Block 0 alone: filters the list exactly and draws. `target` is the mass that top-p keeps, where
// it comes without top-k.
__device__ inline int draw_from_list(const Candidates& list, const Filters& f, const Noise& noise,
                                     Mass target) {
  __shared__ uint32_t weights[kMaxCandidates];
  const int t = threadIdx.x;
  const bool mine = t < list.count;
  const float x = mine ? list.score[t] : -INFINITY;
  weights[t] = f.top_p < 1.0f && mine ? f.weight(x) : 0;
  __syncthreads();
  int above = 0;
  Mass mass_above = 0;
  if (mine) {
#pragma unroll 4
    for (int i = 0; i < list.count; ++i) {
      const bool larger = list.score[i] > x;
      above += larger;
      mass_above += larger ? weights[i] : 0;
    }
  }
  bool kept = mine && (f.top_k == 0 || above < f.top_k);
  if (f.top_p < 1.0f) {
    if (f.top_k > 0) {
      const Mass total = block_reduce(kept ? Mass{weights[t]} : Mass{0}, Sum{}, Mass{0});
      target = top_p_target(f.top_p, total);
    }
    kept = kept && mass_above < target;
  }
  Key key = kNoKey;
  if (kept && x >= f.min_score) {
    key = make_key(f.scaled(x) + gumbel(noise.word_of(list.id[t])), list.id[t]);
  }
  return id_of(block_reduce(key, Max{}, kNoKey));
}

// The warps' best scores in their order tell where the k-th largest score lies at least: not below
// the k-th of them. -inf if there are fewer.
__device__ inline float bound_by_groups(const Key* groups, int k) {
  const int count = num_groups(), t = threadIdx.x;
  float own = -INFINITY;
  if (t < count) {
    const Key key = groups[t];
    int better = 0;
#pragma unroll 8
    for (int i = 0; i < count; ++i) better += groups[i] > key;
    if (better == k - 1) own = score_of(key);
  }
  return block_reduce(own, Max{}, -INFINITY);
}

// The k-th largest score from histograms, or the lowest float if there are fewer.
__device__ inline float cut_by_count(RowShared& shared, int& turn, const RowSlice& slice, float max,
                                     int k) {
  float least = max;
  uint32_t possible = 0;
  for_slice(slice, [&](int i) {
    const float x = slice.score[i];
    if (x >= -FLT_MAX) {
      least = fminf(least, x);
      ++possible;
    }
  });
  // How many there are, and the least of them, in one exchange: 32 bits each.
  const auto combine = [](Key a, Key b) {
    const Key low = min(static_cast<uint32_t>(a), static_cast<uint32_t>(b));
    return (((a >> 32) + (b >> 32)) << 32) | low;
  };
  const Key both =
      cluster_reduce(shared.exchange, turn, (Key{possible} << 32) | ordered_bits(least), combine,
                     Key{0xffffffffu});
  if ((both >> 32) <= static_cast<Key>(k)) return -FLT_MAX;
  const Range range(from_ordered_bits(static_cast<uint32_t>(both)), max);
  return select(shared.selection, shared.exchange, turn, slice, range, static_cast<Mass>(k),
                [](float) { return 1u; });
}

// Where draw_row leaves the filters: block 0 has drawn, or all draw from `cut` on.
struct Outcome {
  bool drawn;
  int id;
  float cut;
};

// Top-p among the scores from `floor` on. Without top-k, `floor` being the lowest float, few scores
// are listed and drawn from at once.
__device__ inline Outcome filter_by_mass(RowShared& shared, int& turn, const RowSlice& slice,
                                         const Filters& f, const Noise& noise, float floor) {
  const Range range(fmaxf(floor, f.max - kWeightless * f.temperature), f.max);
  const auto weigh = [&](float x) { return f.weight(x); };
  const Crossing coarse = cross_range(shared.selection, slice, range, weigh,
                                      [&](Mass total) { return top_p_target(f.top_p, total); });
  if (f.top_k == 0 && coarse.count + coarse.count_above <= kMaxCandidates) {
    list_few(shared.few, slice, [&](float x) {
      const int bin = range.coarse(x);
      return bin >= 0 && bin <= coarse.bin;
    });
    if (cluster_rank() != 0) return {true, 0, 0.0f};
    return {true, draw_from_list(shared.few, f, noise, coarse.target), 0.0f};
  }
  const float cut =
      finish_select(shared.selection, shared.exchange, turn, slice, range, coarse, weigh);
  return {false, 0, fmaxf(floor, cut)};
}

// Draws from the row; only block 0 gets the id.
__device__ inline int draw_row(const SampleParams& p, int64_t row, RowShared& shared, int& turn,
                               const RowSlice& slice, const Key* groups, float max) {
  const Filters f(p, row, max);
  const Noise noise(p, row);
  float bound = -FLT_MAX;
  if (f.top_k > 0) {
    bound = f.top_k <= num_groups() ? bound_by_groups(groups, f.top_k) : -INFINITY;
  }
  // Top-p weighs all that top-k keeps, so min-p may shorten the list only without it.
  if (f.top_p >= 1.0f) bound = fmaxf(bound, f.min_score);
  if (bound > -FLT_MAX && list_few(shared.few, slice, [&](float x) { return x >= bound; })) {
    return cluster_rank() == 0 ? draw_from_list(shared.few, f, noise, 0) : 0;
  }
  float cut = -FLT_MAX;
  if (f.top_k > 0) cut = cut_by_count(shared, turn, slice, max, f.top_k);
  if (f.top_p < 1.0f) {
    const Outcome outcome = filter_by_mass(shared, turn, slice, f, noise, cut);
    if (outcome.drawn) return outcome.id;
    cut = outcome.cut;
  }
  const Key own = draw_slice(slice, f, noise, fmaxf(cut, f.min_score));
  return id_of(cluster_reduce(shared.exchange, turn, own, Max{}, kNoKey));
}

}  // namespace lightvl::cuda
