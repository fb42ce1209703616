// Softmax attention of a tile of query rows over keys that come in blocks, with a running maximum
// and sum (online softmax), so that no row of scores is ever held whole. Exponentials are base 2.
//
// Two ways, chosen by the caller:
//   TileAttention  many rows: scores are kept transposed, S^T[key][row]. Keys and values are read
//                  as they lie in memory, and maximum, exponential and sum of 16 rows at once need
//                  no shuffle.
//   FewAttention   1 to 8 rows (decode): vectors run along the head dim and one pass over a block
//                  serves all rows.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "cpu/attention_plan.h"
#include "cpu/attention_tile.h"
#include "cpu/math.h"

namespace lightvl::cpu::LIGHTVL_ISA {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_inff();
constexpr float kNoKeyYet = -FLT_MAX / 4;  // a maximum that any score replaces; finite: no NaN

constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Up to kKeyBlock keys and values, fp32. Value rows are readable up to the padded head dim.
struct KeyValueBlock {
  const float* keys;
  int64_t key_stride;
  const float* values;
  int64_t value_stride;
};

// log of the sum that a row's running values stand for: sum * 2^maximum.
inline float lse(float maximum, float sum) {
  return sum > 0.0f ? maximum * kLn2 + fast_log(sum) : -kInfinity;
}

// dst[padded] = src[n] * scale, then zeros.
template <class T>
inline void load_row(const T* src, int n, float scale, float* dst, int padded) {
  for (int i = 0; i < n; ++i) dst[i] = to_float(src[i]) * scale;
  for (int i = n; i < padded; ++i) dst[i] = 0.0f;
}

template <class T>
inline void store_row(const float* src, int n, float scale, T* dst) {
  for (int i = 0; i < n; ++i) dst[i] = from_float<T>(src[i] * scale);
}

// fp32 copies of one block of keys and values.
struct BlockCopy {
  alignas(64) float keys[kKeyBlock * kMaxHeadDim];
  alignas(64) float values[kKeyBlock * kMaxHeadDim];

  // Copies `n` rows behind the first `row`.
  template <class T>
  void load(int row, int n, int head_dim, const T* k, int64_t k_stride, const T* v,
            int64_t v_stride) {
    const int padded = round_up(head_dim, kLanes);
    for (int i = 0; i < n; ++i) {
      load_row(k + i * k_stride, head_dim, 1.0f, keys + (row + i) * padded, padded);
      load_row(v + i * v_stride, head_dim, 1.0f, values + (row + i) * padded, padded);
    }
  }

  KeyValueBlock block(int head_dim) const {
    const int padded = round_up(head_dim, kLanes);
    return {keys, padded, values, padded};
  }
};

// Rows are set by set_query, run() meets all keys, then output() and the running values are ready.
struct TileAttention {
  static constexpr int kMaxRows = 320;
  static constexpr int kGroupRows = 64;  // rows whose scores against one block fit the first cache

  alignas(64) float queries[kTileFloats];  // [padded D, padded rows], scaled
  alignas(64) float outputs[kTileFloats];  // [rows, padded D]
  alignas(64) float maximum[kMaxRows];
  alignas(64) float sum[kMaxRows];
  alignas(64) int32_t limits[kMaxRows];  // keys that the row may see; ascending
  alignas(64) float scores[kKeyBlock * kGroupRows];
  alignas(64) float staged[kLanes * kMaxHeadDim];  // queries before they are turned
  int num_rows, padded_rows, head_dim, padded_dim;

  void begin(int rows, int dim) {
    num_rows = rows;
    padded_rows = round_up(rows, kLanes);
    head_dim = dim;
    padded_dim = round_up(dim, kLanes);
    for (int i = 0; i < padded_rows; ++i) {
      maximum[i] = kNoKeyYet;
      sum[i] = 0.0f;
      limits[i] = INT32_MAX;
    }
    std::memset(outputs, 0, sizeof(float) * rows * padded_dim);
  }

  // Rows are set in order.
  template <class T>
  void set_query(int row, const T* q, float scale) {
    load_row(q, head_dim, scale, staged + row % kLanes * padded_dim, padded_dim);
    if ((row + 1) % kLanes == 0 || row + 1 == num_rows) turn_staged(row / kLanes * kLanes);
  }

  const float* output(int row) const { return outputs + row * padded_dim; }

  // `block(key, n)` gives keys [key, key + n) as a KeyValueBlock.
  template <class Blocks>
  void run(int key_begin, int key_end, int /*page_size*/, Blocks&& block) {
    for (int key = key_begin; key < key_end; key += kKeyBlock) {
      const int n = key_end - key < kKeyBlock ? key_end - key : kKeyBlock;
      const KeyValueBlock kv = block(key, n);
      for (int row = 0; row < num_rows; row += kGroupRows) {
        const int rows = num_rows - row < kGroupRows ? num_rows - row : kGroupRows;
        const int seen = limits[row + rows - 1] - key;
        if (seen > 0) meet(kv, key, seen < n ? seen : n, row, rows);
      }
    }
  }

 private:
  // The staged queries become columns `row` on; those behind the last row are 0.
  void turn_staged(int row) {
    const int count = num_rows - row < kLanes ? num_rows - row : kLanes;
    std::memset(staged + count * padded_dim, 0, sizeof(float) * (kLanes - count) * padded_dim);
    for (int d = 0; d < padded_dim; d += kLanes) {
      Vec block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = load(staged + i * padded_dim + d);
      transpose(block);
      for (int i = 0; i < kLanes; ++i) store(queries + (d + i) * padded_rows + row, block[i]);
    }
  }

  void meet(const KeyValueBlock& kv, int key, int num_keys, int row, int rows) {
    const int num_vecs = round_up(rows, kLanes) / kLanes;
    multiply<Product::kScores>(num_keys, num_vecs, head_dim, kv.keys, kv.key_stride, queries + row,
                               padded_rows, scores, kGroupRows);
    if (limits[row] - key < num_keys) mask(key, num_keys, row, num_vecs);
    alignas(64) float scale[kGroupRows];
    softmax(num_keys, row, num_vecs, scale);
    multiply<Product::kAccumulateColumns>(rows, padded_dim / kLanes, num_keys, scores, kGroupRows,
                                          kv.values, kv.value_stride, outputs + row * padded_dim,
                                          padded_dim, scale);
  }

  void mask(int key, int num_keys, int row, int num_vecs) {
    for (int v = 0; v < num_vecs; ++v) {
      IntVec limit;
      std::memcpy(&limit, limits + row + v * kLanes, sizeof(limit));
      for (int i = 0; i < num_keys; ++i) {
        float* s = scores + i * kGroupRows + v * kLanes;
        store(s, limit > key + i ? load(s) : broadcast(-kInfinity));
      }
    }
  }

  // Scores to weights in place; scale = factor for what was accumulated before.
  void softmax(int num_keys, int row, int num_vecs, float* scale) {
    for (int v = 0; v < num_vecs; ++v) {
      float* s = scores + v * kLanes;
      const Vec old_max = load(maximum + row + v * kLanes);
      Vec new_max = old_max;
      for (int i = 0; i < num_keys; ++i) new_max = max(load(s + i * kGroupRows), new_max);
      const Vec factor = exp2_nonpositive(old_max - new_max);
      Vec total = load(sum + row + v * kLanes) * factor;
      for (int i = 0; i < num_keys; ++i) {
        const Vec weight = exp2_nonpositive(load(s + i * kGroupRows) - new_max);
        total += weight;
        store(s + i * kGroupRows, weight);
      }
      store(maximum + row + v * kLanes, new_max);
      store(sum + row + v * kLanes, total);
      store(scale + v * kLanes, factor);
    }
  }
};

// The same for 1 to kFewRows rows.
struct FewAttention {
  alignas(64) float queries[kFewRows * kMaxHeadDim];  // [rows, padded D], scaled
  alignas(64) float outputs[kFewRows * kMaxHeadDim];  // [rows, padded D]
  float maximum[kFewRows];
  float sum[kFewRows];
  int32_t limits[kFewRows];
  alignas(64) float scores[kFewRows * kKeyBlock];
  int num_rows, head_dim, padded_dim;

  void begin(int rows, int dim) {
    num_rows = rows;
    head_dim = dim;
    padded_dim = round_up(dim, kLanes);
    for (int i = 0; i < rows; ++i) {
      maximum[i] = kNoKeyYet;
      sum[i] = 0.0f;
      limits[i] = INT32_MAX;
    }
    std::memset(outputs, 0, sizeof(float) * rows * padded_dim);
  }

  template <class T>
  void set_query(int row, const T* q, float scale) {
    load_row(q, head_dim, scale, queries + row * padded_dim, padded_dim);
  }

  const float* output(int row) const { return outputs + row * padded_dim; }

  // The same; a block ends with its page, so that it need not be copied.
  template <class Blocks>
  void run(int key_begin, int key_end, int page_size, Blocks&& block) {
    const int block_keys = page_size < kKeyBlock ? page_size : kKeyBlock;
    for (int key = key_begin; key < key_end; key += block_keys) {
      const int n = key_end - key < block_keys ? key_end - key : block_keys;
      const KeyValueBlock kv = block(key, n);
      float scale[kFewRows];
      for (int row = 0; row < num_rows; ++row) {
        float* s = scores + row * kKeyBlock;
        for (int i = 0; i < n; i += kLanes) {
          store(s + i, dot_rows(queries + row * padded_dim, kv.keys + i * kv.key_stride,
                                kv.key_stride, n - i));
        }
        const int seen = limits[row] - key < n ? limits[row] - key : n;
        scale[row] = softmax(row, seen < 0 ? 0 : seen, n);
      }
      multiply<Product::kAccumulate>(num_rows, padded_dim / kLanes, n, scores, kKeyBlock, kv.values,
                                     kv.value_stride, outputs, padded_dim, scale);
    }
  }

 private:
  // Dot products of q with kLanes rows of k; rows from `count` on repeat the last one.
  Vec dot_rows(const float* q, const float* k, int64_t stride, int count) const {
    Vec acc[kLanes];
    const float* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      acc[i] = Vec{};
      rows[i] = k + (i < count ? i : count - 1) * stride;
    }
    for (int d = 0; d < padded_dim; d += kLanes) {
      const Vec x = load(q + d);
      for (int i = 0; i < kLanes; ++i) acc[i] += x * load(rows[i] + d);
    }
    return sum_each(acc);
  }

  float softmax(int row, int seen, int n) {
    float* s = scores + row * kKeyBlock;
    const int padded = round_up(n, kLanes);
    for (int i = seen; i < padded; ++i) s[i] = -kInfinity;
    Vec top = broadcast(maximum[row]);
    for (int i = 0; i < padded; i += kLanes) top = max(load(s + i), top);
    const float new_max = max_of(top);
    Vec total{};
    for (int i = 0; i < padded; i += kLanes) {
      const Vec weight = exp2_nonpositive(load(s + i) - new_max);
      total += weight;
      store(s + i, weight);
    }
    const float scale = exp2_nonpositive(broadcast(maximum[row] - new_max))[0];
    maximum[row] = new_max;
    sum[row] = sum[row] * scale + sum_of(total);
    return scale;
  }
};

}  // namespace lightvl::cpu::LIGHTVL_ISA
