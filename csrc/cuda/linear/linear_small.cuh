// out = x * weight^T for up to 16 rows of x, with bias, silu(gate) * up, or a residual added.
//
// The weight is read once and is all that counts. A block, or a cluster of two, owns a band of its
// rows and walks over it in passes of up to 8 * kTiles rows; in a pass the columns are dealt to the
// warps in chunks. The warps' partial sums meet in shared memory and are added in the order of the
// warps, so that a result depends neither on timing nor on the other rows of x. In a cluster, a
// block reads half as much of x, which counts where a band has fewer rows than x.
//
// With programmatic launch, the next kernel of the stream starts as soon as this one's blocks run,
// and this one asks for its first chunks of the weight before the kernel that makes x has ended.
// Where a block takes less than half of an SM's shared memory, two kernels of a chain share the SM:
// one streams while the other waits for x, adds up and ends.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/linear/linear_epilogue.cuh"
#include "cuda/linear/linear_ring.cuh"

namespace lightvl::cuda {

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    linear_small_kernel(const __grid_constant__ LinearSmallParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  let_next_begin();  // it waits for our end, and we wait for what is before us
  LinearEpilogue<T, Shape> epilogue(p, shared);
  const int source = epilogue.rank * Shape::kWarps + epilogue.warp;
  const RowRange band = RowRange{0, static_cast<int>(p.out_width)}.part(
      blockIdx.x / Shape::kCluster, gridDim.x / Shape::kCluster);
  LinearRing<T, Shape> ring(p, band, source, shared);
  RowRange rows = band.part(0, ring.num_passes);
  ring.prefetch_x();
  epilogue.prefetch_residual(rows);
  ring.fill_weight();
  epilogue.load_bias(rows);
  wait_for_previous();
  epilogue.load_residual(rows);
  ring.fill_x();
  for (int pass = 0; pass < ring.num_passes; ++pass) {
    if (pass > 0) {
      rows = band.part(pass, ring.num_passes);
      epilogue.load_bias(rows);
      epilogue.load_residual(rows);
    }
    float sum[Shape::kTiles][4]{};
    ring.multiply_pass(sum);
    epilogue.finish(sum, rows, pass);
  }
}

template <class T, class Shape>
cudaError_t launch_shape(const LinearSmallParams& p, int clusters, cudaStream_t stream) {
  constexpr auto kernel = linear_small_kernel<T, Shape>;
  const cudaError_t status = allow_shared_memory<kernel>(Shape::kSharedBytes);
  if (status != cudaSuccess) return status;
  LaunchConfig config(clusters * Shape::kCluster, Shape::kThreads, Shape::kSharedBytes, stream);
  if constexpr (Shape::kCluster > 1) config.cluster(Shape::kCluster);
  return launch_kernel<kernel>(config.overlap(), p);
}

}  // namespace lightvl::cuda
