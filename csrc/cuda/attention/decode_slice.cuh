// A warp's part of decode attention: 16 keys and their values, copied to shared memory, each
// element read from there once, straight into the tensor cores' operands.
//
// S^T = K Q^T has the keys on the M side and up to 8 query rows on the N side, O^T = V^T P^T the
// head dim on the M side. With r = lane / 4 and c = lane % 4, a lane reads 16 bytes at a time: of
// keys r and r + 8 the elements 32 i + 8 c ... + 7, which two k-steps of the product take (the
// order of the summed dimension is free); of values 2c, 2c + 1, 2c + 8, 2c + 9 the elements at
// kVector (8 i + r), whose pairs of two rows are interleaved into operands. P turns from
// accumulator to operand by movmatrix. Rows of keys and values are swizzled, each so that its
// readers meet no bank conflict.
#pragma once

#include "cuda/attention/mma.cuh"
#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

__device__ inline uint32_t transpose(uint32_t matrix) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(matrix));
  return out;
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Where chunk i of 8 elements of a row lies.
template <int kHeadDim>
struct DecodeSwizzle {
  static constexpr bool kSwizzled = kHeadDim % 64 == 0;
  __device__ static int key(int row, int i) { return kSwizzled ? i ^ (row & 1) << 2 : i; }
  __device__ static int value(int row, int i) { return kSwizzled ? i ^ (row & 6) : i; }
};

// 16 keys and values in shared memory.
template <class T, int kHeadDim>
struct DecodeStage {
  using Swizzle = DecodeSwizzle<kHeadDim>;
  static constexpr int kChunks = kHeadDim / 8;
  T key[16][kHeadDim], value[16][kHeadDim];

  // Starts to copy rows that adjoin by a stride, of which the last is `last`: later ones repeat it.
  __device__ void copy_keys(const T* rows, int64_t stride, int last) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < kChunks / 2; ++j) {
      const int row = (32 * j + lane) / kChunks, i = (32 * j + lane) % kChunks;
      copy_async(&key[row][8 * Swizzle::key(row, i)], rows + min(row, last) * stride + 8 * i, true);
    }
  }
  __device__ void copy_values(const T* rows, int64_t stride, int last) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < kChunks / 2; ++j) {
      const int row = (32 * j + lane) / kChunks, i = (32 * j + lane) % kChunks;
      copy_async(&value[row][8 * Swizzle::value(row, i)], rows + min(row, last) * stride + 8 * i,
                 true);
    }
  }
};

template <class T, int kHeadDim, int kTiles>
class DecodeSlice {
 public:
  using Stage = DecodeStage<T, kHeadDim>;
  using Swizzle = DecodeSwizzle<kHeadDim>;
  static constexpr int kVector = kHeadDim % 64 == 0 ? 8 : 4;  // elements of a value at a time
  static constexpr int kParts = kHeadDim / (8 * kVector);
  static constexpr float kSlack = 8.0f;  // a maximum is kept until it is this far behind

  // Row r of a tile of queries, or zeros if it is not `wanted`.
  __device__ void load_queries(int tile, const T* row, bool wanted) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 32; ++i) {
      query_[tile][i] = *reinterpret_cast<const uint4*>(row + 32 * i + threadIdx.x % 4 * 8);
      if (!wanted) query_[tile][i] = uint4{};
    }
  }

  // score = K Q^T of keys r, r + 8 and queries 2c, 2c + 1.
  __device__ void multiply_keys(const Stage& stage, float (&score)[kTiles][4]) const {
    const int r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    float other[kTiles][4] = {};  // a second chain of sums: half the latency
#pragma unroll
    for (int i = 0; i < kHeadDim / 32; ++i) {
      const int at = 8 * Swizzle::key(r, 4 * i + c);
      const uint4 x = *reinterpret_cast<const uint4*>(&stage.key[r][at]);
      const uint4 y = *reinterpret_cast<const uint4*>(&stage.key[r + 8][at]);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint4& q = query_[tile][i];
        mma<T>(score[tile], {x.x, y.x, x.y, y.y}, q.x, q.y);
        mma<T>(other[tile], {x.z, y.z, x.w, y.w}, q.z, q.w);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 4; ++j) score[tile][j] += other[tile][j];
    }
  }

  __device__ void clear() {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      max_[tile][0] = max_[tile][1] = -1e30f;
      sum_[tile][0] = sum_[tile][1] = 0.0f;
#pragma unroll
      for (auto& part : out_[tile]) part[0] = part[1] = part[2] = part[3] = 0.0f;
    }
  }

  // Scores in base 2, -inf where masked, become probabilities relative to the maximum.
  __device__ void soften(float (&score)[kTiles][4]) {
    bool behind = false;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 4; ++j) behind |= score[tile][j] > max_[tile][j % 2] + kSlack;
    }
    if (__any_sync(kAllLanes, behind)) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int q = 0; q < 2; ++q) raise(tile, q, fmaxf(score[tile][q], score[tile][q + 2]));
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        score[tile][j] = exp2_fast(score[tile][j] - max_[tile][j % 2]);
        sum_[tile][j % 2] += score[tile][j];
      }
    }
  }

  // out += V^T P^T.
  __device__ void multiply_values(const Stage& stage, const float (&p)[kTiles][4]) {
    const int r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    uint32_t b[kTiles][2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      b[tile][0] = transpose(pack_pair<T>(p[tile][0], p[tile][1]));
      b[tile][1] = transpose(pack_pair<T>(p[tile][2], p[tile][3]));
    }
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      Pack<uint32_t, kVector / 2> v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = 2 * c + j % 2 + j / 2 * 8;
        const int at = kVector == 8 ? 8 * Swizzle::value(row, 8 * i + r) : 4 * (8 * i + r);
        v[j] = *reinterpret_cast<const Pack<uint32_t, kVector / 2>*>(&stage.value[row][at]);
      }
#pragma unroll
      for (int j = 0; j < kVector / 2; ++j) {
        const uint32_t a[4] = {__byte_perm(v[0].value[j], v[1].value[j], 0x5410),
                               __byte_perm(v[0].value[j], v[1].value[j], 0x7632),
                               __byte_perm(v[2].value[j], v[3].value[j], 0x5410),
                               __byte_perm(v[2].value[j], v[3].value[j], 0x7632)};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          mma<T>(out_[tile][i * (kVector / 2) + j], a, b[tile][0], b[tile][1]);
        }
      }
    }
  }

  // Calls store(query, d, {out at d, out at d + 1}) for what this lane holds; not normalised.
  template <class Store>
  __device__ void each_output(Store&& store) const {
    const int r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < kHeadDim / 16; ++i) {
        const auto& out = out_[tile][i];
        const int d = kVector * (i / (kVector / 2) * 8 + r) + 2 * (i % (kVector / 2));
        store(8 * tile + 2 * c, d, make_float2(out[0], out[2]));
        store(8 * tile + 2 * c + 1, d, make_float2(out[1], out[3]));
      }
    }
  }

  // {maximum, sum} of query 8 * tile + 2c + q; the same in the lanes that share c.
  __device__ float2 totals(int tile, int q) const {
    float sum = sum_[tile][q];
#pragma unroll
    for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    return {max_[tile][q], sum};
  }

 private:
  __device__ void raise(int tile, int q, float most) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, step));
    }
    most = fmaxf(most, max_[tile][q]);
    const float rescale = exp2_fast(max_[tile][q] - most);
    max_[tile][q] = most;
    sum_[tile][q] *= rescale;
#pragma unroll
    for (auto& part : out_[tile]) {
      part[q] *= rescale;
      part[q + 2] *= rescale;
    }
  }

  uint4 query_[kTiles][kHeadDim / 32];
  float out_[kTiles][kHeadDim / 16][4];
  float max_[kTiles][2], sum_[kTiles][2];
};

}  // namespace lightvl::cuda
