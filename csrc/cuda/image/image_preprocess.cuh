// Resizes pictures as Pillow's Image.resize(BICUBIC) does, bit for bit, and writes normalised
// patches: a thread block makes up to 64 x 64 pixels of a tile from the source pixels around them.
//
// Across first (down first is the same with rows and columns swapped):
// 1. The weights of the block's columns and rows (weights.cuh), while the first rows are copied.
// 2. For each chunk of source rows: raw bytes arrive by asynchronous copies while the chunk before
//    is resampled; they are split by channel, [channel, row, column]; the first pass
//    (resample.cuh) rounds its sums to 8 bits and stores them turned, [channel, column, row].
// 3. The second pass makes [channel, row, column] of the output.
// 4. Each value is looked up in a table of normalised values and written to its patch.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/image/layout.h"
#include "cuda/image/resample.cuh"
#include "cuda/image/weights.cuh"

namespace lightvl::cuda {

// The part of a target that this block makes. Index 0 is the axis resampled first.
struct ImageBlock {
  int tile_x, tile_y;        // of the target
  int x, y;                  // first pixel in the tile
  int begin[2], count[2];    // outputs of the target
  int origin[2], inputs[2];  // inputs that they need
};

__device__ inline const ImageTarget& find_target(const ImageLaunch& p) {
  int i = 0;
  while (i + 1 < p.num_targets && static_cast<int>(blockIdx.x) >= p.targets[i + 1].first_block) ++i;
  return p.targets[i];
}

// Inputs that outputs [begin, begin + count) need: the first of them, and how many.
__device__ inline void find_inputs(const ImageAxis& axis, int begin, int count, int& origin,
                                   int& inputs) {
  origin = window_of(axis, begin).first;
  inputs = window_of(axis, begin + count - 1).end - origin;
}

__device__ inline ImageBlock locate(const ImageTarget& target, int tile_size) {
  const int per_tile = target.blocks_across * target.blocks_down;
  const int index = static_cast<int>(blockIdx.x) - target.first_block;
  const int tile = index / per_tile, inside = index % per_tile;
  const bool down_first = target.down_first != 0;
  const int width = target.layout.outputs[down_first ? 1 : 0];
  const int height = target.layout.outputs[down_first ? 0 : 1];
  ImageBlock block;
  block.tile_x = tile % target.cols;
  block.tile_y = tile / target.cols;
  block.x = inside % target.blocks_across * width;
  block.y = inside / target.blocks_across * height;
  const int x = block.tile_x * tile_size + block.x, y = block.tile_y * tile_size + block.y;
  const int columns = min(width, tile_size - block.x), rows = min(height, tile_size - block.y);
  block.begin[0] = down_first ? y : x;
  block.begin[1] = down_first ? x : y;
  block.count[0] = down_first ? rows : columns;
  block.count[1] = down_first ? columns : rows;
  find_inputs(target.axis[down_first ? 1 : 0], block.begin[0], block.count[0], block.origin[0],
              block.inputs[0]);
  find_inputs(target.axis[down_first ? 0 : 1], block.begin[1], block.count[1], block.origin[1],
              block.inputs[1]);
  return block;
}

// A rectangle of source pixels.
struct SourcePart {
  const uint8_t* pixels;  // the picture's
  int64_t row_bytes, picture_bytes;
  int row, num_rows, column, num_columns;

  __device__ const uint8_t* begin_of(int r) const {
    return pixels + (row + r) * row_bytes + column * 3;
  }
};

__device__ inline SourcePart source_part(const ImageTarget& target, const ImageBlock& block,
                                         int line) {
  const int lines = min(target.layout.chunk_lines, block.inputs[1] - line);
  SourcePart part;
  part.pixels = target.pixels;
  part.row_bytes = int64_t{target.axis[0].in_size} * 3;
  part.picture_bytes = part.row_bytes * target.axis[1].in_size;
  part.row = target.down_first ? block.origin[0] : block.origin[1] + line;
  part.num_rows = target.down_first ? block.inputs[0] : lines;
  part.column = target.down_first ? block.origin[1] + line : block.origin[0];
  part.num_columns = target.down_first ? lines : block.inputs[0];
  return part;
}

__device__ inline void copy_async(void* to, const void* from) {
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from));
}

// Copies the rows in aligned packs of 16 bytes, not behind the picture's end.
__device__ inline void copy_raw(const SourcePart& part, uint8_t* raw, int stride) {
  const uint8_t* end = part.pixels + part.picture_bytes;
  for (int r = threadIdx.x / 32; r < part.num_rows; r += kImageWarps) {
    const uint8_t* begin = part.begin_of(r);
    const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(begin) % 16);
    const int num_packs = (shift + part.num_columns * 3 + 15) / 16;
    for (int i = threadIdx.x % 32; i < num_packs; i += 32) {
      const uint8_t* from = begin - shift + i * 16;
      uint8_t* to = raw + r * stride + i * 16;
      if (end - from >= 16) {
        copy_async(to, from);
      } else {
        for (int b = 0; b < end - from; ++b) to[b] = from[b];
      }
    }
  }
  asm volatile("cp.async.commit_group;");
}

// Four neighbouring pixels, one word a channel.
struct FourPixels {
  uint32_t channel[3];

  __device__ FourPixels(const uint8_t* row, int at) {
    const auto address = static_cast<uint32_t>(at);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(row) + address / 4;
    const uint32_t shift = address % 4 * 8;
    const uint32_t w0 = words[0], w1 = words[1], w2 = words[2], w3 = words[3];
    const uint32_t a = __funnelshift_r(w0, w1, shift), b = __funnelshift_r(w1, w2, shift),
                   c = __funnelshift_r(w2, w3, shift);
    channel[0] = __byte_perm(__byte_perm(a, b, 0x0630), c, 0x5210);
    channel[1] = __byte_perm(__byte_perm(a, b, 0x0741), c, 0x6210);
    channel[2] = __byte_perm(__byte_perm(a, b, 0x0052), c, 0x7410);
  }
};

// Splits raw rows by channel into lines: of the picture's rows, or of its columns if `turned`.
__device__ inline void split_channels(const SourcePart& part, const uint8_t* raw, int raw_stride,
                                      uint8_t* lines, int line_stride, int chunk_lines,
                                      bool turned) {
  const uint32_t per_row = static_cast<uint32_t>(part.num_columns + 3) / 4;
  const uint32_t reciprocal = ((1u << 28) + per_row - 1) / per_row;
  const int channel_bytes = chunk_lines * line_stride;
  const auto address = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(part.begin_of(0)));
  const auto row_bytes = static_cast<uint32_t>(part.row_bytes);
  for (uint32_t i = threadIdx.x; i < per_row * part.num_rows; i += kImageThreads) {
    const int r = static_cast<int>((uint64_t{i} * reciprocal) >> 28);
    const int x = static_cast<int>(i - r * per_row) * 4;
    const int shift = static_cast<int>((address + r * row_bytes) % 16);
    const FourPixels four(raw + r * raw_stride, shift + x * 3);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      uint8_t* channel = lines + c * channel_bytes;
      if (!turned) {
        *reinterpret_cast<uint32_t*>(channel + r * line_stride + x) = four.channel[c];
        continue;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        channel[(x + j) * line_stride + r] = static_cast<uint8_t>(four.channel[c] >> (8 * j));
      }
    }
  }
}

// Writes the block's pixels, [channel, y, x] of rows of `width`, to their patches.
template <class T, int kPack>
__device__ void write_patches(const ImageLaunch& p, const ImageTarget& target,
                              const ImageBlock& block, const uint8_t* pixels, int width, int height,
                              const T* table) {
  const int first = target.down_first ? 1 : 0;
  const int columns = block.count[first], rows = block.count[1 - first];
  const int size = p.patch_size, area = size * size, per_side = p.tile_size / size;
  const int64_t tile = target.first_tile + int64_t{block.tile_y} * target.cols + block.tile_x;
  T* out = static_cast<T*>(p.out) + tile * per_side * per_side * 3 * area;
  for (int x = threadIdx.x % 32 * kPack; x < columns; x += 32 * kPack) {
    const int in_tile = block.x + x;
    T* column = out + in_tile / size * 3 * area + in_tile % size;
    int y = threadIdx.x / 32, row = (block.y + y) % size;
    column += (block.y + y) / size * per_side * 3 * area;
    for (; y < rows; y += kImageWarps, row += kImageWarps) {
      for (; row >= size; row -= size) column += per_side * 3 * area;
      T* to = column + row * size;
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        const uint8_t* from = pixels + (c * height + y) * width + x;
        Pack<T, kPack> pack;
#pragma unroll
        for (int i = 0; i < kPack; ++i) pack.value[i] = table[c * 256 + from[i]];
        store_pack(to + c * area, pack);
      }
    }
  }
}

// What each channel's 8-bit values become: (value / 255 - mean) / std.
template <class T>
__device__ void fill_table(const ImageLaunch& p, T* table) {
  for (int i = threadIdx.x; i < 3 * 256; i += kImageThreads) {
    if constexpr (std::is_same_v<T, uint8_t>) {
      table[i] = static_cast<uint8_t>(i);
    } else {
      const int c = i / 256;
      // i / 255, correctly rounded: the product with the reciprocal, then one correction.
      const float value = static_cast<float>(i % 256), near = value * (1.0f / 255.0f);
      const float share = fmaf(fmaf(-255.0f, near, value), 1.0f / 255.0f, near);
      table[i] = from_float<T>(__fdiv_rn(__fsub_rn(share, p.mean_std[c]), p.mean_std[3 + c]));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kImageThreads, 3)
    image_preprocess_kernel(const __grid_constant__ ImageLaunch p) {
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ T table[3 * 256];
  __shared__ int base[2][kMaxOutputs / kTileOutputs];
  const ImageTarget& target = find_target(p);
  const ImageLayout& layout = target.layout;
  __shared__ ImageBlock block;
  if (threadIdx.x == 0) block = locate(target, p.tile_size);
  __syncthreads();
  uint8_t *raw = memory, *line = memory + layout.line, *middle = memory + layout.middle;
  copy_raw(source_part(target, block, 0), raw, layout.raw_stride);

  fill_table(p, table);
  int tiles[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    tiles[i] = (block.count[i] + kTileOutputs - 1) / kTileOutputs;
    auto* digits = reinterpret_cast<uint32_t*>(memory + layout.digits[i]);
    const int words = tiles[i] * layout.steps[i] * kDigits * kDigitWords;
    for (int w = threadIdx.x; w < words; w += kImageThreads) digits[w] = 0;
  }
  __syncthreads();
  auto* scratch = reinterpret_cast<double*>(line);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const ImageAxis& axis = target.axis[target.down_first ? 1 - i : i];
    BlockWeights{memory + layout.digits[i], base[i]}.fill(axis, block.begin[i], block.count[i],
                                                          block.origin[i], layout.steps[i],
                                                          layout.max_taps[i], scratch);
    scratch += layout.outputs[i] * layout.max_taps[i];
  }

  const int columns = tiles[0] * kTileOutputs;  // of the first pass, padded
  for (int begin = 0; begin < block.inputs[1]; begin += layout.chunk_lines) {
    const SourcePart part = source_part(target, block, begin);
    asm volatile("cp.async.wait_all;");
    __syncthreads();  // copies of all have arrived; the lines are free
    split_channels(part, raw, layout.raw_stride, line, layout.line_stride, layout.chunk_lines,
                   target.down_first);
    __syncthreads();
    if (begin + layout.chunk_lines < block.inputs[1]) {
      copy_raw(source_part(target, block, begin + layout.chunk_lines), raw, layout.raw_stride);
    }
    const int groups = layout.chunk_lines / 16;
    const Lines lines{line,           layout.line_stride,
                      3 * groups,     reinterpret_cast<const uint2*>(memory + layout.digits[0]),
                      base[0],        tiles[0],
                      layout.steps[0]};
    resample(lines, [&](int group, int output, uint32_t upper, uint32_t lower) {
      const int channel = (group >= groups) + (group >= 2 * groups);
      const int l = (group - channel * groups) * 16 + threadIdx.x % 32 / 4;
      uint8_t* to = middle + (channel * columns + output) * layout.middle_stride + begin + l;
      to[0] = static_cast<uint8_t>(upper);
      to[8] = static_cast<uint8_t>(lower);
      to[layout.middle_stride] = static_cast<uint8_t>(upper >> 8);
      to[layout.middle_stride + 8] = static_cast<uint8_t>(lower >> 8);
    });
  }
  __syncthreads();

  const int rows = tiles[1] * kTileOutputs;
  const int across = target.down_first ? 1 : columns, down = target.down_first ? rows : 1;
  const Lines lines{middle,
                    layout.middle_stride,
                    (3 * columns + 15) / 16,
                    reinterpret_cast<const uint2*>(memory + layout.digits[1]),
                    base[1],
                    tiles[1],
                    layout.steps[1]};
  resample(lines, [&](int group, int output, uint32_t upper, uint32_t lower) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int l = group * 16 + half * 8 + threadIdx.x % 32 / 4;
      if (l >= 3 * columns) return;
      const int channel = (l >= columns) + (l >= 2 * columns);
      // Without turning: [channel, output, line]; turned: [channel, line, output].
      uint8_t* to =
          raw + channel * columns * rows + (l - channel * columns) * down + output * across;
      const uint32_t pair = half == 0 ? upper : lower;
      to[0] = static_cast<uint8_t>(pair);
      to[across] = static_cast<uint8_t>(pair >> 8);
    }
  });
  __syncthreads();

  const int width = target.down_first ? rows : columns, height = target.down_first ? columns : rows;
  if (p.patch_size % 2 == 0 && target.layout.outputs[target.down_first] % 2 == 0) {
    write_patches<T, 2>(p, target, block, raw, width, height, table);
  } else {
    write_patches<T, 1>(p, target, block, raw, width, height, table);
  }
}

}  // namespace lightvl::cuda
