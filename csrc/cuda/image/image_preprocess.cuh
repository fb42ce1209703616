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
__device__ inline void locate(const ImageTarget& target, int size, ImageBlock& block) {
  if (threadIdx.x >= 2) return;
  const int index = static_cast<int>(blockIdx.x) - target.first_block;
  const int row_blocks = target.cols * target.blocks_across;
  const int down_first = target.down_first, row = index / row_blocks;
  BlockPatches& patches = block.patches;
  if (threadIdx.x == 0) {
    const int column = index - row * row_blocks, width = target.layout.outputs[down_first];
    patches.tile_x = divide(column, target.blocks_across);
    patches.x = (column - patches.tile_x * target.blocks_across) * width;
    patches.width = width;
    patches.across = divide(width + size - 1, size);
    block.side[down_first] = BlockSide(target.axis[0], column * width, width);
  } else {
    const int height = target.layout.outputs[1 - down_first];
    patches.tile_y = divide(row, target.blocks_down);
    patches.y = (row - patches.tile_y * target.blocks_down) * height;
    patches.height = height;
    patches.down = divide(height + size - 1, size);
    block.side[1 - down_first] = BlockSide(target.axis[1], row * height, height);
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
    double* weights = scratch + i * counts[0] * layout.max_taps[0] + output * layout.max_taps[i];
    const Digits digits{memory + layout.digits[i], base[i], layout.steps[i]};
    fill_weights(target.axis[target.down_first ? 1 - i : i], block.side[i], output, valid, lane,
                 1 << log2_lanes, weights, digits);
  }
}

__device__ inline int padded(int outputs) {
  return (outputs + kTileOutputs - 1) / kTileOutputs * kTileOutputs;
}

template <class Load>
__device__ void first_pass(const ImageLayout& layout, const Share& share, const SourcePart& part,
                           int num_lines, const uint8_t* raw, const Digits& digits,
                           uint8_t* middle) {
  const int columns = layout.outputs[0], stride = layout.middle_stride;
  const Load load(part, raw, layout.raw_stride, digits.base[share.tile]);
  const int lane = threadIdx.x % 32;
  const int output = share.tile * kTileOutputs + lane / 4;
  const uint32_t own = shared_address(middle) + output * stride + lane % 4 * 2;
  resample(digits.bytes, layout.steps[0], share, (num_lines + kTileLines - 1) / kTileLines,
           1 << (cpu::kWeightBits - 1), load, [&](int group, const Sums(&sums)[3]) {
             uint32_t to = own + group * kTileLines;
#pragma unroll
             for (int c = 0; c < 3; ++c, to += columns * stride) {
               const uint16_t pairs[2] = {rounded_pair(sums[c].of[0], sums[c].of[1]),
                                          rounded_pair(sums[c].of[2], sums[c].of[3])};
               if (output < columns) store_shared(to, pairs[0]);
               if (output + 8 < columns) store_shared(to + 8 * stride, pairs[1]);
             }
           });
}

// `place`: byte offsets of the outputs of both axes in shared memory, one of them from its
// beginning on, above 2^30 if there is none; at `nowhere`, behind all others, is room for what
// isn't wanted.
template <class T>
__device__ void second_pass(const ImageLayout& layout, const uint8_t* middle, const Digits& digits,
                            const T* table, const uint32_t (&place)[2][kMaxOutputs], int area_bytes,
                            uint32_t nowhere) {
  const int columns = layout.outputs[0], stride = layout.middle_stride;
  const Share share(padded(layout.outputs[1]) / kTileOutputs);
  const int lane = threadIdx.x % 32, output = share.tile * kTileOutputs + lane / 4;
  const uint8_t* own = middle + lane / 4 * stride + digits.base[share.tile] + lane % 4 * 4;
  const uint32_t places[2] = {place[1][output], place[1][output + 8]};
  const uint2* own_lines = reinterpret_cast<const uint2*>(place[0]) + lane % 4;
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
  resample(digits.bytes, layout.steps[1], share, (layout.outputs[0] + kTileLines - 1) / kTileLines,
           kStart, load, [&](int group, const Sums(&sums)[3]) {
             const uint2 lines = own_lines[group * (kTileLines / 2)];
#pragma unroll
             for (int i = 0; i < 4; ++i) {
               uint32_t to = min((i % 2 == 0 ? lines.x : lines.y) + places[i / 2], nowhere);
#pragma unroll
               for (int c = 0; c < 3; ++c, to += area_bytes) {
                 store_entry<T>(to, entries, c, sums[c].of[i]);
               }
             }
           });
}

// kBlocks share a multiprocessor.
template <class T, int kBlocks>
__global__ void __launch_bounds__(kImageThreads, kBlocks)
    image_preprocess_kernel(const __grid_constant__ ImageLaunch p) {
  extern __shared__ __align__(16) uint8_t memory[];
  // A channel's entries begin at a multiple of their size; larger alignments than 1024 aren't kept.
  constexpr int kChannel = kTableSize * static_cast<int>(sizeof(T));
  __shared__ __align__(1024) uint8_t table_room[3 * kChannel + (kChannel > 1024 ? 1024 : 0)];
  T* table = reinterpret_cast<T*>(table_room + (-shared_address(table_room) & (kChannel - 1)));
  __shared__ int base[2][kMaxOutputs / kTileOutputs];
  __shared__ __align__(8) uint32_t place[2][kMaxOutputs];
  __shared__ ImageBlock block;
  const ImageTarget& target = find_target(p);
  const ImageLayout& layout = target.layout;
  const int size = p.patch_size;
  locate(target, size, block);
  __syncthreads();
  const BlockSide &first = block.side[0], &second = block.side[1];
  uint8_t* middle = memory + layout.middle;
  SourcePart part(target, first, second);
  copy_raw(part, layout, memory);

  fill_table(p, table);
  const Digits digits[2] = {{memory + layout.digits[0], base[0], layout.steps[0]},
                            {memory + layout.digits[1], base[1], layout.steps[1]}};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    auto* packs = reinterpret_cast<uint4*>(digits[i].bytes);
    const int num_packs = padded(layout.outputs[i]) / kTileOutputs * layout.steps[i] * kDigits * 32;
#pragma unroll 1
    for (int w = threadIdx.x; w < num_packs; w += kImageThreads) packs[w] = uint4{};
  }
  const int across = block.patches.across, i = threadIdx.x % kMaxOutputs;
  const int axis = threadIdx.x / kMaxOutputs, order = target.down_first ? 1 - axis : axis;
  const uint32_t at = axis == 0 ? column_place(i, size) * sizeof(T)
                                : row_place(i, size, across) * sizeof(T) + shared_address(memory);
  place[order][i] = i < layout.outputs[order] ? at : 1u << 30;
  __syncthreads();
  extend_table(table);
  fill_all_weights(target, block, memory, base);

  const bool aligned =
      (reinterpret_cast<uintptr_t>(target.pixels) | target.axis[0].in_size) % 4 == 0;
  const Share share(padded(layout.outputs[0]) / kTileOutputs);
  for (int begin = 0, turn = 0; begin < second.inputs; begin += layout.chunk_lines, turn ^= 1) {
    const SourcePart here = part;
    const int left = second.inputs - begin - layout.chunk_lines;
    asm volatile("cp.async.wait_all;");
    __syncthreads();  // copies of all have arrived; the other chunk is free
    if (left > 0) {
      part.advance(target, left);
      copy_raw(part, layout, memory + (turn ^ 1) * layout.raw_bytes);
    }
    const uint8_t* raw = memory + turn * layout.raw_bytes;
    const int lines = min(layout.chunk_lines, second.inputs - begin);
    if (target.down_first) {
      first_pass<ColumnInputs>(layout, share, here, lines, raw, digits[0], middle + begin);
    } else if (aligned) {
      first_pass<RowInputs<true>>(layout, share, here, lines, raw, digits[0], middle + begin);
    } else {
      first_pass<RowInputs<false>>(layout, share, here, lines, raw, digits[0], middle + begin);
    }
  }
  __syncthreads();
  const int area = size * size * static_cast<int>(sizeof(T));
  second_pass<T>(layout, middle, digits[1], table, place, area,
                 shared_address(memory) + across * block.patches.down * 3 * area);
  __syncthreads();
  write_patches(p, target, block.patches, reinterpret_cast<const T*>(memory));
}

}  // namespace lightvl::cuda
