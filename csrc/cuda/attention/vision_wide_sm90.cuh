// Vision attention for sm_90a at head dim 128, where products take twice as long as the softmax's
// exponentials: an item at a time, and registers for larger accumulators. Items, producer warp,
// consumer warpgroups and barriers are those of vision_sm90.cuh; the differences:
//   keys       those that don't fill a block come first through the ring, in a masked block of 16,
//              32, 64 or all columns, with zeros for the values of what isn't there.
//   items      end before the next begins; the producer has its keys loaded by then.
//   overlap    with three warpgroups only that among them: each waits for its own products, so
//              that P needs no registers beside S. With two warpgroups, which a small call gets,
//              also the softmax of a block during the P V of the one before.
#pragma once

#include "cuda/attention/vision_plan.cuh"
#include "cuda/attention/vision_wide_consumer.cuh"
#include "cuda/attention/vision_wide_producer.cuh"
#include "cuda/common/device.cuh"
#include "cuda/common/launch.cuh"

namespace lightvl::cuda::wide {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    vision_attention_sm90_kernel(const __grid_constant__ VisionTask task) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  auto& shared = *reinterpret_cast<VisionShared<Shape>*>(bytes);
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = 4 * Shape::kGroups;
    for (int i = 0; i < Shape::kQueryBuffers; ++i) {
      init_barrier(shared.query_full[i], 1);
      init_barrier(shared.query_empty[i], kConsumerWarps);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      init_barrier(shared.key_full[i], 1);
      init_barrier(shared.value_full[i], 1);
      init_barrier(shared.key_empty[i], kConsumerWarps);
      init_barrier(shared.value_empty[i], kConsumerWarps);
    }
    init_barrier(shared.rest_landed, 1);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x / 128 == Shape::kGroups) {
    give_registers<Shape::kProducerRegisters>();
    if (threadIdx.x / 32 == 4 * Shape::kGroups) VisionProducer<Shape>(task, shared).run();
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
                        p.out,
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

}  // namespace lightvl::cuda::wide
