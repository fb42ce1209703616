// A warp's part of decode attention: 16 keys and their values, straight from global memory to the
// tensor cores' operands, each element read once and never put into shared memory.
//
// S^T = K Q^T has the keys on the M side and up to 8 query rows on the N side, O^T = V^T P^T the
// head dim on the M side. With r = lane / 4 and c = lane % 4, a lane reads 16 bytes at a time: of
// keys r and r + 8 the elements 32 i + 8 c ... + 7, which two k-steps of the product take (the
// order of the summed dimension is free); of values 2c, 2c + 1, 2c + 8, 2c + 9 the elements at
// kVector (8 i + r), whose pairs of two rows are interleaved into operands. P turns from
// accumulator to operand by movmatrix.
#pragma once

#include "cuda/attention/decode_rows.cuh"

namespace lightvl::cuda {

// Reads past L1, which has no use for what is read once. Not .nc: the assembler moves such loads
// behind others that are asked for later.
__device__ inline void load_stream(uint32_t (&to)[4], const void* from) {
  asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "l"(from));
}
__device__ inline void load_stream(uint32_t (&to)[2], const void* from) {
  asm volatile("ld.global.L1::no_allocate.L2::256B.v2.u32 {%0,%1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "l"(from));
}

__device__ inline uint32_t transpose(uint32_t matrix) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(matrix));
  return out;
}

template <class T, int kHeadDim, int kTiles>
class DecodeSlice {
 public:
  static constexpr int kVector = kHeadDim % 64 == 0 ? 8 : 4;  // elements of a value at a time
  static constexpr int kParts = kHeadDim / (8 * kVector);
  static constexpr float kSlack = 8.0f;  // a maximum is kept until it is this far behind

  // Of rows that adjoin by `stride`, of which the last is `last`: later ones repeat it.
  __device__ void load_keys(const T* rows, int64_t page, int64_t stride, int last) {
    const int r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const T* row = rows + min(r + 8 * half, last) * stride + 8 * c + page;
#pragma unroll
      for (int i = 0; i < kHeadDim / 32; ++i) load_stream(key_[half][i], row + 32 * i);
    }
  }

  __device__ void load_values(const T* rows, int64_t page, int64_t stride, int last) {
    const int r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const T* row = rows + min(2 * c + j % 2 + j / 2 * 8, last) * stride + kVector * r + page;
#pragma unroll
      for (int i = 0; i < kParts; ++i) load_stream(value_[j][i], row + 8 * kVector * i);
    }
  }

  // Room in shared memory for a warp's queries: each lane copies its parts there and reads them.
  struct Queries {
    uint4 part[kTiles][kHeadDim / 32][32];
  };

  // Starts to copy row r of a tile of queries, or zeros if it is not `wanted`.
  __device__ static void copy_queries(Queries& queries, int tile, const T* row, bool wanted) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kHeadDim / 32; ++i) {
      // Through L1: where a pair is split, hundreds of warps ask for the same lines at once.
      asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(
                       shared_address(&queries.part[tile][i][lane])),
                   "l"(row + 32 * i + lane % 4 * 8), "r"(wanted ? 16 : 0)
                   : "memory");
    }
  }

  // score = K Q^T of keys r, r + 8 and queries 2c, 2c + 1.
  __device__ void multiply_keys(const Queries& queries, float (&score)[kTiles][4]) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float other[4] = {};  // a second chain of sums: half the latency
#pragma unroll
      for (int i = 0; i < kHeadDim / 32; ++i) {
        const uint4 q = queries.part[tile][i][threadIdx.x % 32];
        mma<T>(score[tile], {key_[0][i][0], key_[1][i][0], key_[0][i][1], key_[1][i][1]}, q.x, q.y);
        mma<T>(other, {key_[0][i][2], key_[1][i][2], key_[0][i][3], key_[1][i][3]}, q.z, q.w);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) score[tile][j] += other[j];
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
  __device__ void multiply_values(const float (&p)[kTiles][4]) {
    uint32_t b[kTiles][2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      b[tile][0] = transpose(pack_pair<T>(p[tile][0], p[tile][1]));
      b[tile][1] = transpose(pack_pair<T>(p[tile][2], p[tile][3]));
    }
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int j = 0; j < kVector / 2; ++j) {
        const uint32_t a[4] = {__byte_perm(value_[0][i][j], value_[1][i][j], 0x5410),
                               __byte_perm(value_[0][i][j], value_[1][i][j], 0x7632),
                               __byte_perm(value_[2][i][j], value_[3][i][j], 0x5410),
                               __byte_perm(value_[2][i][j], value_[3][i][j], 0x7632)};
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

  uint32_t key_[2][kHeadDim / 32][4];
  uint32_t value_[4][kParts][kVector / 2];
  float out_[kTiles][kHeadDim / 16][4];
  float max_[kTiles][2], sum_[kTiles][2];
};

}  // namespace lightvl::cuda
