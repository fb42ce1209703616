#include "cuda/embedding/gather_embeddings.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

int gather_embeddings(const GatherEmbeddingsParams& p, Stream stream) {
  return launch_gather_embeddings(p, stream);
}

}  // namespace lightvl::cuda
