// Filters and the Gumbel-max draw of a row that a cluster holds: from a list of few scores
// (cluster_few.cuh); else thresholds come from histograms (cluster_select.cuh) and all blocks draw.
#pragma once

#include "cuda/sampling/cluster_few.cuh"

namespace lightvl::cuda {

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
    const ListCounts counts = list_few(shared, shared.few, turn, slice, true, [&](float x) {
      const int bin = range.coarse(x);
      return bin >= 0 && bin <= coarse.bin;
    });
    if (counts != nullptr) {
      if (cluster_rank() != 0) return {true, 0, 0.0f};
      return {true, draw_from_list(shared.selection, counts, f, noise, coarse.target), 0.0f};
    }
  }
  const float cut =
      finish_select(shared.selection, shared.exchange, turn, slice, range, coarse, weigh);
  return {false, 0, fmaxf(floor, cut)};
}

// Draws from the row; only block 0 gets the id. `best` is the thread's.
__device__ inline int draw_row(int64_t vocab_size, RowShared& shared, int& turn,
                               const RowSlice& slice, const Key* groups, float max, Key best) {
  const RowSettings& settings = shared.settings;
  const int top_k = Filters::top_k_of(settings, vocab_size);
  float bound = -FLT_MAX;
  if (top_k > 0) {
    bound = bound_by_groups(shared, turn, groups, best, top_k);
  }
  // Top-p weighs all that top-k keeps, so min-p may shorten the list only without it.
  if (settings.top_p >= 1.0f) bound = fmaxf(bound, Filters::min_score_of(settings, max));
  if (bound > -FLT_MAX) {
    const ListCounts counts = list_few(shared, shared.few, turn, slice, score_of(best) >= bound,
                                       [&](float x) { return x >= bound; });
    if (counts != nullptr) {
      if (cluster_rank() != 0) return 0;
      return draw_from_list(shared.selection, counts, Filters(settings, vocab_size, max),
                            Noise(settings), 0);
    }
  }
  const Filters f(settings, vocab_size, max);
  const Noise noise(settings);
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
