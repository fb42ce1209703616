#include <algorithm>

#include "cuda/launchers.h"
#include "cuda/sampling/cluster_sample.cuh"

namespace lightvl::cuda {
namespace {

constexpr int64_t kMaxSlice = 48 * 1024;  // scores that a block's shared memory holds
constexpr int64_t kWorthABlock = 2048;    // scores

template <class T>
cudaError_t launch_clusters(const SampleParams& p, cudaStream_t stream) {
  int device = 0, num_processors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&num_processors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  int blocks = 1;
  while (blocks < kMaxRowBlocks && p.vocab_size > blocks * kWorthABlock) blocks *= 2;
  const int64_t chunks = (p.vocab_size + 63) / 64;
  RowPlan plan{static_cast<int>((chunks + blocks - 1) / blocks * 64),
               static_cast<int>(p.num_sequences)};
  const auto kernel = sample_cluster_kernel<T>;
  const int bytes = (plan.slice + 8) * 4;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = {static_cast<unsigned>(p.num_sequences * blocks), 1, 1};
  config.blockDim = {kRowThreads, 1, 1};
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  if (p.num_sequences * blocks > num_processors) {  // not all rows may fit at once
    status = cudaOccupancyMaxActiveClusters(&plan.rows_ahead, kernel, &config);
    if (status != cudaSuccess) return status;
  }
  return cudaLaunchKernelEx(&config, kernel, p, plan);
}

}  // namespace

bool cluster_holds_row(int64_t vocab_size, int device) {
  int major = 0;
  return vocab_size <= kMaxRowBlocks * kMaxSlice &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 9;
}

int sample_in_clusters(const SampleParams& p, Stream stream) {
  if (p.num_sequences == 0) return cudaSuccess;
  return dispatch_dtype(
      p.dtype, [&]<class T>(std::type_identity<T>) { return launch_clusters<T>(p, stream); });
}

}  // namespace lightvl::cuda
