// Attention of a block's query rows over a range of keys, with mma.sync: the loop that paged and
// vision attention share.
//
// A warp holds 16 query rows in registers; keys and values come in tiles of 64 through two stages
// of shared memory, the next tile copied (cp.async) while this one is multiplied. Softmax is online
// (Milakov and Gimelshein, 2018) in base 2; probabilities go from the accumulator of Q K^T to the
// operand of P V without leaving registers. Rows in shared memory are padded by 16 bytes, so that
// the eight rows of a matrix lie in different banks.
#pragma once

#include "cuda/attention/mma.cuh"
#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

constexpr int kTileKeys = 64;

template <class T, int kHeadDim>
struct KeyTile {
  static constexpr int kStride = kHeadDim + 8;
  T key[kTileKeys][kStride];
  T value[kTileKeys][kStride];
};

template <class T, int kHeadDim, int kWarps>
class Flash {
 public:
  using Tile = KeyTile<T, kHeadDim>;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kSharedBytes = 2 * sizeof(Tile);

  // This thread's two rows among the block's: row() and row() + 8.
  __device__ static int row() { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4; }
  // First of the two columns that this thread holds of each 8.
  __device__ static int column() { return threadIdx.x % 4 * 2; }

  __device__ Flash(void* shared, float scale)
      : tiles_(static_cast<Tile*>(shared)), scale_(scale * 1.44269504f) {}

  // Loads the queries; null rows are zero.
  __device__ void load_queries(const T* upper, const T* lower) {
#pragma unroll
    for (int d = 0; d < kHeadDim / 16; ++d) {
      const int c = d * 16 + column();
      query_[d][0] = load_pair(upper, c);
      query_[d][1] = load_pair(lower, c);
      query_[d][2] = load_pair(upper, c + 8);
      query_[d][3] = load_pair(lower, c + 8);
    }
  }

  // Attends to keys [begin, end), of which the two rows see those below seen[0] and seen[1]. begin
  // is a multiple of 64. source.key(j) and source.value(j) point to key j's D elements.
  template <class Source>
  __device__ void run(const Source& source, int begin, int end, const int (&seen)[2]) {
    if (begin < end) copy_tile(source, begin, end, tiles_[0]);
    commit_copies();
    int stage = 0;
    for (int first = begin; first < end; first += kTileKeys, stage ^= 1) {
      if (first + kTileKeys < end) {
        copy_tile(source, first + kTileKeys, end, tiles_[stage ^ 1]);
      }
      commit_copies();
      wait_for_copies<1>();
      __syncthreads();
      attend(tiles_[stage], first, seen);
      __syncthreads();
    }
    finish();
  }

  // Normalised output at column d + column() + {0, 1} of row 0 or 1 of this thread.
  __device__ float2 output(int d, int which) const {
    return {out_[d / 8][2 * which], out_[d / 8][2 * which + 1]};
  }
  // Base-2 logarithm of the softmax's denominator; -inf if the row saw no key.
  __device__ float log2_sum(int which) const { return max_[which] + log2f(sum_[which]); }

 private:
  __device__ static uint32_t load_pair(const T* row, int c) {
    return row == nullptr ? 0u : *reinterpret_cast<const uint32_t*>(row + c);
  }

  template <class Source>
  __device__ static void copy_tile(const Source& source, int first, int end, Tile& tile) {
    constexpr int kPacks = kHeadDim / 8;
    for (int i = threadIdx.x; i < kTileKeys * kPacks; i += 32 * kWarps) {
      const int row = i / kPacks, d = i % kPacks * 8;
      const bool wanted = first + row < end;
      const int key = wanted ? first + row : first;
      copy_async(&tile.key[row][d], source.key(key) + d, wanted);
      copy_async(&tile.value[row][d], source.value(key) + d, wanted);
    }
  }

  __device__ void attend(const Tile& tile, int first, const int (&seen)[2]) {
    float score[kTileKeys / 8][4] = {};
    multiply_keys(tile, score);
    update(score, first, seen);
    multiply_values(tile, score);
  }

  // score = Q K^T.
  __device__ void multiply_keys(const Tile& tile, float (&score)[kTileKeys / 8][4]) const {
    const int lane = threadIdx.x % 32, matrix = lane / 8;
#pragma unroll
    for (int d = 0; d < kHeadDim / 16; ++d) {
#pragma unroll
      for (int n = 0; n < kTileKeys / 16; ++n) {
        uint32_t b[4];
        load_matrices(b, &tile.key[n * 16 + matrix / 2 * 8 + lane % 8][d * 16 + matrix % 2 * 8]);
        mma<T>(score[2 * n], query_[d], b[0], b[1]);
        mma<T>(score[2 * n + 1], query_[d], b[2], b[3]);
      }
    }
  }

  // Turns scores into probabilities relative to the new maximum and rescales what was summed.
  __device__ void update(float (&score)[kTileKeys / 8][4], int first, const int (&seen)[2]) {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      float most = max_[which];
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& s = score[n][2 * which + j];
          s = first + n * 8 + column() + j < seen[which] ? s * scale_ : -INFINITY;
          most = fmaxf(most, s);
        }
      }
      most = quad_reduce(most, Max{});
      const float shift = most == -INFINITY ? 0.0f : most;
      const float rescale = exp2f(max_[which] - shift);
      max_[which] = most;
      sum_[which] *= rescale;
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& s = score[n][2 * which + j];
          s = exp2f(s - shift);
          sum_[which] += s;
        }
      }
#pragma unroll
      for (int d = 0; d < kHeadDim / 8; ++d) {
        out_[d][2 * which] *= rescale;
        out_[d][2 * which + 1] *= rescale;
      }
    }
  }

  // out += P V.
  __device__ void multiply_values(const Tile& tile, const float (&p)[kTileKeys / 8][4]) {
    const int lane = threadIdx.x % 32, matrix = lane / 8;
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
      const uint32_t a[4] = {pack_pair<T>(p[2 * k][0], p[2 * k][1]),
                             pack_pair<T>(p[2 * k][2], p[2 * k][3]),
                             pack_pair<T>(p[2 * k + 1][0], p[2 * k + 1][1]),
                             pack_pair<T>(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
      for (int d = 0; d < kHeadDim / 16; ++d) {
        uint32_t b[4];
        load_transposed(b,
                        &tile.value[k * 16 + matrix % 2 * 8 + lane % 8][d * 16 + matrix / 2 * 8]);
        mma<T>(out_[2 * d], a, b[0], b[1]);
        mma<T>(out_[2 * d + 1], a, b[2], b[3]);
      }
    }
  }

  // Sums over the four threads of a row, and normalises.
  __device__ void finish() {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      sum_[which] = quad_reduce(sum_[which], Sum{});
      const float inverse = sum_[which] > 0.0f ? 1.0f / sum_[which] : 0.0f;
#pragma unroll
      for (int d = 0; d < kHeadDim / 8; ++d) {
        out_[d][2 * which] *= inverse;
        out_[d][2 * which + 1] *= inverse;
      }
    }
  }

  template <class Combine>
  __device__ static float quad_reduce(float value, Combine combine) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, 1));
    return combine(value, __shfl_xor_sync(kAllLanes, value, 2));
  }

  Tile* tiles_;
  float scale_;
  uint32_t query_[kHeadDim / 16][4];
  float out_[kHeadDim / 8][4] = {};
  float max_[2] = {-INFINITY, -INFINITY}, sum_[2] = {};
};

}  // namespace lightvl::cuda
