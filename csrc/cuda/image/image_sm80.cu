#include <algorithm>
#include <vector>

#include "cuda/common/device.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/image/image_plain.cuh"
#include "cuda/image/image_preprocess.cuh"
#include "cuda/image/plan.h"
#include "cuda/launchers.h"

namespace lightvl::cuda {
namespace {

ImageTarget make_target(const ImageSource& source, int64_t tile_size) {
  ImageTarget target{};
  target.pixels = source.pixels;
  target.axis[0] = make_axis(source.width, source.cols * tile_size);
  target.axis[1] = make_axis(source.height, source.rows * tile_size);
  target.first_tile = source.first_tile;
  target.cols = source.cols;
  target.down_first = goes_down_first(target.axis[0], target.axis[1]);
  return target;
}

// Cuts a target into blocks; says how many.
int cut(ImageTarget& target, int64_t tile_size) {
  const int x = target.down_first ? 1 : 0;
  const auto blocks = [&](int axis) {
    return static_cast<int32_t>(tile_size / target.layout.outputs[axis]);
  };
  target.blocks_across = blocks(x);
  target.blocks_down = blocks(1 - x);
  const int64_t tiles = target.axis[1].out_size / tile_size * target.cols;
  return static_cast<int>(tiles) * target.blocks_across * target.blocks_down;
}

// Numbers the blocks of a launch, those that take long first; says how many.
int number_blocks(ImageLaunch& p) {
  std::stable_sort(p.targets, p.targets + p.num_targets,
                   [](const auto& a, const auto& b) { return a.block_cost > b.block_cost; });
  int total = 0;
  for (int i = 0; i < p.num_targets; ++i) {
    p.targets[i].first_block = total;
    total += cut(p.targets[i], p.tile_size);
  }
  return total;
}

// Bytes of shared memory that a block can have beside the kernel's own.
int shared_limit() {
  constexpr int kOwn = 10 << 10;
  return device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>() - kOwn;
}

template <class T, int kBlocks>
cudaError_t launch_as(const ImageLaunch& p, int num_blocks, int num_bytes, cudaStream_t stream) {
  constexpr auto kernel = image_preprocess_kernel<T, kBlocks>;
  cudaError_t status = once_per_device([=] {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                cudaSharedmemCarveoutMaxShared);
  });
  if (status == cudaSuccess) status = allow_shared_memory<kernel>(shared_limit());
  if (status != cudaSuccess) return status;
  return launch_kernel<kernel>(LaunchConfig(num_blocks, kImageThreads, num_bytes, stream).overlap(),
                               p);
}

template <class T>
cudaError_t launch_blocks(ImageLaunch& p, cudaStream_t stream) {
  if (p.num_targets == 0) return cudaSuccess;
  const int num_blocks = number_blocks(p);
  int num_bytes = 0;
  for (int i = 0; i < p.num_targets; ++i) {
    num_bytes = std::max(num_bytes, p.targets[i].layout.num_bytes);
  }
  const bool thirds = num_bytes <= kThirdOfShared;
  p.first_wave = device_attribute<cudaDevAttrMultiProcessorCount>() * (thirds ? 3 : 2);
  const auto launch = thirds ? launch_as<T, 3> : launch_as<T, 2>;
  const cudaError_t status = launch(p, num_blocks, num_bytes, stream);
  p.num_targets = 0;
  return status;
}

template <class T>
cudaError_t launch_plain(ImageLaunch p, const ImageTarget& target, cudaStream_t stream) {
  p.targets[0] = target;
  const int64_t pixels = int64_t{target.axis[0].out_size} * target.axis[1].out_size;
  const auto grid = static_cast<unsigned>((pixels + kImageThreads - 1) / kImageThreads);
  return launch_kernel<image_plain_kernel<T>>(LaunchConfig(grid, kImageThreads, 0, stream), p);
}

// Chooses the blocks of a call's targets: those that let three share a multiprocessor if all of
// them run at once then, else larger ones.
class Plan {
 public:
  Plan(const ImagePreprocessWork& work, int64_t element_bytes)
      : work_(work), element_bytes_(element_bytes), sides_(work.tile_size, work.patch_size) {
    int64_t num_tiles = 0;
    for (int64_t i = 0; i < work.num_sources; ++i) {
      targets_.push_back(make_target(work.sources[i], work.tile_size));
      num_tiles += int64_t{work.sources[i].cols} * work.sources[i].rows;
    }
    most_ = num_tiles * work.tile_size * work.tile_size / (2 * num_processors_);
    if (!choose_small()) {
      for (ImageTarget& target : targets_) {
        if (!choose(target, kHalfOfShared, true) && !choose(target, shared_limit(), false)) {
          target.layout.num_bytes = 0;
        }
      }
    }
  }

  // Of those that no block fits layout.num_bytes is 0.
  const std::vector<ImageTarget>& targets() const { return targets_; }

 private:
  bool choose(ImageTarget& target, int64_t limit, bool whole) const {
    return choose_layout(target, sides_, work_.patch_size, element_bytes_, most_,
                         std::min<int64_t>(limit, shared_limit()), whole);
  }
  bool choose_small() {
    int64_t num_blocks = 0;
    for (ImageTarget& target : targets_) {
      if (!choose(target, kThirdOfShared, true)) return false;
      num_blocks += cut(target, work_.tile_size);
      if (num_blocks > 3 * num_processors_) return false;
    }
    return true;
  }

  const ImagePreprocessWork& work_;
  int64_t element_bytes_;
  SideLengths sides_;
  int64_t num_processors_ = std::max(device_attribute<cudaDevAttrMultiProcessorCount>(), 1);
  int64_t most_;
  std::vector<ImageTarget> targets_;
};

// One launch for every kMaxTargets targets.
template <class T>
cudaError_t launch_all(const ImagePreprocessWork& work, cudaStream_t stream) {
  ImageLaunch launch{};
  launch.tile_size = static_cast<int32_t>(work.tile_size);
  launch.patch_size = static_cast<int32_t>(work.patch_size);
  launch.per_side = static_cast<int32_t>(work.tile_size / work.patch_size);
  std::copy_n(work.mean_std, 6, launch.mean_std);
  launch.out = work.out;
  const Plan plan(work, sizeof(T));
  cudaError_t status = cudaSuccess;
  for (const ImageTarget& target : plan.targets()) {
    if (status != cudaSuccess) return status;
    if (target.layout.num_bytes == 0) {
      status = launch_plain<T>(launch, target, stream);
      continue;
    }
    launch.targets[launch.num_targets++] = target;
    if (launch.num_targets == kMaxTargets) status = launch_blocks<T>(launch, stream);
  }
  return status == cudaSuccess ? launch_blocks<T>(launch, stream) : status;
}

}  // namespace

int image_preprocess(const ImagePreprocessWork& work, Stream stream) {
  if (work.dtype == DType::kUInt8) return launch_all<uint8_t>(work, stream);
  return dispatch_dtype(
      work.dtype, [&]<class T>(std::type_identity<T>) { return launch_all<T>(work, stream); });
}

}  // namespace lightvl::cuda
