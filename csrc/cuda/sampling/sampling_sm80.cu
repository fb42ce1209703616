#include "cuda/launchers.h"
#include "cuda/sampling/sample.cuh"

namespace lightvl::cuda {

int sample(const SampleWork& work, Stream stream) {
  if (work.scores == nullptr) return sample_in_clusters(work.params, stream);
  return dispatch_dtype(work.params.dtype, [&]<class T>(std::type_identity<T>) {
    return launch_sample<T>(work, stream);
  });
}

}  // namespace lightvl::cuda
