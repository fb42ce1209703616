// Rotary embedding of queries and keys, fused with the write of keys and values to their pages.
//
// A head's halves (x1, x2) become x1 cos - x2 sin and x2 cos + x1 sin, in float32, after an
// optional RMS norm. kLanes threads share a head, each with kPieces packs of both halves; they take
// kHeads heads of one token, blockDim.y apart, with one load of its angles. Query heads are rotated
// in place, key heads into the token's page slot, value heads are copied there.
#pragma once

#include <bit>

#include "cuda/common/dependent_launch.cuh"
#include "cuda/common/numeric.cuh"
#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

#ifdef ROPE_MAXREG
#define ROPE_REGS __maxnreg__(ROPE_MAXREG)
#else
#define ROPE_REGS __launch_bounds__(kRopeMaxThreads)
#endif
constexpr int kRopeMaxThreads = 512;

// Geometry that the kernel needs beside its block and grid.
struct RopeGrid {
  unsigned blocks_a_token;
  int page_shift;  // log2 of the page size, or -1
};

// This thread's packs of both halves of a head.
template <class T, int kPack, int kLanes, int kPieces>
struct RopeHead {
  Pack<T, kPack> low[kPieces], high[kPieces];

  // Calls f(i, d) for each piece, the i-th of this thread, which begins at element d of a half.
  template <class F>
  static __device__ void each_piece(int half, F&& f) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int d = (i * kLanes + static_cast<int>(threadIdx.x)) * kPack;
      if (d < half) f(i, d);
    }
  }

  __device__ void load(const T* x, int half) {
    each_piece(half, [&](int i, int d) {
      low[i] = load_pack<kPack>(x + d);
      high[i] = load_pack<kPack>(x + d + half);
    });
  }

  __device__ void store(T* out, int half) const {
    each_piece(half, [&](int i, int d) {
      store_pack(out + d, low[i]);
      store_pack(out + d + half, high[i]);
    });
  }
};

// Cosines and sines of this thread's packs.
template <int kPack, int kLanes, int kPieces>
struct RopeAngles {
  float cos[kPieces][kPack], sin[kPieces][kPack];

  __device__ void load(const float* cos_sin, int half) {
    RopeHead<float, kPack, kLanes, kPieces>::each_piece(half, [&](int i, int d) {
      constexpr int kWords = kPack % 4 == 0 ? 4 : 1;
#pragma unroll
      for (int j = 0; j < kPack; j += kWords) {
        const auto c = load_pack<kWords>(cos_sin + d + j);
        const auto s = load_pack<kWords>(cos_sin + d + j + half);
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
          cos[i][j + w] = c.value[w];
          sin[i][j + w] = s.value[w];
        }
      }
    });
  }
};

// 1 / root mean square of a head; called by whole warps.
template <class T, int kPack, int kLanes, int kPieces>
__device__ float inverse_root(const RopeHead<T, kPack, kLanes, kPieces>& head, float eps,
                              int half) {
  float squares = 0.0f;
  head.each_piece(half, [&](int i, int) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float a = to_float(head.low[i].value[j]), b = to_float(head.high[i].value[j]);
      squares += a * a + b * b;
    }
  });
  return rsqrtf(warp_reduce<kLanes>(squares, Sum{}) / static_cast<float>(2 * half) + eps);
}

// Scales by `scale` and the weights `norm`, unless that is null, and rotates.
template <class T, int kPack, int kLanes, int kPieces>
__device__ void rotate(RopeHead<T, kPack, kLanes, kPieces>& head,
                       const RopeAngles<kPack, kLanes, kPieces>& angles, const T* norm, float scale,
                       int half) {
  head.each_piece(half, [&](int i, int d) {
    auto &low = head.low[i], &high = head.high[i];
    float a[kPack], b[kPack];
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      a[j] = to_float(low.value[j]);
      b[j] = to_float(high.value[j]);
    }
    if (norm != nullptr) {
      const auto low_weight = load_pack<kPack>(norm + d),
                 high_weight = load_pack<kPack>(norm + d + half);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        a[j] *= scale * to_float(low_weight.value[j]);
        b[j] *= scale * to_float(high_weight.value[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float cos = angles.cos[i][j], sin = angles.sin[i][j];
      low.value[j] = from_float<T>(a[j] * cos - b[j] * sin);
      high.value[j] = from_float<T>(b[j] * cos + a[j] * sin);
    }
  });
}

template <class T, int kPack, int kLanes, int kPieces, int kHeads>
__global__ void ROPE_REGS
    rope_write_kv_kernel(const __grid_constant__ RopeWriteKvParams p,
                         const __grid_constant__ RopeGrid grid) {
  const int64_t t = blockIdx.x / grid.blocks_a_token;
#ifndef NO_PREFETCH
  if (threadIdx.x + threadIdx.y == 0) {
    prefetch_to_l2(p.rows + t);
    prefetch_to_l2(p.slots + t);
  }
#endif
  wait_for_previous();
  let_next_begin();
  const int first =
      static_cast<int>(blockIdx.x % grid.blocks_a_token * blockDim.y * kHeads + threadIdx.y);
  const int half = static_cast<int>(p.head_dim / 2);
  const int queries = static_cast<int>(p.num_heads), kv_heads = static_cast<int>(p.num_kv_heads);
  const int64_t slot = p.slots[t], angle_row = p.rows[t];
  const auto is_mine = [&](int h) {
    return h < queries || (slot >= 0 && h < queries + 2 * kv_heads);
  };

  RopeHead<T, kPack, kLanes, kPieces> heads[kHeads];
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    const int h = first + i * static_cast<int>(blockDim.y);
    const T* x = static_cast<const T*>(p.q) + t * p.q_stride_t + h * p.q_stride_h;
    if (h >= queries) {
      x = static_cast<const T*>(p.k) + t * p.k_stride_t + (h - queries) * p.k_stride_h;
    }
    if (h >= queries + kv_heads) {
      x = static_cast<const T*>(p.v) + t * p.v_stride_t + (h - queries - kv_heads) * p.v_stride_h;
    }
    if (is_mine(h)) heads[i].load(x, half);
  }
  RopeAngles<kPack, kLanes, kPieces> angles;
  angles.load(p.cos_sin + angle_row * p.head_dim, half);

  const int64_t page = grid.page_shift >= 0 ? slot >> grid.page_shift : slot / p.page_size;
  const int64_t cell = (page * kv_heads * p.page_size + (slot - page * p.page_size)) * p.head_dim;
  const bool any_norm = p.q_norm != nullptr || p.k_norm != nullptr;
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    const int h = first + i * static_cast<int>(blockDim.y);
    const bool is_query = h < queries, is_value = h >= queries + kv_heads;
    const float scale = any_norm ? inverse_root(heads[i], p.eps, half) : 1.0f;
    const auto* norm = static_cast<const T*>(is_query ? p.q_norm : p.k_norm);
    if (!is_value) rotate(heads[i], angles, norm, scale, half);
    T* out = static_cast<T*>(p.q) + t * p.q_stride_t + h * p.q_stride_h;
    if (!is_query) {
      const int64_t kv_head = h - queries - (is_value ? kv_heads : 0);
      out = static_cast<T*>(is_value ? p.v_cache : p.k_cache) + cell +
            kv_head * p.page_size * p.head_dim;
    }
    if (is_mine(h)) heads[i].store(out, half);
  }
}

template <class T, int kPack, int kLanes, int kPieces, int kHeads>
cudaError_t launch_rope(const RopeWriteKvParams& p, int64_t max_threads, cudaStream_t stream) {
  const auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
  constexpr int64_t kGroupsAWarp = 32 / kLanes;
  const int64_t groups = parts(p.num_heads + 2 * p.num_kv_heads, kHeads);
  const int64_t blocks = parts(groups * kLanes, max_threads);
  const int64_t groups_a_block = parts(parts(groups, blocks), kGroupsAWarp) * kGroupsAWarp;
  if (p.num_tokens * blocks > INT32_MAX) return cudaErrorInvalidValue;
  const bool is_power = (p.page_size & (p.page_size - 1)) == 0;
  const RopeGrid shape{
      .blocks_a_token = static_cast<unsigned>(blocks),
      .page_shift = is_power ? std::countr_zero(static_cast<uint64_t>(p.page_size)) : -1};
  return launch_dependent(rope_write_kv_kernel<T, kPack, kLanes, kPieces, kHeads>,
                          dim3(static_cast<unsigned>(p.num_tokens * blocks)),
                          dim3(kLanes, static_cast<unsigned>(groups_a_block)), stream, p, shape);
}

// Calls f(pack, lanes, pieces) as integral constants.
template <class T, class F>
cudaError_t dispatch_rope(const RopeWriteKvParams& p, F&& f) {
  constexpr int kPack = 16 / sizeof(T);
  constexpr std::integral_constant<int, kPack> pack;
  const int64_t half = p.head_dim / 2, strides = p.q_stride_t | p.q_stride_h | p.k_stride_t |
                                                 p.k_stride_h | p.v_stride_t | p.v_stride_h | half;
  const bool packed = strides % kPack == 0 && all_multiples(16, p.q, p.k, p.v, p.k_cache, p.v_cache,
                                                            p.cos_sin, p.q_norm, p.k_norm);
  if (!packed)
    return f(std::integral_constant<int, 1>{}, std::integral_constant<int, 32>{},
             std::integral_constant<int, 4>{});
  if (half <= 4 * kPack)
    return f(pack, std::integral_constant<int, 4>{}, std::integral_constant<int, 1>{});
  if (half <= 8 * kPack)
    return f(pack, std::integral_constant<int, 8>{}, std::integral_constant<int, 1>{});
  if (half <= 16 * kPack)
    return f(pack, std::integral_constant<int, 16>{}, std::integral_constant<int, 1>{});
  return f(pack, std::integral_constant<int, 32>{}, std::integral_constant<int, 1>{});
}

template <class T>
cudaError_t launch_rope_write_kv(const RopeWriteKvParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0 || p.head_dim == 0) return cudaSuccess;
  return dispatch_rope<T>(p, [&](auto pack, auto lanes, auto pieces) {
    return launch_rope<T, pack, lanes, pieces, 1>(p, 128, stream);
  });
}

}  // namespace lightvl::cuda
