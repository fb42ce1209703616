// One row of the vocabulary's scores in float32, with the maximum of each block of 64, and exact
// selection in it: by counting or weighing what lies above a cut, never by sorting the row.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>

namespace lightvl::cpu::LIGHTVL_ISA {

constexpr int kBlock = 64;

// Scores are finite or -inf (never chosen); the last block is padded with -inf.
struct Scores {
  explicit Scores(int64_t vocab_size)
      : num_blocks((vocab_size + kBlock - 1) / kBlock),
        storage(new float[num_blocks * (4 * kBlock + 1)]),
        value(storage.get()),
        weight(value + num_blocks * kBlock),
        spare_value(weight + num_blocks * kBlock),
        spare_weight(spare_value + num_blocks * kBlock),
        block_max(spare_weight + num_blocks * kBlock) {}

  int64_t num_blocks;
  std::unique_ptr<float[]> storage;
  float* value;        // [num_blocks * kBlock]
  float* weight;       // [num_blocks * kBlock], of blocks that a selection looks at
  float* spare_value;  // the same sizes, room for a selection
  float* spare_weight;
  float* block_max;  // [num_blocks]
};

inline float max_of_block(const float* value) {
  float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < kBlock; ++i) largest = value[i] > largest ? value[i] : largest;
  return largest;
}

// Fills block_max and returns the largest score.
inline float update_max(Scores& s) {
  float best = -INFINITY;
  for (int64_t b = 0; b < s.num_blocks; ++b) {
    s.block_max[b] = max_of_block(s.value + b * kBlock);
    best = s.block_max[b] > best ? s.block_max[b] : best;
  }
  return best;
}

// Lowest index of the score `best`, which block_max knows.
inline int64_t first_index_of(const Scores& s, float best) {
  for (int64_t b = 0; b < s.num_blocks; ++b) {
    if (s.block_max[b] != best) continue;
    for (int64_t i = b * kBlock;; ++i) {
      if (s.value[i] == best) return i;
    }
  }
  return 0;
}

// What scores at or above a cut count and weigh.
struct Tail {
  int64_t count = 0;
  double mass = 0.0;
};

inline Tail tail_from(const Scores& s, float cut) {
  Tail tail;
  for (int64_t b = 0; b < s.num_blocks; ++b) {
    if (s.block_max[b] < cut) continue;
    const float* value = s.value + b * kBlock;
    const float* weight = s.weight + b * kBlock;
    float mass = 0.0f, count = 0.0f;
#pragma omp simd reduction(+ : mass, count)
    for (int i = 0; i < kBlock; ++i) {
      const float kept = value[i] >= cut ? 1.0f : 0.0f;
      mass += kept * weight[i];
      count += kept;
    }
    tail.mass += mass;
    tail.count += static_cast<int64_t>(count);
  }
  return tail;
}

// The largest of `values` such that it and all larger ones weigh at least `target`; the smallest
// one if they never do. Reorders both arrays.
inline float select_by_mass(float* values, float* weights, int64_t size, double target) {
  for (;;) {
    const float pivot = values[size / 2];
    int64_t greater = 0, equal_end = 0, end = size;  // [0, greater) > pivot, [greater, equal_end) =
    double greater_mass = 0.0, equal_mass = 0.0;
    while (equal_end < end) {
      int64_t to = equal_end;
      if (values[equal_end] > pivot) {
        greater_mass += weights[equal_end];
        to = greater++;
      } else if (values[equal_end] < pivot) {
        to = --end;
      } else {
        equal_mass += weights[equal_end];
      }
      std::swap(values[equal_end], values[to]);
      std::swap(weights[equal_end], weights[to]);
      if (to != end) ++equal_end;
    }
    if (greater_mass >= target && greater > 0) {
      size = greater;
    } else if (greater_mass + equal_mass >= target || equal_end == size) {
      return pivot;
    } else {
      target -= greater_mass + equal_mass;
      values += equal_end;
      weights += equal_end;
      size -= equal_end;
    }
  }
}

// The largest score such that it and all larger ones weigh at least `target`, or `floor` if those
// from `floor` on never do. Brackets it from the maximum `max` down in doubling steps, halves the
// bracket while it holds many scores, and selects among the rest.
inline float threshold_by_mass(Scores& s, float max, float step, float floor, double target) {
  constexpr int64_t kFew = 128;
  constexpr int kMaxHalvings = 24;
  float low = max, high = INFINITY;
  Tail above, below = tail_from(s, low);
  while (below.mass < target) {
    if (low <= floor) return floor;
    high = low;
    above = below;
    low = max - step > floor ? max - step : floor;
    step *= 2.0f;
    below = tail_from(s, low);
  }
  if (high == INFINITY) return max;
  for (int i = 0; i < kMaxHalvings && below.count - above.count > kFew; ++i) {
    const float middle = 0.5f * low + 0.5f * high;
    if (middle <= low || middle >= high) break;
    const Tail tail = tail_from(s, middle);
    (tail.mass >= target ? low : high) = middle;
    (tail.mass >= target ? below : above) = tail;
  }
  int64_t size = 0;
  for (int64_t b = 0; b < s.num_blocks; ++b) {
    if (s.block_max[b] < low) continue;
    for (int64_t i = b * kBlock; i < (b + 1) * kBlock; ++i) {
      s.spare_value[size] = s.value[i];
      s.spare_weight[size] = s.weight[i];
      size += s.value[i] >= low && s.value[i] < high ? 1 : 0;
    }
  }
  return select_by_mass(s.spare_value, s.spare_weight, size, target - above.mass);
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
