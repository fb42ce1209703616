// Resampling of one strip of a picture; see image.cpp.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/image_plan.h"
#include "cpu/numeric.h"

namespace lightvl::cpu::LIGHTVL_ISA {

#if defined(__AVX512BW__)
constexpr int kWords = 16;
#elif defined(__AVX2__)
constexpr int kWords = 8;
#else
constexpr int kWords = 4;
#endif

typedef uint32_t WordVec __attribute__((vector_size(kWords * 4)));
typedef uint32_t UnalignedWordVec
    __attribute__((vector_size(kWords * 4), aligned(2), may_alias));
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t UnalignedBytes16 __attribute__((vector_size(16), aligned(1), may_alias));

// Per 32 bits: the sum of the products of the two signed 16-bit numbers in a and b.
inline WordVec multiply_pairs(WordVec a, WordVec b) {
#if defined(__AVX512BW__)
  return reinterpret_cast<WordVec>(
      _mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<WordVec>(
      _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<WordVec>(
      _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  typedef int32_t SignedVec __attribute__((vector_size(kWords * 4)));
  const auto x = reinterpret_cast<SignedVec>(a), y = reinterpret_cast<SignedVec>(b);
  return reinterpret_cast<WordVec>((x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16));
#endif
}

// kCount running sums, kWords wide each, over pairs of inputs.
template <int kCount>
struct Sums {
  WordVec high[kCount], low[kCount];

  // Starts from partial sums `step` words apart, or from one half if `partial` is null.
  void start(const uint32_t* partial, int64_t step) {
    for (int i = 0; i < kCount; ++i) {
      high[i] = WordVec{};
      low[i] = WordVec{} + (1u << (kWeightBits - 1));
      if (partial != nullptr) low[i] = load(partial + i * step);
    }
  }

  // Adds num_pairs pairs; pair n of sum i lies at pairs + n * pair_step + i * sum_step.
  void add(const int16_t* pairs, int64_t pair_step, int64_t sum_step, const uint32_t* weights,
           int num_pairs) {
    for (int n = 0; n < num_pairs; ++n, pairs += pair_step, weights += 2) {
      const WordVec high_weight = WordVec{} + weights[0], low_weight = WordVec{} + weights[1];
      for (int i = 0; i < kCount; ++i) {
        const WordVec values = load(pairs + i * sum_step);
        high[i] += multiply_pairs(values, high_weight);
        low[i] += multiply_pairs(values, low_weight);
      }
    }
  }

  void store(uint32_t* dst, int64_t step) const {
    for (int i = 0; i < kCount; ++i) {
      *reinterpret_cast<UnalignedWordVec*>(dst + i * step) =
          (high[i] << kLowWeightBits) + low[i];
    }
  }

 private:
  static WordVec load(const void* p) { return *static_cast<const UnalignedWordVec*>(p); }
};

// Sums to 8-bit values: the integer part, clamped.
inline void clamp_row(const uint32_t* sums, int64_t n, uint8_t* dst) {
  for (int64_t i = 0; i < n; ++i) {
    int32_t value = static_cast<int32_t>(sums[i]) >> kWeightBits;
    value = value < 0 ? 0 : value;
    dst[i] = static_cast<uint8_t>(value > 255 ? 255 : value);
  }
}

inline void interleave(const uint8_t* a, const uint8_t* b, int64_t n, int16_t* dst) {
  for (int64_t i = 0; i < n; ++i) {
    dst[2 * i] = a[i];
    dst[2 * i + 1] = b[i];
  }
}

// v[i][j] -> v[j][i]. Four times, each pair of registers half the set apart is interleaved.
inline void transpose(Bytes16 (&v)[16]) {
  constexpr Bytes16 kLow = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  for (int step = 0; step < 4; ++step) {
    Bytes16 t[16];
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = __builtin_shuffle(v[i], v[i + 8], kLow);
      t[2 * i + 1] = __builtin_shuffle(v[i], v[i + 8], kLow + 8);
    }
    std::memcpy(v, t, sizeof(t));
  }
}

// The part of output i's window that lies in pairs [begin, end).
struct Window {
  int from, to;
  bool started, done;  // began before `begin`; ends here
  const uint32_t* weights;

  Window(const ResizeAxis& axis, int64_t i, int begin, int end) {
    const int first = axis.first_pair[i], last = axis.end_pair[i];
    started = first < begin;
    done = last <= end;
    from = started ? begin : first;
    to = done ? last : end;
    weights = axis.weights + (i * axis.max_pairs + from - first) * 2;
  }
};

// Resamples strips of tile_size columns; owns the buffers.
class StripResizer {
 public:
  explicit StripResizer(int64_t tile_size)
      : width_(tile_size * 3),
        stride_((width_ + 63) / 64 * 64),
        across_sums_(new uint32_t[width_ * kBlockRows]),
        across_(new uint8_t[stride_ * kBlockRows]),
        rows_(new uint8_t[stride_ * kBlockRows]),
        row_pairs_(new int16_t[stride_ * kBlockRows]()),
        sums_(new uint32_t[stride_]),
        row_(new uint8_t[width_]) {}

  // Calls writer.write(row, [S, 3] pixels) for output rows [first, last).
  template <class Writer>
  void run(const ImageStrip& strip, int64_t first, int64_t last, const Writer& writer) {
    if (first >= last) return;
    reserve_partials(strip.y, first, last);
    const int pair_end = strip.y.end_pair[last - 1];
    int64_t row = first;
    for (int pair = strip.y.first_pair[first]; pair < pair_end; pair += kBlockPairs) {
      read_block(strip, pair);
      for (int64_t i = row; i < last && strip.y.first_pair[i] < pair + kBlockPairs; ++i) {
        const Window window(strip.y, i, pair, pair + kBlockPairs);
        resample_down(window, pair, partials_.get() + i % num_partials_ * stride_);
        if (window.done) {
          clamp_row(sums_.get(), width_, row_.get());
          writer.write(i, row_.get());
          row = i + 1;
        }
      }
    }
  }

 private:
  static constexpr int kChunkPairs = 128;  // input pixel pairs that are turned at once

  // Room for as many output rows as have windows that overlap.
  void reserve_partials(const ResizeAxis& y, int64_t first, int64_t last) {
    int64_t most = 1, end = first;
    for (int64_t i = first; i < last; ++i) {
      while (end < last && y.first_pair[end] < y.end_pair[i]) ++end;
      most = end - i > most ? end - i : most;
    }
    if (most > num_partials_) partials_.reset(new uint32_t[most * stride_]);
    num_partials_ = most > num_partials_ ? most : num_partials_;
  }

  // Makes row_pairs_ of input rows [2 * pair, 2 * pair + kBlockRows), resampled across.
  void read_block(const ImageStrip& strip, int pair) {
    const int64_t in_stride = int64_t{strip.x.in_size} * 3;
    const uint8_t* rows[kBlockRows];
    for (int r = 0; r < kBlockRows; ++r) {  // rows behind the last one have no weight
      const int row = 2 * pair + r < strip.y.in_size ? 2 * pair + r : strip.y.in_size - 1;
      rows[r] = strip.pixels + row * in_stride;
    }
    if (strip.x.in_size == strip.x.out_size) {
      for (const uint8_t*& row : rows) row += strip.x_begin * 3;
    } else {
      resample_across(strip, rows);
      turn_back(rows);
    }
    for (int r = 0; r < kBlockRows; r += 2) {
      interleave(rows[r], rows[r + 1], width_, row_pairs_.get() + r * stride_);
    }
  }

  // Input rows -> across_[column][row].
  void resample_across(const ImageStrip& strip, const uint8_t* const (&rows)[kBlockRows]) {
    const ResizeAxis& x = strip.x;
    const int64_t first = strip.x_begin, last = first + width_ / 3;
    const int pair_end = x.end_pair[last - 1];
    int64_t column = first;
    for (int pair = x.first_pair[first]; pair < pair_end; pair += kChunkPairs) {
      const int chunk_end = pair + kChunkPairs < pair_end ? pair + kChunkPairs : pair_end;
      turn(rows, int64_t{x.in_size} * 3, pair, chunk_end - pair);
      for (int64_t i = column; i < last && x.first_pair[i] < chunk_end; ++i) {
        const Window window(x, i, pair, chunk_end);
        const int64_t at = (i - first) * 3 * kBlockRows;
        resample_column(window, pair, across_sums_.get() + at);
        if (window.done) {
          clamp_row(across_sums_.get() + at, 3 * kBlockRows, across_.get() + at);
          column = i + 1;
        }
      }
    }
  }

  // Pixels [2 * pair, 2 * (pair + num_pairs)) of the rows -> columns_[pair][channel][row][2].
  void turn(const uint8_t* const (&rows)[kBlockRows], int64_t row_bytes, int pair, int num_pairs) {
    const int64_t begin = int64_t{pair} * 6, end = begin + num_pairs * 6;
    for (int64_t at = begin; at < end; at += 16) {
      Bytes16 block[16] = {};
      for (int r = 0; r < kBlockRows; ++r) {
        if (at + 16 <= row_bytes) {
          block[r] = *reinterpret_cast<const UnalignedBytes16*>(rows[r] + at);
        } else if (at < row_bytes) {
          std::memcpy(&block[r], rows[r] + at, row_bytes - at);
        }
      }
      transpose(block);
      std::memcpy(bytes_ + (at - begin) * kBlockRows, block, sizeof(block));
    }
    for (int i = 0; i < num_pairs * 3; ++i) {
      const uint8_t* left = bytes_ + (i / 3 * 6 + i % 3) * kBlockRows;
      interleave(left, left + 3 * kBlockRows, kBlockRows, columns_ + i * 2 * kBlockRows);
    }
  }

  void resample_column(const Window& window, int pair, uint32_t* sums) const {
    const int16_t* columns = columns_ + (window.from - pair) * 6 * kBlockRows;
    for (int r = 0; r < kBlockRows; r += kWords) {
      Sums<3> sum;
      sum.start(window.started ? sums + r : nullptr, kBlockRows);
      sum.add(columns + r * 2, 6 * kBlockRows, 2 * kBlockRows, window.weights,
              window.to - window.from);
      sum.store(sums + r, kBlockRows);
    }
  }

  // across_[column][row] -> rows.
  void turn_back(const uint8_t* (&rows)[kBlockRows]) {
    for (int64_t at = 0; at < width_; at += 16) {
      Bytes16 block[16];
      std::memcpy(block, across_.get() + at * kBlockRows, sizeof(block));
      transpose(block);
      for (int r = 0; r < kBlockRows; ++r) {
        std::memcpy(rows_.get() + r * stride_ + at, &block[r], sizeof(block[r]));
      }
    }
    for (int r = 0; r < kBlockRows; ++r) rows[r] = rows_.get() + r * stride_;
  }

  void resample_down(const Window& window, int pair, uint32_t* partial) {
    constexpr int kVecs = 4;
    const int16_t* pairs = row_pairs_.get() + (window.from - pair) * 2 * stride_;
    uint32_t* dst = window.done ? sums_.get() : partial;
    for (int64_t at = 0; at < stride_; at += kVecs * kWords) {
      Sums<kVecs> sum;
      sum.start(window.started ? partial + at : nullptr, kWords);
      sum.add(pairs + 2 * at, 2 * stride_, 2 * kWords, window.weights, window.to - window.from);
      sum.store(dst + at, kWords);
    }
  }

  int64_t width_;   // bytes of an output row of one tile
  int64_t stride_;  // padded to what resample_down takes at once
  alignas(64) int16_t columns_[kChunkPairs * 3 * kBlockRows * 2];
  alignas(64) uint8_t bytes_[(kChunkPairs * 6 + 16) * kBlockRows];
  std::unique_ptr<uint32_t[]> across_sums_;  // [3 S, rows]
  std::unique_ptr<uint8_t[]> across_;        // [3 S, rows]
  std::unique_ptr<uint8_t[]> rows_;          // [rows, stride]
  std::unique_ptr<int16_t[]> row_pairs_;     // [rows / 2, stride, 2]
  std::unique_ptr<uint32_t[]> sums_;         // [stride]
  std::unique_ptr<uint8_t[]> row_;           // [3 S]
  std::unique_ptr<uint32_t[]> partials_;     // [num_partials, stride], output rows in turn
  int64_t num_partials_ = 0;
};

}  // namespace lightvl::cpu::LIGHTVL_ISA
