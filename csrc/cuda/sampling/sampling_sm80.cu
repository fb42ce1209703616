#include "cuda/launchers.h"
#include "cuda/sampling/sample.cuh"

namespace lightvl::cuda {

int sample(const SampleWork& work, Stream stream) {
  if (work.scores == nullptr) return sample_in_clusters(work.params, stream);
  return dispatch_dtype(work.params.dtype, [&]<class T>(std::type_identity<T>) {
    return launch_sample<T>(work, stream);
  });
}

#ifndef LIGHTVL_SM90  // a build without sampling_sm90.cu
bool cluster_holds_row(int64_t, int) { return false; }
int sample_in_clusters(const SampleParams&, Stream) { return cudaErrorInvalidDeviceFunction; }
#endif

}  // namespace lightvl::cuda
