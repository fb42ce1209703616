// Resizes pictures as Pillow's Image.resize(BICUBIC) does, bit for bit, and writes normalised
// patches: a thread block makes up to 128 x 128 pixels of a tile from the source pixels around
// them.
//
// Across first (down first is the same with rows and columns swapped):
// 1. The weights of the block's columns and rows (weights.cuh), while the first rows are copied.
// 2. For each chunk of source rows: raw bytes arrive by asynchronous copies while the chunk before
//    is resampled (source.cuh, resample.cuh); the sums are rounded to 8 bits and stored turned,
//    [channel, column, row].
// 3. The second pass looks its sums up in a table of normalised values and puts them where they
//    belong in the block's patches, which are then written out (patches.cuh).
#pragma once

#include "cuda/image/patches.cuh"
#include "cuda/image/source.cuh"

namespace lightvl::cuda {

// What a block makes. Index 0 is the axis resampled first.
struct ImageBlock {
  BlockPatches patches;
  BlockSide side[2];
};

__device__ inline const ImageTarget& find_target(const ImageLaunch& p) {
  int i = 0;
  while (i + 1 < p.num_targets && static_cast<int>(blockIdx.x) >= p.targets[i + 1].first_block) ++i;
  return p.targets[i];
}

// Filled by two threads, one an axis.
__device__ inline void locate(const ImageTarget& target, int tile_size, ImageBlock& block) {
  if (threadIdx.x >= 2) return;
  const int per_tile = target.blocks_across * target.blocks_down;
  const int index = static_cast<int>(blockIdx.x) - target.first_block;
  const int tile = index / per_tile, inside = index % per_tile;
  const int down_first = target.down_first;
  const int width = target.layout.outputs[down_first];
  const int height = target.layout.outputs[1 - down_first];
  const int x = inside % target.blocks_across * width, y = inside / target.blocks_across * height;
  const int tile_x = tile % target.cols, tile_y = tile / target.cols;
  if (threadIdx.x == 0) {
    block.patches = {target.first_tile + tile, x, y, width, height};
    block.side[down_first] = BlockSide(target.axis[0], tile_x * tile_size + x, width);
  } else {
    block.side[1 - down_first] = BlockSide(target.axis[1], tile_y * tile_size + y, height);
  }
}

// The weights of all outputs of a block; a thread or some lanes of a warp make those of one.
__device__ inline void fill_all_weights(const ImageTarget& target, const ImageBlock& block,
                                        uint8_t* memory,
                                        int (&base)[2][kMaxOutputs / kTileOutputs]) {
  const ImageLayout& layout = target.layout;
  auto* scratch = reinterpret_cast<double*>(memory + layout.middle);
  const int counts[2] = {block.side[0].count, block.side[1].count};
  const int total = counts[0] + counts[1];
  const int log2_lanes = total <= kImageThreads / 4 ? 2 : total <= kImageThreads / 2 ? 1 : 0;
  const int lane = threadIdx.x & ((1 << log2_lanes) - 1), at_once = kImageThreads >> log2_lanes;
  for (int begin = 0; begin < total; begin += at_once) {
    const int o = begin + (threadIdx.x >> log2_lanes);
    const int i = o < counts[0] ? 0 : 1;
    const bool valid = o < total;
    const int output = valid ? (i == 0 ? o : o - counts[0]) : 0;
    double* weights =
        scratch + i * counts[0] * layout.max_taps[0] + output * layout.max_taps[i];
    const Digits digits{memory + layout.digits[i], base[i], layout.steps[i]};
    fill_weights(target.axis[target.down_first ? 1 - i : i], block.side[i], output, valid, lane,
                 1 << log2_lanes, weights, digits);
  }
}

__device__ inline int padded(int outputs) {
  return (outputs + kTileOutputs - 1) / kTileOutputs * kTileOutputs;
}

template <class Load>
__device__ void first_pass(const ImageLayout& layout, const SourcePart& part, int num_lines,
                           const uint8_t* raw, const Digits& digits, uint8_t* middle) {
  const int columns = padded(layout.outputs[0]), stride = layout.middle_stride;
  const Share share(columns / kTileOutputs);
  const Load load(part, raw, layout.raw_stride, digits.base[share.tile]);
  const int lane = threadIdx.x % 32;
  uint8_t* own = middle + (share.tile * kTileOutputs + lane / 4) * stride + lane % 4 * 2;
  resample(digits.bytes, layout.steps[0], share, (num_lines + kTileLines - 1) / kTileLines,
           1 << (cpu::kWeightBits - 1), load, [&](int group, const Sums(&sums)[3]) {
             uint8_t* to = own + group * kTileLines;
#pragma unroll
             for (int c = 0; c < 3; ++c, to += columns * stride) {
               *reinterpret_cast<uint16_t*>(to) = rounded_pair(sums[c].of[0], sums[c].of[1]);
               *reinterpret_cast<uint16_t*>(to + 8 * stride) =
                   rounded_pair(sums[c].of[2], sums[c].of[3]);
             }
           });
}

// `place`: byte offsets of the outputs of both axes in shared memory, one of them from its beginning
// on; at `nowhere` is room for what isn't wanted.
template <class T>
__device__ void second_pass(const ImageLayout& layout, const uint8_t* middle, const Digits& digits,
                            const T* table, const int (&place)[2][kMaxOutputs], int area_bytes,
                            uint32_t nowhere) {
  const int columns = padded(layout.outputs[0]), stride = layout.middle_stride;
  const Share share(padded(layout.outputs[1]) / kTileOutputs);
  const int lane = threadIdx.x % 32, output = share.tile * kTileOutputs + lane / 4;
  const uint8_t* own = middle + lane / 4 * stride + digits.base[share.tile] + lane % 4 * 4;
  const int places[2] = {place[1][output], place[1][output + 8]};
  const bool valid[2] = {output < layout.outputs[1], output + 8 < layout.outputs[1]};
  const auto load = [&](int group, int step, Inputs& inputs) {
    const uint8_t* at = own + group * kTileLines * stride + step * kStepInputs;
#pragma unroll
    for (int c = 0; c < 3; ++c, at += columns * stride) {
      inputs[c][0] = *reinterpret_cast<const uint32_t*>(at);
      inputs[c][1] = *reinterpret_cast<const uint32_t*>(at + 16);
    }
  };
  const uint32_t entries = shared_address(table);
  constexpr int kStart = (kOvershoot << cpu::kWeightBits) + (1 << (cpu::kWeightBits - 1));
  resample(digits.bytes, layout.steps[1], share,
           (layout.outputs[0] + kTileLines - 1) / kTileLines, kStart, load,
           [&](int group, const Sums(&sums)[3]) {
             const int line = group * kTileLines + lane % 4 * 2;
             const int2 lines = *reinterpret_cast<const int2*>(&place[0][line]);
#pragma unroll
             for (int i = 0; i < 4; ++i) {
               const bool wanted = valid[i / 2] && line + i % 2 < layout.outputs[0];
               const uint32_t at = (i % 2 == 0 ? lines.x : lines.y) + places[i / 2];
               uint32_t to = wanted ? at : nowhere;
#pragma unroll
               for (int c = 0; c < 3; ++c, to += area_bytes) {
                 store_entry<T>(to, entries, c, sums[c].of[i]);
               }
             }
           });
}

template <class T>
__global__ void __launch_bounds__(kImageThreads, 2)
    image_preprocess_kernel(const __grid_constant__ ImageLaunch p) {
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ __align__(kTableSize * sizeof(T)) T table[3 * kTableSize];
  __shared__ int base[2][kMaxOutputs / kTileOutputs];
  __shared__ __align__(8) int place[2][kMaxOutputs];
  __shared__ ImageBlock block;
  const ImageTarget& target = find_target(p);
  const ImageLayout& layout = target.layout;
  locate(target, p.tile_size, block);
  __syncthreads();
  const BlockSide &first = block.side[0], &second = block.side[1];
  uint8_t* middle = memory + layout.middle;
  copy_raw(source_part(target, first, second, 0), memory, layout.raw_stride);

  fill_table(p, table);
  const Digits digits[2] = {{memory + layout.digits[0], base[0], layout.steps[0]},
                            {memory + layout.digits[1], base[1], layout.steps[1]}};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    auto* packs = reinterpret_cast<uint4*>(digits[i].bytes);
    const int num_packs = padded(layout.outputs[i]) / kTileOutputs * layout.steps[i] * kDigits * 32;
    for (int w = threadIdx.x; w < num_packs; w += kImageThreads) packs[w] = uint4{};
  }
  const int size = p.patch_size, across = block.patches.across(size);
  for (int i = threadIdx.x; i < kMaxOutputs; i += kImageThreads) {
    place[target.down_first][i] = column_place(i, size) * sizeof(T);
    place[1 - target.down_first][i] =
        row_place(i, size, across) * sizeof(T) + shared_address(memory);
  }
  __syncthreads();
  extend_table(table);
  fill_all_weights(target, block, memory, base);

  const bool aligned =
      (reinterpret_cast<uintptr_t>(target.pixels + first.origin * 3) | target.axis[0].in_size) % 4 == 0;
  for (int begin = 0, turn = 0; begin < second.inputs; begin += layout.chunk_lines, turn ^= 1) {
    const SourcePart part = source_part(target, first, second, begin);
    asm volatile("cp.async.wait_all;");
    __syncthreads();  // copies of all have arrived; the other chunk is free
    const uint8_t* raw = memory + turn * layout.raw_bytes;
    if (begin + layout.chunk_lines < second.inputs) {
      copy_raw(source_part(target, first, second, begin + layout.chunk_lines),
               memory + (turn ^ 1) * layout.raw_bytes, layout.raw_stride);
    }
    const int lines = min(layout.chunk_lines, second.inputs - begin);
    if (target.down_first) {
      first_pass<ColumnInputs>(layout, part, lines, raw, digits[0], middle + begin);
    } else if (aligned) {
      first_pass<RowInputs<true>>(layout, part, lines, raw, digits[0], middle + begin);
    } else {
      first_pass<RowInputs<false>>(layout, part, lines, raw, digits[0], middle + begin);
    }
  }
  __syncthreads();
  const int area = size * size * static_cast<int>(sizeof(T));
  second_pass<T>(layout, middle, digits[1], table, place, area,
                 shared_address(memory) + across * block.patches.down(size) * 3 * area);
  __syncthreads();
  write_patches(p, block.patches, reinterpret_cast<const T*>(memory));
}

}  // namespace lightvl::cuda
