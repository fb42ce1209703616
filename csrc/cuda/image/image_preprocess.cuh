// Resizes pictures as Pillow's Image.resize(BICUBIC) does, bit for bit, and writes normalised
// patches: a thread block makes up to 128 x 128 pixels of a tile from the source pixels around
// them.
//
// Across first (down first is the same with rows and columns swapped):
// 1. The weights of the block's columns and rows (weights.cuh), while the first rows are copied or
//    the kernel before ends.
// 2. For each chunk of source rows: raw bytes arrive by asynchronous copies while the chunk before
//    is resampled (source.cuh, resample.cuh); the sums are rounded to 8 bits and stored turned,
//    [channel, column, row].
// 3. The second pass looks its sums up in a table of normalised values and puts them where they
//    belong in the block's patches, which are then written out (patches.cuh).
#pragma once

#include "cuda/common/dependent_launch.cuh"
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

// Filled by one thread an axis, of two warps.
__device__ inline void locate(const ImageTarget& target, int size, ImageBlock& block) {
  if (threadIdx.x != 0 && threadIdx.x != 32) return;
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

// The chunks of a block's lines on their way to shared memory, where two have room.
struct Chunks {
  const ImageTarget& target;
  uint8_t* memory;
  SourcePart next;
  CopyShare share;
  int turn = 0;  // of the next chunk

  __device__ void copy_next() {
    copy_raw(next, share, target, memory + turn * target.layout.raw_bytes);
    next.advance(target);
    turn ^= 1;
  }
};

// `part`: the block's lines, whose first chunk is being copied.
template <int kBlocks, class Load>
__device__ void first_pass(SourcePart part, Chunks& chunks, const Digits& digits, uint8_t* middle) {
  const ImageLayout& layout = chunks.target.layout;
  const int columns = layout.outputs[0], stride = layout.middle_stride;
  const Share share(padded(columns) / kTileOutputs);
  const int lane = threadIdx.x % 32, output = share.tile * kTileOutputs + lane / 4;
  uint32_t own = shared_address(middle) + output * stride + lane % 4 * 2;
  const bool valid[2] = {output < columns, output + 8 < columns};
  const auto emit = [&](int group, const Sums(&sums)[3]) {
    uint32_t to = own + group * kTileLines;
#pragma unroll
    for (int c = 0; c < 3; ++c, to += columns * stride) {
      const uint16_t pairs[2] = {rounded_pair(sums[c].of[0], sums[c].of[1]),
                                 rounded_pair(sums[c].of[2], sums[c].of[3])};
      if (valid[0]) store_shared(to, pairs[0]);
      if (valid[1]) store_shared(to + 8 * stride, pairs[1]);
    }
  };
  with_weights(digits.bytes, layout.steps[0], share.tile, [&](const auto& weights) {
    const Load load(part, chunks.memory, layout.raw_stride, digits.base[share.tile]);
#pragma unroll 1
    for (; part.lines > 0; part.advance(chunks.target), own += layout.chunk_lines) {
      wait_for_copies();
      __syncthreads();  // copies of all have arrived; the other chunk is free
      chunks.copy_next();
      const int groups = (min(layout.chunk_lines, part.lines) + kTileLines - 1) / kTileLines;
      const Load here = load.at(chunks.turn * layout.raw_bytes, part);
      sum_groups<kBlocks>(weights, share, groups, 1 << (cpu::kWeightBits - 1), here, emit);
    }
  });
}

// `place`: byte offsets of the outputs of both axes in shared memory, one of them from its
// beginning on, or kNowhere.
template <int kBlocks, class T>
__device__ void second_pass(const ImageLayout& layout, const uint8_t* middle, const Digits& digits,
                            const T* table, const uint32_t (&place)[2][kMaxOutputs],
                            int area_bytes) {
  const int columns = layout.outputs[0], stride = layout.middle_stride;
  const Share share(padded(layout.outputs[1]) / kTileOutputs);
  const int lane = threadIdx.x % 32, output = share.tile * kTileOutputs + lane / 4;
  const uint8_t* own = middle + lane / 4 * stride + digits.base[share.tile] + lane % 4 * 4;
  const uint32_t places[2] = {place[1][output], place[1][output + 8]};
  const uint2* own_lines = reinterpret_cast<const uint2*>(place[0]) + lane % 4;
  const uint32_t entries = shared_address(table);
  const int groups = (columns + kTileLines - 1) / kTileLines;
  constexpr int kStart = (kOvershoot << cpu::kWeightBits) + (1 << (cpu::kWeightBits - 1));
  const auto load = [&](int group, int step, Inputs& inputs) {
    const uint8_t* at = own + group * kTileLines * stride + step * kStepInputs;
#pragma unroll
    for (int c = 0; c < 3; ++c, at += columns * stride) {
      inputs[c][0] = *reinterpret_cast<const uint32_t*>(at);
      inputs[c][1] = *reinterpret_cast<const uint32_t*>(at + 16);
    }
  };
  const auto emit = [&](int group, const Sums(&sums)[3]) {
    const uint2 lines = own_lines[group * (kTileLines / 2)];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t to = (i % 2 == 0 ? lines.x : lines.y) + places[i / 2];
#pragma unroll
      for (int c = 0; c < 3; ++c) store_entry<T>(to, c * area_bytes, entries, c, sums[c].of[i]);
    }
  };
  with_weights(digits.bytes, layout.steps[1], share.tile, [&](const auto& weights) {
    sum_groups<kBlocks>(weights, share, groups, kStart, load, emit);
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
  const int across = divide(layout.outputs[target.down_first] + size - 1, size);
  const int i = threadIdx.x % kMaxOutputs;
  const int axis = threadIdx.x / kMaxOutputs, order = target.down_first ? 1 - axis : axis;
  const uint32_t at = axis == 0 ? column_place(i, size) * sizeof(T)
                                : row_place(i, size, across) * sizeof(T) + shared_address(memory);
  place[order][i] = i < layout.outputs[order] ? at : kNowhere;
  __syncthreads();
  extend_table(table);
  const BlockSide &first = block.side[0], &second = block.side[1];
  uint8_t* middle = memory + layout.middle;
  const SourcePart part(target, first, second);
  Chunks chunks{target, memory, part, CopyShare(layout.packs)};
  // While the kernel before ends only what touches no memory can be done; later blocks have their
  // first rows copied meanwhile.
  const bool early = static_cast<int>(blockIdx.x) < p.first_wave;
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {
    if (early == (turn == 0)) {
      fill_all_weights(target, block, memory, base);
    } else {
      wait_for_previous();
      let_next_begin();
      chunks.copy_next();
    }
  }

  __syncthreads();  // all weights are there
  const bool aligned =
      (reinterpret_cast<uintptr_t>(target.pixels) | target.axis[0].in_size) % 4 == 0;
  if (target.down_first) {
    first_pass<kBlocks, ColumnInputs>(part, chunks, digits[0], middle);
  } else if (aligned) {
    first_pass<kBlocks, RowInputs<true>>(part, chunks, digits[0], middle);
  } else {
    first_pass<kBlocks, RowInputs<false>>(part, chunks, digits[0], middle);
  }
  __syncthreads();
  second_pass<kBlocks, T>(layout, middle, digits[1], table, place,
                          size * size * static_cast<int>(sizeof(T)));
  __syncthreads();
  write_patches(p, target, block.patches, reinterpret_cast<const T*>(memory));
}

}  // namespace lightvl::cuda
