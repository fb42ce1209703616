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

// Few scores of the row, listed in block 0: every block has room for an equal share. Blocks know
// each other's counts.
struct FewScores {
  int own_count;                // of this block, which may exceed its share
  int count[kMaxRowBlocks];     // of all
  float score[kMaxCandidates];  // by block, until block 0 closes the gaps
  int id[kMaxCandidates];
};

// How a row is drawn from.
struct RowSettings {
  float temperature;
  int top_k;
  float top_p, min_p;
  int64_t seed, offset;
};

// Starts to bring them to shared memory. By one thread, which waits with wait_for_copies().
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
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

struct RowShared {
  Exchange exchange;
  RowSettings settings;
  FewScores top, few;  // most probable ones; those to draw from. Cleared before the first barrier
  Selection selection;
  uint32_t group_bits[kMaxGroups];
  float bound;
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
    top_k = s.top_k > 0 && s.top_k < vocab_size ? s.top_k : 0;
    min_score = s.min_p > 0.0f ? fminf(max + temperature * logf(s.min_p), max) : -FLT_MAX;
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

// scaled + gumbel(word), or -inf, told cheaply, if that is below `best`: gumbel(v) <= -log(v).
__device__ inline float with_noise(float scaled, uint32_t word, float best) {
  const float v = (static_cast<float>(word >> 1) + 0.5f) * 0x1p-31f;
  return v > __expf(scaled - best) * 1.01f ? -INFINITY : scaled + gumbel(word);
}

// Best of this thread's part of the slice, among scores from `cut` on. A warp shares what must be
// beaten.
__device__ inline Key draw_slice(const RowSlice& slice, const Filters& f, const Noise& noise,
                                 float cut) {
  float best = -INFINITY, to_beat = -INFINITY;
  int best_at = INT32_MAX;
  const int num_quads = (slice.size + 63) / 64 * 16;
  for (int begin = 0; begin < num_quads; begin += kRowThreads) {
    const int q = begin + static_cast<int>(threadIdx.x), first = q / 16 * 64 + q % 16;
    float score[4];
    bool any = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = first + 16 * i;
      score[i] = at < slice.size ? slice.score[at] : -INFINITY;
      any |= score[i] >= cut;
    }
    if (!__any_sync(kAllLanes, any)) continue;
    const uint4 words = noise.words(static_cast<uint32_t>(slice.begin / 4 + q));
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!(score[i] >= cut)) continue;
      const int at = first + 16 * i;
      const float noisy = with_noise(f.scaled(score[i]), word[i], to_beat);
      if (noisy > best || (noisy == best && noisy > -INFINITY && at < best_at)) {
        best = noisy;
        best_at = at;
        to_beat = fmaxf(to_beat, best);
      }
    }
    __syncwarp();
    to_beat = from_ordered_bits(__reduce_max_sync(kAllLanes, ordered_bits(to_beat)));
  }
  return best == -INFINITY ? kNoKey : make_key(best, slice.begin + best_at);
}

// Lists scores which pass(x) lets in; true if there was room for them.
template <class Pass>
__device__ bool list_few(FewScores& few, const RowSlice& slice, Pass&& pass) {
  const int size = static_cast<int>(cluster_size()), rank = static_cast<int>(cluster_rank());
  const int share = kMaxCandidates / size, t = threadIdx.x;
  FewScores* list = in_block(&few, 0);
  for_slice(slice, [&](int i, float x) {
    if (!pass(x)) return;
    const int at = atomicAdd(&few.own_count, 1);
    if (at >= share) return;
    list->score[rank * share + at] = x;
    list->id[rank * share + at] = slice.begin + i;
  });
  __syncthreads();
  if (t < size) in_block(&few, t)->count[rank] = few.own_count;
  cluster_sync();
  bool fits = true;
  for (int r = 0; r < size; ++r) fits = fits && few.count[r] <= share;
  return fits;
}

// Closes the gaps between the blocks' shares; returns the number of scores. Block 0 alone.
__device__ inline int close_gaps(FewScores& few) {
  const int share = kMaxCandidates / static_cast<int>(cluster_size());
  const int block = static_cast<int>(threadIdx.x) / share, at = threadIdx.x % share;
  int before = 0, total = 0;
  for (int r = 0; r < static_cast<int>(cluster_size()); ++r) {
    before += r < block ? few.count[r] : 0;
    total += few.count[r];
  }
  const bool mine = block < static_cast<int>(cluster_size()) && at < few.count[block];
  const float score = mine ? few.score[threadIdx.x] : 0.0f;
  const int id = mine ? few.id[threadIdx.x] : 0;
  __syncthreads();
  if (mine) {
    few.score[before + at] = score;
    few.id[before + at] = id;
  }
  __syncthreads();
  return total;
}

// Lanes that share the comparisons of one of `count` values, at most kRowThreads in all.
__device__ inline int lanes_for(int count) {
  int lanes = 1;
  while (lanes < 32 && count * lanes * 2 <= kRowThreads) lanes *= 2;
  return lanes;
}

// Adds up over `lanes` neighbours.
template <class Value>
__device__ Value sum_of_lanes(Value value, int lanes) {
  for (int step = 1; step < lanes; step *= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Block 0 alone: filters the list exactly and draws. `target` is the mass that top-p keeps, where
// it comes without top-k.
__device__ inline int draw_from_list(FewScores& list, const Filters& f, const Noise& noise,
                                     Mass target) {
  __shared__ uint32_t weights[kMaxCandidates];
  const int count = close_gaps(list), lanes = lanes_for(count), t = threadIdx.x;
  const bool by_mass = f.top_p < 1.0f;
  if (t < count) weights[t] = by_mass ? f.weight(list.score[t]) : 0;
  __syncthreads();
  const int own = t / lanes;
  const float x = own < count ? list.score[own] : INFINITY;
  int above = 0;
  Mass mass_above = 0;
#pragma unroll 4
  for (int i = t % lanes; i < count; i += lanes) {
    const bool larger = list.score[i] > x;
    above += larger;
    mass_above += larger ? weights[i] : 0;
  }
  above = sum_of_lanes(above, lanes);
  bool kept = own < count && t % lanes == 0 && (f.top_k == 0 || above < f.top_k);
  if (by_mass) {
    mass_above = sum_of_lanes(mass_above, lanes);
    if (f.top_k > 0) {
      const Mass total = block_reduce(kept ? Mass{weights[own]} : Mass{0}, Sum{}, Mass{0});
      target = top_p_target(f.top_p, total);
    }
    kept = kept && mass_above < target;
  }
  Key key = kNoKey;
  if (kept && x >= f.min_score) {
    key = make_key(f.scaled(x) + gumbel(noise.word_of(list.id[own])), list.id[own]);
  }
  return id_of(block_reduce(key, Max{}, kNoKey));
}

// The best scores of the warps, or of pairs of warps, tell where the k-th largest score of the row
// lies at least: not below the k-th of them. -inf if there are fewer.
__device__ inline float bound_by_groups(RowShared& shared, const Key* groups, int k) {
  const int merged = k * 5 / 4 <= num_groups() / 2 ? 2 : 1;
  const int count = num_groups() / merged, t = threadIdx.x;
  if (k > count) return -INFINITY;
  if (t < count) {
    const Key best = merged == 1 ? groups[t] : max(groups[2 * t], groups[2 * t + 1]);
    shared.group_bits[t] = static_cast<uint32_t>(best >> 32);
  }
  __syncthreads();
  const int lanes = lanes_for(count), own = t / lanes;
  const uint32_t bits = own < count ? shared.group_bits[own] : 0;
  int better = 0;  // and, above bit 16, as good or better
  for (int i = t % lanes; i < count; i += lanes) {
    const uint32_t other = shared.group_bits[i];
    better += (other > bits ? 1 : 0) + (other >= bits ? 1 << 16 : 0);
  }
  better = sum_of_lanes(better, lanes);
  if (own < count && (better & 0xffff) < k && better >> 16 >= k) {
    shared.bound = from_ordered_bits(bits);
  }
  __syncthreads();
  return shared.bound;
}

// The k-th largest score from histograms, or the lowest float if there are fewer.
__device__ inline float cut_by_count(RowShared& shared, int& turn, const RowSlice& slice, float max,
                                     int k) {
  float least = max;
  uint32_t possible = 0;
  for_slice(slice, [&](int, float x) {
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
__device__ inline int draw_row(int64_t vocab_size, RowShared& shared, int& turn,
                               const RowSlice& slice, const Key* groups, float max) {
  const Filters f(shared.settings, vocab_size, max);
  const Noise noise(shared.settings);
  float bound = -FLT_MAX;
  if (f.top_k > 0) {
    bound = bound_by_groups(shared, groups, f.top_k);
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
