// Source pixels: their way into shared memory, and from there to the first pass.
#pragma once

#include "cuda/image/layout.h"
#include "cuda/image/resample.cuh"
#include "cuda/image/weights.cuh"

namespace lightvl::cuda {

// A rectangle of source pixels: the lines of a block that fit a chunk.
struct SourcePart {
  const uint8_t *begin, *end;  // of the rectangle, of the picture
  uint32_t row_bytes;
  int num_rows, num_columns;

  // The first lines of a block.
  __device__ SourcePart(const ImageTarget& target, const BlockSide& first,
                        const BlockSide& second) {
    const bool turned = target.down_first != 0;
    row_bytes = static_cast<uint32_t>(target.axis[0].in_size) * 3;
    begin = target.pixels + (turned ? second : first).origin * 3;
    begin = row_of((turned ? first : second).origin);
    end = target.pixels + uint64_t{row_bytes} * target.axis[1].in_size;
    num_rows = num_columns = first.inputs;
    take_lines(target, second.inputs);
  }
  __device__ void take_lines(const ImageTarget& target, int left) {
    (target.down_first ? num_columns : num_rows) = min(target.layout.chunk_lines, left);
  }
  // Goes on to the next lines, of which so many are left.
  __device__ void advance(const ImageTarget& target, int left) {
    begin += uint64_t{target.down_first ? 3 : row_bytes} * target.layout.chunk_lines;
    take_lines(target, left);
  }
  __device__ const uint8_t* row_of(int r) const {
    return begin + uint64_t{row_bytes} * static_cast<uint32_t>(r);
  }
  // Bytes by which row r begins behind a multiple of 16.
  __device__ int shift_of(int r) const {
    return (static_cast<uint32_t>(reinterpret_cast<uintptr_t>(begin)) + row_bytes * r) & 15;
  }
};

__device__ inline void copy_async(void* to, const void* from) {
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from));
}

// Copies the rows in aligned packs of 16 bytes, not behind the picture's end.
__device__ inline void copy_raw(const SourcePart& part, const ImageLayout& layout, uint8_t* raw) {
  const int packs = layout.packs, bytes = part.num_columns * 3;
  const int step = divide(kImageThreads, packs), more = kImageThreads - step * packs;
  const bool inside = part.end - part.row_of(part.num_rows - 1) >= bytes + 16;
  int r = divide(threadIdx.x, packs), pack = threadIdx.x - r * packs;
#pragma unroll 1
  while (r < part.num_rows) {
    const uint8_t* row = part.row_of(r);
    const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(row)) & 15;
    if (pack * 16 < shift + bytes) {
      const uint8_t* from = row - shift + pack * 16;
      uint8_t* to = raw + r * layout.raw_stride + pack * 16;
      if (inside || part.end - from >= 16) {
        copy_async(to, from);
      } else {
#pragma unroll 1
        for (int b = 0; b < part.end - from; ++b) to[b] = from[b];
      }
    }
    r += step;
    pack += more;
    if (pack >= packs) pack -= packs, ++r;
  }
  asm volatile("cp.async.commit_group;");
}

// Four neighbouring pixels, twelve bytes, as one word a channel.
__device__ inline void split(uint32_t a, uint32_t b, uint32_t c, Inputs& inputs, int half) {
  inputs[0][half] = __byte_perm(__byte_perm(a, b, 0x0630), c, 0x5210);
  inputs[1][half] = __byte_perm(__byte_perm(a, b, 0x0741), c, 0x6210);
  inputs[2][half] = __byte_perm(__byte_perm(a, b, 0x0052), c, 0x7410);
}

// Lines are the picture's rows. kAligned: each begins at a multiple of 4 bytes.
template <bool kAligned>
struct RowInputs {
  const uint8_t* raw;  // of the lane's first line and input
  int stride;
  int shift, shift_step;  // see SourcePart::shift_of

  __device__ RowInputs(const SourcePart& part, const uint8_t* raw, int stride, int base)
      : stride(stride) {
    const int lane = threadIdx.x % 32, line = lane / 4;
    this->raw = raw + line * stride + (base + lane % 4 * 4) * 3;
    shift = part.shift_of(line);
    shift_step = (static_cast<int>(part.row_bytes) * kTileLines) & 15;
    if (kAligned) this->raw += shift;
  }

  __device__ void operator()(int group, int step, Inputs& inputs) const {
    const uint8_t* at = raw + group * kTileLines * stride + step * kStepInputs * 3;
    if constexpr (kAligned) {
      const auto* words = reinterpret_cast<const uint32_t*>(at);
#pragma unroll
      for (int half = 0; half < 2; ++half, words += 12) {
        split(words[0], words[1], words[2], inputs, half);
      }
    } else {
      const int offset = (shift + group * shift_step) & 15;
      const auto* words = reinterpret_cast<const uint32_t*>(at + (offset & 12));
      const int bits = offset % 4 * 8;
#pragma unroll
      for (int half = 0; half < 2; ++half, words += 12) {
        split(__funnelshift_r(words[0], words[1], bits), __funnelshift_r(words[1], words[2], bits),
              __funnelshift_r(words[2], words[3], bits), inputs, half);
      }
    }
  }
};

// Lines are the picture's columns.
struct ColumnInputs {
  const uint8_t* raw[4];  // of the lane's first line and four inputs
  int stride;

  __device__ ColumnInputs(const SourcePart& part, const uint8_t* raw, int stride, int base)
      : stride(stride) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = base + lane % 4 * 4 + i;
      this->raw[i] = raw + row * stride + part.shift_of(row) + lane / 4 * 3;
    }
  }

  __device__ void operator()(int group, int step, Inputs& inputs) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int offset = (step * kStepInputs + half * 16) * stride + group * kTileLines * 3;
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        uint32_t bytes[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) bytes[i] = raw[i][offset + c];
        inputs[c][half] = __byte_perm(__byte_perm(bytes[0], bytes[1], 0x0040),
                                      __byte_perm(bytes[2], bytes[3], 0x0040), 0x5410);
      }
    }
  }
};

}  // namespace lightvl::cuda
