// Rotary embedding of queries and keys, fused with the write of keys and values to their pages.
//
// A head's halves (x1, x2) become x1 cos - x2 sin and x2 cos + x1 sin, in float32, after an
// optional RMS norm. kLanes threads share a head of a token, each with kPieces packs of both
// halves. Query heads are rotated in place, key heads into the token's page slot, value heads are
// copied there.
#pragma once

#include <bit>

#include "cuda/common/dependent_launch.cuh"
#include "cuda/common/numeric.cuh"
#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

constexpr int kRopeThreads = 128;

// Blocks that fit an SM: as few registers as do without spilling.
constexpr int rope_blocks(bool norms) { return norms ? 8 : 12; }

// What the kernel needs to know beside its block and grid.
struct RopeGrid {
  unsigned blocks_a_token;
  int page_shift;  // log2 of the page size, or -1
  bool streams;    // results are too large to be kept in L2
};

// This thread's packs of both halves of a head.
template <class T, int kPack, int kLanes, int kPieces>
struct RopeHead {
  PackBits<T, kPack> low[kPieces], high[kPieces];

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
      low[i] = PackBits(load_pack<kPack>(x + d));
      high[i] = PackBits(load_pack<kPack>(x + d + half));
    });
  }

  __device__ void store(T* out, int half, bool streams) const {
    each_piece(half, [&](int i, int d) {
      if (streams) {
        stream_pack(out + d, low[i].unpack());
        stream_pack(out + d + half, high[i].unpack());
      } else {
        store_pack(out + d, low[i].unpack());
        store_pack(out + d + half, high[i].unpack());
      }
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
    const auto low = head.low[i].unpack(), high = head.high[i].unpack();
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float a = to_float(low.value[j]), b = to_float(high.value[j]);
      squares += a * a + b * b;
    }
  });
  return rsqrtf(warp_reduce<kLanes>(squares, Sum{}) / static_cast<float>(2 * half) + eps);
}

// Multiplies by `scale` and, unless that is null, the weights `norm`.
template <class T, int kPack>
struct RopeNorm {
  const T* norm;
  float scale;

  __device__ void apply(float (&x)[kPack], int d) const {
    if (norm == nullptr) return;
    const auto weight = load_pack<kPack>(norm + d);
#pragma unroll
    for (int j = 0; j < kPack; ++j) x[j] *= scale * to_float(weight.value[j]);
  }
};

template <bool kNorms, class T, int kPack, int kLanes, int kPieces>
__device__ void rotate(RopeHead<T, kPack, kLanes, kPieces>& head,
                       const RopeAngles<kPack, kLanes, kPieces>& angles,
                       const RopeNorm<T, kPack>& norm, int half) {
  head.each_piece(half, [&](int i, int d) {
    auto low = head.low[i].unpack(), high = head.high[i].unpack();
    float a[kPack], b[kPack];
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      a[j] = to_float(low.value[j]);
      b[j] = to_float(high.value[j]);
    }
    if constexpr (kNorms) {
      norm.apply(a, d);
      norm.apply(b, d + half);
    }
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float cos = angles.cos[i][j], sin = angles.sin[i][j];
      low.value[j] = from_float<T>(a[j] * cos - b[j] * sin);
      high.value[j] = from_float<T>(b[j] * cos + a[j] * sin);
    }
    head.low[i] = PackBits(low);
    head.high[i] = PackBits(high);
  });
}

template <class T, int kPack, int kLanes, int kPieces, bool kNorms>
__global__ void __launch_bounds__(kRopeThreads, rope_blocks(kNorms))
    rope_write_kv_kernel(const __grid_constant__ RopeWriteKvParams p,
                         const __grid_constant__ RopeGrid grid) {
  const int64_t t = blockIdx.x / grid.blocks_a_token;
  const int h = static_cast<int>(blockIdx.x % grid.blocks_a_token * blockDim.y + threadIdx.y);
  const int half = static_cast<int>(p.head_dim / 2);
  const int queries = static_cast<int>(p.num_heads), kv_heads = static_cast<int>(p.num_kv_heads);
  const bool is_query = h < queries, is_value = h >= queries + kv_heads;
  const bool exists = h < queries + 2 * kv_heads;
  const int kv_head = h - queries - (is_value ? kv_heads : 0);
  const auto at = [&](const void* x, int head, int64_t stride_t, int64_t stride_h) {
    return static_cast<const T*>(x) + t * stride_t + head * stride_h;
  };
  const T* x = is_query   ? at(p.q, h, p.q_stride_t, p.q_stride_h)
               : is_value ? at(p.v, kv_head, p.v_stride_t, p.v_stride_h)
                          : at(p.k, kv_head, p.k_stride_t, p.k_stride_h);
  if (threadIdx.x + threadIdx.y == 0) {
    prefetch_to_l2(p.rows + t);
    prefetch_to_l2(p.slots + t);
  }
  wait_for_previous();
  let_next_begin();

  RopeHead<T, kPack, kLanes, kPieces> head;
  RopeAngles<kPack, kLanes, kPieces> angles;
  const int64_t angle_row = p.rows[t], slot = p.slots[t];
  if (exists) head.load(x, half);
  if (!is_value) angles.load(p.cos_sin + angle_row * p.head_dim, half);
  RopeNorm<T, kPack> norm{static_cast<const T*>(is_query ? p.q_norm : p.k_norm), 1.0f};
  if constexpr (kNorms) norm.scale = inverse_root(head, p.eps, half);
  if (!is_value) rotate<kNorms>(head, angles, norm, half);
  if (is_query) return head.store(const_cast<T*>(x), half, grid.streams);
  if (!exists || slot < 0) return;
  const int64_t page = grid.page_shift >= 0 ? slot >> grid.page_shift : slot / p.page_size;
  const int64_t cell = (page * kv_heads + kv_head) * p.page_size + slot - page * p.page_size;
  T* cache = static_cast<T*>(is_value ? p.v_cache : p.k_cache);
  head.store(cache + cell * p.head_dim, half, grid.streams);
}

template <class T, int kPack, int kLanes, int kPieces, bool kNorms>
cudaError_t launch_rope(const RopeWriteKvParams& p, cudaStream_t stream) {
  const auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
  constexpr int64_t kHeadsAWarp = 32 / kLanes, kStreamedBytes = 32 << 20;
  const int64_t heads = p.num_heads + 2 * p.num_kv_heads;
  const int64_t blocks = parts(heads * kLanes, kRopeThreads);
  const int64_t heads_a_block = parts(parts(heads, blocks), kHeadsAWarp) * kHeadsAWarp;
  if (p.num_tokens * blocks > INT32_MAX) return cudaErrorInvalidValue;
  const auto page_size = static_cast<uint64_t>(p.page_size);
  const RopeGrid shape{
      .blocks_a_token = static_cast<unsigned>(blocks),
      .page_shift = std::has_single_bit(page_size) ? std::countr_zero(page_size) : -1,
      .streams = p.num_tokens * heads * p.head_dim * int64_t{sizeof(T)} > kStreamedBytes,
  };
  return launch_dependent<rope_write_kv_kernel<T, kPack, kLanes, kPieces, kNorms>>(
      dim3(static_cast<unsigned>(p.num_tokens * blocks)),
      dim3(kLanes, static_cast<unsigned>(heads_a_block)), 0, stream, p, shape);
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
    if (p.q_norm == nullptr && p.k_norm == nullptr) {
      return launch_rope<T, pack, lanes, pieces, false>(p, stream);
    }
    return launch_rope<T, pack, lanes, pieces, true>(p, stream);
  });
}

}  // namespace lightvl::cuda
