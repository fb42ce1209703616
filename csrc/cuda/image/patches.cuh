// Finished pixels: normalised by a table, put together as patches in shared memory, written out.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/image/layout.h"
#include "cuda/image/resample.cuh"

namespace lightvl::cuda {

// The sums of a pass may overshoot the 8 bits by up to 64 on both sides (bicubic weights that add
// up to 1 are below -1/4 together at no phase): the table goes on there, in place of clamping.
constexpr int kTableSize = 512, kOvershoot = 64;
static_assert(kImageThreads == 256, "a thread an entry");

// What each channel's 8-bit values become: (value / 255 - mean) / std.
template <class T>
__device__ T normalised(const ImageLaunch& p, int c, int value) {
  if constexpr (std::is_same_v<T, uint8_t>) {
    return static_cast<uint8_t>(value);
  } else {
    // value / 255, correctly rounded: the product with the reciprocal, then one correction.
    const float exact = static_cast<float>(value), near = exact * (1.0f / 255.0f);
    const float share = fmaf(fmaf(-255.0f, near, exact), 1.0f / 255.0f, near);
    return from_float<T>(__fdiv_rn(__fsub_rn(share, p.mean_std[c]), p.mean_std[3 + c]));
  }
}

template <class T>
__device__ void fill_table(const ImageLaunch& p, T* table) {
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    table[c * kTableSize + kOvershoot + threadIdx.x] = normalised<T>(p, c, threadIdx.x);
  }
}

// The entries beyond both ends, once the others are there.
template <class T>
__device__ void extend_table(T* table) {
  const int i = threadIdx.x;
  if (i >= 3 * kOvershoot) return;
  T* channel = table + i / kOvershoot * kTableSize;
  channel[i % kOvershoot] = channel[kOvershoot];
  channel[kOvershoot + 256 + i % kOvershoot] = channel[kOvershoot + 255];
}

// Places in shared memory from here on are none.
constexpr uint32_t kNowhere = 1u << 30;

// Puts the entry of channel c for a sum of weighted inputs, of which kOvershoot was added, at
// `place` + `offset`, if there is one. `table` is a multiple of a channel's bytes. A predicate is
// cheaper here than a branch.
template <class T>
__device__ void store_entry(uint32_t place, uint32_t offset, uint32_t table, int c, int sum) {
  constexpr unsigned kMask = (kTableSize - 1) * sizeof(T);
  const unsigned scaled = static_cast<unsigned>(sum) / ((1u << cpu::kWeightBits) / sizeof(T));
  const uint32_t from = ((scaled & kMask) | table) + c * kTableSize * static_cast<int>(sizeof(T));
  const uint32_t to = place + offset;
  uint32_t bits;
  if constexpr (sizeof(T) == 4) {
    asm("ld.shared.b32 %0, [%1];" : "=r"(bits) : "r"(from));
    asm volatile("{ .reg .pred p; setp.lt.u32 p, %2, %3; @p st.shared.b32 [%0], %1; }" ::"r"(to),
                 "r"(bits), "r"(place), "n"(kNowhere));
  } else if constexpr (sizeof(T) == 2) {
    asm("ld.shared.u16 %0, [%1];" : "=r"(bits) : "r"(from));
    asm volatile("{ .reg .pred p; setp.lt.u32 p, %2, %3; @p st.shared.u16 [%0], %1; }" ::"r"(to),
                 "r"(bits), "r"(place), "n"(kNowhere));
  } else {
    asm("ld.shared.u8 %0, [%1];" : "=r"(bits) : "r"(from));
    asm volatile("{ .reg .pred p; setp.lt.u32 p, %2, %3; @p st.shared.u8 [%0], %1; }" ::"r"(to),
                 "r"(bits), "r"(place), "n"(kNowhere));
  }
}

// The part of a tile that a block makes; its patches lie in shared memory as [rows of patches,
// patches in a row, 3, patch_size, patch_size]. Along an axis it has whole patches or lies in one.
struct BlockPatches {
  int tile_x, tile_y;
  int x, y, width, height;  // pixels in the tile
  int across, down;         // patches
};

// Offsets in there of the block's columns or rows.
__device__ inline int column_place(int x, int size) {
  const int patch = divide(x, size);
  return patch * 3 * size * size + x - patch * size;
}
__device__ inline int row_place(int y, int size, int across) {
  const int patch = divide(y, size);
  return patch * across * 3 * size * size + (y - patch * size) * size;
}

// Writes whole patches 16 bytes at once where they are aligned; of parts of patches each element.
template <class T>
__device__ void write_patches(const ImageLaunch& p, const ImageTarget& target,
                              const BlockPatches& block, const T* pixels) {
  const int size = p.patch_size, area = size * size, run = block.across * 3 * area;
  const int patch_x = divide(block.x, size), patch_y = divide(block.y, size);
  const int64_t tile = target.first_tile + int64_t{block.tile_y} * target.cols + block.tile_x;
  T* out =
      static_cast<T*>(p.out) + ((tile * p.per_side + patch_y) * p.per_side + patch_x) * 3 * area;
  const int step = p.per_side * 3 * area;
  constexpr int kPack = 16 / sizeof(T);
  const bool whole = block.width == block.across * size && block.height == block.down * size;
  if (whole && (run | step) % kPack == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0) {
    for (int row = 0; row < block.down; ++row, out += step, pixels += run) {
      for (int i = threadIdx.x; i < run / kPack; i += kImageThreads) {
        reinterpret_cast<uint4*>(out)[i] = reinterpret_cast<const uint4*>(pixels)[i];
      }
    }
    return;
  }
  out += (block.y - patch_y * size) * size + block.x - patch_x * size;
  for (int row = 0; row < block.down; ++row, out += step, pixels += run) {
#pragma unroll 1
    for (int i = threadIdx.x; i < run; i += kImageThreads) {
      const bool inside = (block.width >= size || i % size < block.width) &&
                          (block.height >= size || i / size % size < block.height);
      if (inside) out[i] = pixels[i];
    }
  }
}

}  // namespace lightvl::cuda
