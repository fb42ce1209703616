// Vision attention for sm_90a: no mask, segments of a packed batch, warpgroup products and TMA.
//
// Blocks stay and take items (vision_items.cuh) in turn. A block is a producer warp and a few
// consumer warpgroups, each with a tile of 64 queries of the item's head; they share its keys.
//   producer   queries by TMA into one of a few buffers, blocks of keys and of values into a ring;
//              runs ahead into the next item. First the keys that don't fill a block, in a block of
//              16, 32, 64 or all columns, with zeros for the values of what isn't there.
//   consumer   S = Q K^T, both from shared memory; softmax in registers; O += P V, P in registers.
// Only the first block is masked. Softmax overlaps products in two ways: a warpgroup asks for S of
// the next block before it asks for P V of this one and takes the next softmax while that runs; and
// warpgroups ask for products in turns, so that one has its softmax while others multiply.
// A slot's `full` barrier flips when TMA has delivered, `empty` when all consumer warps have read.
#pragma once

#include <algorithm>

#include "cuda/attention/vision_consumer.cuh"
#include "cuda/attention/vision_producer.cuh"
#include "cuda/common/device.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    vision_attention_sm90_kernel(const __grid_constant__ VisionTask task) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  auto& shared = *reinterpret_cast<VisionShared<Shape>*>(bytes);
  if (threadIdx.x == 0) {
    prefetch_map(task.query);
    prefetch_map(task.key);
    prefetch_map(task.value);
    constexpr int kConsumerWarps = 4 * Shape::kGroups;
    for (int i = 0; i < Shape::kQueryBuffers; ++i) {
      init_barrier(shared.query_full[i], 2);
      init_barrier(shared.query_empty[i], kConsumerWarps);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      init_barrier(shared.key_full[i], 1);
      init_barrier(shared.value_full[i], 1);
      init_barrier(shared.key_empty[i], kConsumerWarps);
      init_barrier(shared.value_empty[i], kConsumerWarps);
    }
    init_barrier(shared.head_landed, 1);
    fence_barrier_init();
  }
  if constexpr (Shape::kOnes) {
    for (auto i = threadIdx.x; i < Shape::kKeys * 64; i += Shape::kThreads) {
      shared.ones[i] = from_float<typename Shape::T>(1.0f);
    }
    fence_proxy_async();
  }
  __syncthreads();
  if (threadIdx.x / 128 == Shape::kGroups) {
    give_registers<Shape::kProducerRegisters>();
    const int warp = threadIdx.x / 32 - 4 * Shape::kGroups;
    if (warp == 0) VisionProducer<Shape>(task, shared).run();
    if (warp == 1) VisionProducer<Shape>(task, shared).run_tails();
  } else {
    take_registers<Shape::kConsumerRegisters>();
    VisionConsumer<Shape>(task, shared).run();
  }
}

// ---- host

// Time of an item of so many tiles in units of one: few warpgroups overlap less.
inline int64_t item_cost(int64_t tiles) { return 1 + tiles; }

struct VisionPlan {
  VisionCut cut;
  int64_t time;
};

// The number of tiles an item gets that makes the blocks end soonest, were all segments as long as
// the longest.
inline VisionPlan plan_vision(const VisionAttentionWork& work, int32_t most_tiles, int64_t blocks) {
  const VisionAttentionParams& p = work.params;
  const int64_t heads = p.num_seqs * p.num_heads;
  const int64_t tiles = (work.max_len + kTileRows - 1) / kTileRows;
  VisionPlan best{{}, INT64_MAX};
  for (int32_t each = most_tiles; each > 0; --each) {
    const VisionCut cut{p.cu_lens, static_cast<int32_t>(p.num_seqs),
                        static_cast<int32_t>(p.num_heads), each, most_tiles};
    const SegmentItems items(cut, static_cast<int32_t>(work.max_len));
    const int64_t last = items.rest > 0 ? 0 : tiles - (items.whole - 1) * int64_t{each};
    // Whole items in rounds, then the remainders in the gaps that the last round leaves.
    const int64_t whole = items.whole * heads, rounds = (whole + blocks - 1) / blocks;
    const int64_t gaps = rounds * blocks - whole;
    const int64_t left = items.rest > 0 ? std::max<int64_t>(heads - gaps, 0) : 0;
    int64_t time = rounds * item_cost(each) + (left + blocks - 1) / blocks * item_cost(items.rest);
    if (items.whole > 0 && last > each) time += item_cost(last) - item_cost(each);
    if (time < best.time) best = {cut, time};
  }
  return best;
}

template <class Shape>
CUtensorMap vision_map(const void* base, const int64_t (&stride)[2], int rows, int64_t num_tokens,
                       int64_t num_heads, cudaError_t& status) {
  CUtensorMap map;
  const auto type = std::is_same_v<typename Shape::T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                              : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const cudaError_t error = encode_tensor_map<4>(
      map, type, base, {64, num_tokens, Shape::kPanels, num_heads}, {stride[0], 64, stride[1]},
      {64, static_cast<uint32_t>(rows), Shape::kPanels, 1});
  if (error != cudaSuccess) status = error;
  return map;
}

template <class Shape>
cudaError_t launch_vision_shape(const VisionAttentionWork& work, const VisionCut& cut,
                                int64_t blocks, cudaStream_t stream) {
  const VisionAttentionParams& p = work.params;
  cudaError_t status = cudaSuccess;
  const auto map = [&](const void* base, const int64_t (&stride)[2], int rows) {
    return vision_map<Shape>(base, stride, rows, work.num_tokens, p.num_heads, status);
  };
  const VisionTask task{map(p.q, p.q_stride, kTileRows),
                        map(p.k, p.k_stride, Shape::kKeys),
                        map(p.v, p.v_stride, Shape::kKeys),
                        cut,
                        p.k,
                        p.v,
                        p.out,
                        {p.k_stride[0], p.k_stride[1]},
                        {p.v_stride[0], p.v_stride[1]},
                        {p.out_stride[0], p.out_stride[1]},
                        p.scale};
  if (status != cudaSuccess) return status;
  const int64_t tiles = (work.max_len + kTileRows - 1) / kTileRows;
  const int64_t items =
      (tiles + cut.tiles_an_item - 1) / cut.tiles_an_item * p.num_heads * p.num_seqs;
  constexpr auto kernel = vision_attention_sm90_kernel<Shape>;
  constexpr int kBytes = sizeof(VisionShared<Shape>);
  status = allow_shared_memory<kernel>(kBytes);
  if (status != cudaSuccess) return status;
  kernel<<<static_cast<unsigned>(std::min(blocks, items)), Shape::kThreads, kBytes, stream>>>(task);
  return cudaGetLastError();
}

// The kernel for sm_80, instantiated elsewhere.
template <class T, int kHeadDim>
cudaError_t launch_vision_attention(const VisionAttentionWork& work, cudaStream_t stream);

template <class T, int kHeadDim>
cudaError_t launch_vision_sm90(const VisionAttentionWork& work, cudaStream_t stream) {
  const VisionAttentionParams& p = work.params;
  if (p.num_seqs * p.num_heads * work.max_len * work.num_tokens == 0) return cudaSuccess;
  // Here the largest score is the one of the largest probability.
  if (!(p.scale > 0.0f)) return launch_vision_attention<T, kHeadDim>(work, stream);
  const int64_t blocks = device_attribute<cudaDevAttrMultiProcessorCount>();
  const VisionPlan three = plan_vision(work, 3, blocks);
  if constexpr (kHeadDim == 64) {
    using Shape = VisionShape<T, 64, 3, 128, 4, 2, 16, true, 1, true>;
    return launch_vision_shape<Shape>(work, three.cut, blocks, stream);
  } else {
    const VisionPlan two = plan_vision(work, 2, blocks);
    if (two.time < three.time) {
      using Shape = VisionShape<T, 128, 2, 128, 2, 2, 16, true>;
      return launch_vision_shape<Shape>(work, two.cut, blocks, stream);
    }
    using Shape = VisionShape<T, 128, 3, 96, 3, 1, 16, false>;
    return launch_vision_shape<Shape>(work, three.cut, blocks, stream);
  }
}

}  // namespace lightvl::cuda
