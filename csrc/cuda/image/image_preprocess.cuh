// Resizes pictures as Pillow's Image.resize(BICUBIC) does, bit for bit, and writes normalised
// patches: a thread computes one pixel of a tile from all source pixels in its window.
//
// The inner pass (across, or down where Pillow goes down first) is rounded to 8 bits per line of
// the window, as Pillow's first pass is, and recomputed rather than kept: simple, not yet fast.
// Sums are kept modulo 2^32, which holds the whole sum.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

constexpr int kImageThreads = 128;

// Input pixels [first, end) of one output and their weights.
struct ResizeWindow {
  int first, end;
  int last_input;         // of the axis: behind it weights are 0
  const uint32_t* pairs;  // of two pixels: high parts, low parts

  __device__ ResizeWindow(const cpu::ResizeAxis& axis, int64_t i)
      : first(2 * axis.first_pair[i]),
        end(2 * axis.end_pair[i]),
        last_input(axis.in_size - 1),
        pairs(axis.weights + i * axis.max_pairs * 2) {}

  __device__ uint32_t weight(int at) const {
    const uint32_t* pair = pairs + (at - first) / 2 * 2;
    const int shift = at % 2 * 16;
    const auto high = static_cast<int16_t>(pair[0] >> shift);
    const auto low = static_cast<uint16_t>(pair[1] >> shift);
    return (static_cast<uint32_t>(high) << cpu::kLowWeightBits) + low;
  }
  __device__ int64_t input(int at) const { return at < last_input ? at : last_input; }
};

struct Rgb {
  uint32_t value[3];
};

constexpr uint32_t kHalf = 1u << (cpu::kWeightBits - 1);

__device__ inline void accumulate(Rgb& sum, uint32_t weight, const Rgb& pixel) {
#pragma unroll
  for (int c = 0; c < 3; ++c) sum.value[c] += weight * pixel.value[c];
}

__device__ inline Rgb rounded(const Rgb& sum) {
  Rgb result;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const int value = static_cast<int32_t>(sum.value[c]) >> cpu::kWeightBits;
    result.value[c] = static_cast<uint32_t>(min(max(value, 0), 255));
  }
  return result;
}

// The pixel of windows `inner` and `outer`, whose inputs lie the given bytes apart.
__device__ inline Rgb resample(const uint8_t* pixels, const ResizeWindow& inner,
                               int64_t inner_bytes, const ResizeWindow& outer,
                               int64_t outer_bytes) {
  Rgb sum{kHalf, kHalf, kHalf};
  for (int o = outer.first; o < outer.end; ++o) {
    const uint8_t* line = pixels + outer.input(o) * outer_bytes;
    Rgb line_sum{kHalf, kHalf, kHalf};
    for (int i = inner.first; i < inner.end; ++i) {
      const uint8_t* pixel = line + inner.input(i) * inner_bytes;
      accumulate(line_sum, inner.weight(i), {pixel[0], pixel[1], pixel[2]});
    }
    accumulate(sum, outer.weight(o), rounded(line_sum));
  }
  return rounded(sum);
}

// Blocks: x = output row, y = run of the strip's columns, z = strip.
template <class T>
__global__ void __launch_bounds__(kImageThreads)
    image_preprocess_kernel(const __grid_constant__ cpu::ImagePreprocessWork p) {
  const cpu::ImageStrip& strip = p.strips[blockIdx.z];
  const int64_t x = int64_t{blockIdx.y} * kImageThreads + threadIdx.x, row = blockIdx.x;
  if (x >= p.tile_size || row >= strip.y.out_size) return;
  const ResizeWindow across(strip.x, strip.x_begin + x), down(strip.y, row);
  const int64_t row_bytes = int64_t{strip.x.in_size} * 3;
  const Rgb rgb = strip.down_first ? resample(strip.pixels, down, row_bytes, across, 3)
                                   : resample(strip.pixels, across, 3, down, row_bytes);
  const int64_t size = p.patch_size, per_side = p.tile_size / size, area = size * size;
  const int64_t y = row % p.tile_size;
  const int64_t tile = strip.first_tile + row / p.tile_size * strip.tile_step;
  const int64_t patch = (tile * per_side + y / size) * per_side + x / size;
  T* out = static_cast<T*>(p.out) + patch * 3 * area + y % size * size + x % size;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    if constexpr (std::is_same_v<T, uint8_t>) {
      out[c * area] = static_cast<uint8_t>(rgb.value[c]);
    } else {
      out[c * area] = from_float<T>(p.table[c * 256 + rgb.value[c]]);
    }
  }
}

template <class T>
cudaError_t launch_image_preprocess(const ImagePreprocessWork& work, cudaStream_t stream) {
  const cpu::ImagePreprocessWork& p = work.work;
  if (p.num_strips == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(work.max_rows),
                  static_cast<unsigned>((p.tile_size + kImageThreads - 1) / kImageThreads),
                  static_cast<unsigned>(p.num_strips));
  image_preprocess_kernel<T><<<grid, kImageThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace lightvl::cuda
