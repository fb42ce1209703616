// The same resize for pictures that shrink so much that no block's windows fit shared memory: a
// thread computes one pixel from all source pixels in its window, weights included. Slow.
#pragma once

#include "cuda/image/image_preprocess.cuh"

namespace lightvl::cuda {

// Calls f(input, weight) for the inputs of an output.
template <class F>
__device__ void for_window(const ImageAxis& axis, int output, F&& f) {
  const ImageWindow window = window_of(axis, output);
  const bool unchanged = axis.in_size == axis.out_size;
  const auto weight = [&](int input) {
    const double x = __dmul_rn(__dadd_rn(__dsub_rn(input, window.center), 0.5), axis.inverse);
    return unchanged ? 1.0 : bicubic(x);
  };
  double sum = 0.0;
  for (int i = window.first; i < window.end; ++i) sum = __dadd_rn(sum, weight(i));
  for (int i = window.first; i < window.end; ++i) {
    f(i, to_fixed_point(sum != 0.0 ? __ddiv_rn(weight(i), sum) : weight(i)));
  }
}

__device__ inline int rounded(int sum) { return min(max(sum >> cpu::kWeightBits, 0), 255); }

template <class T>
__global__ void __launch_bounds__(kImageThreads)
    image_plain_kernel(const __grid_constant__ ImageLaunch p) {
  __shared__ T table[3 * kTableSize];
  fill_table(p, table);
  __syncthreads();
  const ImageTarget& target = p.targets[0];
  const int64_t width = target.axis[0].out_size;
  const int64_t index = int64_t{blockIdx.x} * kImageThreads + threadIdx.x;
  if (index >= width * target.axis[1].out_size) return;
  const int at[2] = {static_cast<int>(index % width), static_cast<int>(index / width)};
  const int inner = target.down_first;
  const int64_t row_bytes = int64_t{target.axis[0].in_size} * 3;
  const int64_t step[2] = {3, row_bytes};
  constexpr int kHalf = 1 << (cpu::kWeightBits - 1);
  int sum[3] = {kHalf, kHalf, kHalf};
  for_window(target.axis[1 - inner], at[1 - inner], [&](int o, int outer_weight) {
    int part[3] = {kHalf, kHalf, kHalf};
    for_window(target.axis[inner], at[inner], [&](int i, int weight) {
      const uint8_t* pixel = target.pixels + o * step[1 - inner] + i * step[inner];
      for (int c = 0; c < 3; ++c) part[c] += weight * pixel[c];
    });
    for (int c = 0; c < 3; ++c) sum[c] += outer_weight * rounded(part[c]);
  });
  const int size = p.patch_size, area = size * size, per_side = p.tile_size / size;
  const int x = at[0] % p.tile_size, y = at[1] % p.tile_size;
  const int64_t tile =
      target.first_tile + int64_t{at[1] / p.tile_size} * target.cols + at[0] / p.tile_size;
  const int64_t patch = (tile * per_side + y / size) * per_side + x / size;
  T* out = static_cast<T*>(p.out) + patch * 3 * area + y % size * size + x % size;
  for (int c = 0; c < 3; ++c) out[c * area] = table[c * kTableSize + kOvershoot + rounded(sum[c])];
}

}  // namespace lightvl::cuda
