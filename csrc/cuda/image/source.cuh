// Source pixels: their way into shared memory, and from there to the first pass.
#pragma once

#include "cuda/image/layout.h"
#include "cuda/image/resample.cuh"
#include "cuda/image/weights.cuh"

namespace lightvl::cuda {

// A rectangle of source pixels: the lines of a block from some on.
struct SourcePart {
  const uint8_t *begin, *end;  // of the rectangle, of the picture
  uint32_t row_bytes;
  int inputs, lines;  // in a line, left

  __device__ SourcePart(const ImageTarget& target, const BlockSide& first, const BlockSide& second)
      : inputs(first.inputs), lines(second.inputs) {
    const bool turned = target.down_first != 0;
    row_bytes = static_cast<uint32_t>(target.axis[0].in_size) * 3;
    begin = target.pixels + (turned ? second : first).origin * 3;
    begin = row_of((turned ? first : second).origin);
    end = target.pixels + uint64_t{row_bytes} * target.axis[1].in_size;
  }
  // Leaves a chunk out.
  __device__ void advance(const ImageTarget& target) {
    begin += uint64_t{target.down_first ? 3 : row_bytes} * target.layout.chunk_lines;
    lines -= target.layout.chunk_lines;
  }
  __device__ const uint8_t* row_of(int r) const {
    return begin + uint64_t{row_bytes} * static_cast<uint32_t>(r);
  }
  // Bytes by which row r begins behind a multiple of 16.
  __device__ int shift_of(int r) const {
    return (static_cast<uint32_t>(reinterpret_cast<uintptr_t>(begin)) + row_bytes * r) & 15;
  }
};

__device__ inline void copy_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
}

// A thread's share of the copies of a block's rows: a pack of 16 bytes of every `step`-th row.
struct CopyShare {
  int first_row, step, pack;

  __device__ explicit CopyShare(int packs)
      : first_row(divide(threadIdx.x, packs)), step(max(divide(kImageThreads, packs), 1)) {
    pack = threadIdx.x - first_row * packs;
    if (first_row >= step) first_row = 1 << 16;  // nothing
  }
};

// Copies num_rows rows of so many bytes in aligned packs, not behind the picture's end.
template <bool kInside>
__device__ void copy_rows(const SourcePart& part, const CopyShare& share, int num_rows, int bytes,
                          int pack, uint32_t to, int stride) {
  const uint64_t by = uint64_t{part.row_bytes} * static_cast<uint32_t>(share.step);
  auto from = reinterpret_cast<uint64_t>(part.row_of(share.first_row) + pack * 16);
  const auto end = reinterpret_cast<uint64_t>(part.end);
  const int over = pack * 16 - bytes;
  to += share.first_row * stride + pack * 16;
#pragma unroll 1
  for (int r = share.first_row; r < num_rows; r += share.step) {
    const int shift = static_cast<int>(from) & 15;
    const uint64_t aligned = from & ~uint64_t{15};
    if (over < shift) {
      if (kInside || aligned + 16 <= end) {
        copy_async(to, reinterpret_cast<const void*>(aligned));
      } else {
        for (int b = 0; aligned + b < end; ++b) {
          store_shared(to + b, *reinterpret_cast<const uint8_t*>(aligned + b));
        }
      }
    }
    from += by;
    to += share.step * stride;
  }
}

// Copies the rows of a part's first chunk.
__device__ inline void copy_raw(const SourcePart& part, const CopyShare& share,
                                const ImageTarget& target, uint8_t* raw) {
  const ImageLayout& layout = target.layout;
  const int lines = min(layout.chunk_lines, part.lines);
  if (lines <= 0) return;
  const int num_rows = target.down_first ? part.inputs : lines;
  const int bytes = 3 * (target.down_first ? lines : part.inputs);
  const bool inside = part.end - part.row_of(num_rows - 1) >= bytes + 16;
#pragma unroll 1
  for (int pack = share.pack; pack < layout.packs; pack += kImageThreads) {
    if (inside) {
      copy_rows<true>(part, share, num_rows, bytes, pack, shared_address(raw), layout.raw_stride);
    } else {
      copy_rows<false>(part, share, num_rows, bytes, pack, shared_address(raw), layout.raw_stride);
    }
  }
}

// Waits for the thread's copies.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

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

  // For the chunk that `part` begins with, which lies `offset` bytes further.
  __device__ RowInputs at(int offset, const SourcePart& part) const {
    RowInputs other = *this;
    const int begin = part.shift_of(threadIdx.x % 32 / 4);
    other.raw += offset + (kAligned ? begin - shift : 0);
    other.shift = begin;
    return other;
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
  const uint8_t* memory;
  const uint8_t* raw[4];  // of the lane's first line and four inputs
  int stride, base;

  __device__ ColumnInputs(const SourcePart& part, const uint8_t* raw, int stride, int base)
      : memory(raw), stride(stride), base(base) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = base + lane % 4 * 4 + i;
      this->raw[i] = raw + row * stride + part.shift_of(row) + lane / 4 * 3;
    }
  }

  __device__ ColumnInputs at(int offset, const SourcePart& part) const {
    return ColumnInputs(part, memory + offset, stride, base);
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
