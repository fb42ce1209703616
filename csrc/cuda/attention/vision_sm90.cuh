// Vision attention for sm_90a: no mask, segments of a packed batch, warpgroup products and TMA.
//
// Blocks stay and take items (vision_items.cuh) in turn. A block is a producer warp and a few
// consumer warpgroups, each with a tile of 64 queries of the item's head; they share its keys.
//   producer   queries by TMA into one of two buffers, keys and values in blocks into a ring; runs
//              ahead into the next item. A second warp copies the tail, up to 16 keys that don't
//              fill a block; more of them are a masked block, the first.
//   consumer   S = Q K^T, both from shared memory; softmax in registers; O += P V, P in registers.
//              The tail is multiplied by narrow products and joins the first block's softmax.
// Softmax overlaps products in two ways: a warpgroup asks for S of the next block before it asks
// for P V of this one and takes the next softmax while that runs; and warpgroups ask for products
// in turns, so that one has its softmax while others multiply. Items run into each other: the next
// one's first S is asked for with this one's last P V, and output is between.
// A slot's `full` barrier flips when TMA has delivered, `empty` when all consumer warps have read.
// Head dim 128 is in vision_wide_sm90.cuh.
#pragma once

#include "cuda/attention/vision_consumer.cuh"
#include "cuda/attention/vision_plan.cuh"
#include "cuda/attention/vision_producer.cuh"
#include "cuda/attention/vision_wide_sm90.cuh"
#include "cuda/common/device.cuh"
#include "cuda/common/launch.cuh"

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
  const auto grid = static_cast<unsigned>(std::min(blocks, items));
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
  const VisionPlan three = plan_vision(work, 3, blocks);
  if constexpr (kHeadDim == 64) {
    using Shape = VisionShape<T, 64, 3, 128, 4, 2, 16, 1, true>;
    return launch_vision_shape<Shape>(work, three.cut, blocks, stream);
  } else {
    const VisionPlan two = plan_vision(work, 2, blocks);
    if (two.time < three.time) {
      using Shape = wide::VisionShape<T, 128, 2, 128, 2, 2, true>;
      return wide::launch_vision_shape<Shape>(work, two.cut, blocks, stream);
    }
    using Shape = wide::VisionShape<T, 128, 3, 112, 3, 1, false>;
    return wide::launch_vision_shape<Shape>(work, three.cut, blocks, stream);
  }
}

}  // namespace lightvl::cuda
