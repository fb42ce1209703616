// Source pixels: their way into shared memory, and from there to the first pass.
#pragma once

#include "cuda/image/layout.h"
#include "cuda/image/resample.cuh"
#include "cuda/image/weights.cuh"

namespace lightvl::cuda {

// A rectangle of source pixels.
struct SourcePart {
  const uint8_t* pixels;  // the picture's
  int64_t row_bytes, picture_bytes;
  int row, num_rows, column, num_columns;

  __device__ const uint8_t* begin_of(int r) const {
    return pixels + (row + r) * row_bytes + column * 3;
  }
  // Bytes by which row r begins behind a multiple of 16, of which the low bits of r decide.
  __device__ int shift_of(int r) const {
    return static_cast<int>(reinterpret_cast<uintptr_t>(begin_of(0)) + r * row_bytes) & 15;
  }
};

// The lines of a block from `line` on that fit a chunk.
__device__ inline SourcePart source_part(const ImageTarget& target, const BlockSide& first,
                                         const BlockSide& second, int line) {
  const int lines = min(target.layout.chunk_lines, second.inputs - line);
  SourcePart part;
  part.pixels = target.pixels;
  part.row_bytes = int64_t{target.axis[0].in_size} * 3;
  part.picture_bytes = part.row_bytes * target.axis[1].in_size;
  part.row = target.down_first ? first.origin : second.origin + line;
  part.num_rows = target.down_first ? first.inputs : lines;
  part.column = target.down_first ? second.origin + line : first.origin;
  part.num_columns = target.down_first ? lines : first.inputs;
  return part;
}

__device__ inline void copy_async(void* to, const void* from) {
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from));
}

// Copies the rows in aligned packs of 16 bytes, not behind the picture's end.
__device__ inline void copy_raw(const SourcePart& part, uint8_t* raw, int stride) {
  const uint8_t* end = part.pixels + part.picture_bytes;
  const int most = (15 + part.num_columns * 3 + 15) / 16;
  const float reciprocal = 1.0f / static_cast<float>(most);
  for (int i = threadIdx.x; i < part.num_rows * most; i += kImageThreads) {
    const int r = static_cast<int>((static_cast<float>(i) + 0.5f) * reciprocal);
    const int pack = i - r * most;
    const uint8_t* begin = part.begin_of(r);
    const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(begin) % 16);
    if (pack * 16 >= shift + part.num_columns * 3) continue;
    const uint8_t* from = begin - shift + pack * 16;
    uint8_t* to = raw + r * stride + pack * 16;
    if (end - from >= 16) {
      copy_async(to, from);
    } else {
      for (int b = 0; b < end - from; ++b) to[b] = from[b];
    }
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
    shift_step = static_cast<int>(part.row_bytes) * kTileLines & 15;
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
