// Vision attention for sm_90a: no mask, segments of a packed batch, warpgroup products and TMA.
//
// Blocks stay and take items (vision_items.cuh) in turn. A block is a producer warp and a few
// consumer warpgroups, each with a tile of 64 queries of the item's head; they share its keys.
//   producer   queries by TMA, keys and values in blocks into a ring, ahead into the next item.
//   consumer   S = Q K^T, both from shared memory; softmax in registers; O += P V, P in registers.
// While a warpgroup has its softmax, others multiply. Keys that don't fill a block are a masked
// block, the first, with zeros for values that aren't there. The rest depends on the head dim:
//   64    products take as long as exponentials: S of the next block is asked for before P V of
//         this one, warpgroups ask in turns, and items run into each other, with output between
//         two products (vision_chain.cuh). Up to 16 keys beyond the blocks are a tail, copied by a
//         second warp, that joins the first block's softmax. A segment's single last row gets a
//         warpgroup without a tile (vision_odd_row.cuh).
//   128   an item at a time (vision_blocks.cuh). Three warpgroups that wait for their products, so
//         that P needs no registers beside S; or two that overlap and take tails like those at 64,
//         where two tiles an item cut a call better.
// A slot's `full` barrier flips when TMA has delivered, `empty` when all consumer warps have read;
// an item's, whose description lies beside its queries, when all of their lanes have.
#pragma once

#include "cuda/attention/vision_blocks.cuh"
#include "cuda/attention/vision_chain.cuh"
#include "cuda/attention/vision_plan.cuh"
#include "cuda/attention/vision_producer.cuh"
#include "cuda/common/device.cuh"
#include "cuda/common/launch.cuh"

namespace lightvl::cuda {

template <class Shape>
__device__ void init_vision(VisionShared<Shape>& shared) {
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = 4 * Shape::kGroups;
    for (int i = 0; i < Shape::kQueryBuffers; ++i) {
      init_barrier(shared.query_full[i], Shape::kTailKeys > 0 ? 2 : 1);
      init_barrier(shared.query_empty[i], 32 * kConsumerWarps);
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
  if constexpr (Shape::kChained) {
    auto* operand = reinterpret_cast<uint32_t*>(shared.odd_operand.of);
    for (auto i = threadIdx.x; i < sizeof(shared.odd_operand.of) / 4; i += Shape::kThreads) {
      operand[i] = 0;
    }
  }
  if constexpr (Shape::kOnes) {
    for (auto i = threadIdx.x; i < Shape::kKeys * 64; i += Shape::kThreads) {
      shared.ones.of[i] = from_float<typename Shape::T>(1.0f);
    }
  }
  fence_proxy_async();
  __syncthreads();
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    vision_attention_sm90_kernel(const __grid_constant__ VisionTask task) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  auto& shared = *reinterpret_cast<VisionShared<Shape>*>(bytes);
  if (threadIdx.x == 0) {
    prefetch_map(task.query);
    prefetch_map(task.key);
    prefetch_map(task.value);
  }
  init_vision<Shape>(shared);
  if (threadIdx.x / 128 == Shape::kGroups) {
    give_registers<Shape::kProducerRegisters>();
    const int warp = threadIdx.x / 32 - 4 * Shape::kGroups;
    if (warp == 0) VisionProducer<Shape>(task, shared).run();
    if constexpr (Shape::kTailKeys > 0) {
      if (warp == 1) VisionProducer<Shape>(task, shared).run_tails();
    }
  } else {
    take_registers<Shape::kConsumerRegisters>();
    if constexpr (Shape::kChained) {
      VisionChain<Shape>(task, shared).run();
    } else {
      VisionBlocks<Shape>(task, shared).run();
    }
  }
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
  const int64_t most_items = (work.max_len + kTileRows - 1) / kTileRows * p.num_heads * p.num_seqs;
  constexpr auto kernel = vision_attention_sm90_kernel<Shape>;
  constexpr int kBytes = sizeof(VisionShared<Shape>);
  status = allow_shared_memory<kernel>(kBytes);
  if (status != cudaSuccess) return status;
  const auto grid = static_cast<unsigned>(std::min(blocks, most_items));
  return launch_kernel<kernel>(LaunchConfig(grid, Shape::kThreads, kBytes, stream), task);
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
  // Times of items of one tile, of two, ..., relative to each other, as measured.
  if constexpr (kHeadDim == 64) {
    using Shape = VisionShape<T, 64, 3, 128, 4, 2>;
    const VisionPlan plan = plan_vision(work, blocks, true, {9, 12, 15});
    return launch_vision_shape<Shape>(work, plan.cut, blocks, stream);
  } else {
    const VisionPlan three = plan_vision(work, blocks, false, {21, 22, 23});
    const VisionPlan two = plan_vision(work, blocks, false, {13, 16});
    if (two.time < three.time) {
      using Shape = VisionShape<T, 128, 2, 128, 2, 2>;
      return launch_vision_shape<Shape>(work, two.cut, blocks, stream);
    }
    using Shape = VisionShape<T, 128, 3, 112, 3, 1>;
    return launch_vision_shape<Shape>(work, three.cut, blocks, stream);
  }
}

}  // namespace lightvl::cuda
