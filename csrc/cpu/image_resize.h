// The two passes of a resize, each over blocks of 16 rows, so that no whole picture is ever held
// between them.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>

#include "cpu/image_pairs.h"
#include "cpu/image_plan.h"

namespace lightvl::cpu::LIGHTVL_ISA {

using BlockRows = const uint8_t* [kBlockRows];

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

// Resamples across: rows of a picture -> rows of `num_outputs` columns. The rows are turned, so
// that vectors run down them, and the result is turned back.
class AcrossPass {
 public:
  explicit AcrossPass(int64_t num_outputs)
      : width_(num_outputs * 3),
        stride_((width_ + 15) / 16 * 16),
        sums_(new uint32_t[width_ * kBlockRows]),
        turned_(new uint8_t[stride_ * kBlockRows]),
        rows_(new uint8_t[stride_ * kBlockRows]) {}

  // Replaces `rows` by output columns [first, first + num_outputs) of them. The rows given begin
  // at pixel pair `origin` of the picture and hold row_bytes.
  void run(const ResizeAxis& axis, int64_t first, int origin, int64_t row_bytes, BlockRows& rows) {
    const int64_t last = first + width_ / 3;
    const int pair_end = axis.end_pair[last - 1];
    int64_t next = first;
    for (int pair = axis.first_pair[first]; pair < pair_end; pair += kChunkPairs) {
      const int chunk_end = pair + kChunkPairs < pair_end ? pair + kChunkPairs : pair_end;
      turn(rows, (pair - origin) * 6, (chunk_end - origin) * 6, row_bytes);
      for (int64_t i = next; i < last && axis.first_pair[i] < chunk_end; ++i) {
        const Window window(axis, i, pair, chunk_end);
        const int64_t at = (i - first) * 3 * kBlockRows;
        resample(window, pair, sums_.get() + at);
        if (window.done) {
          clamp_row(sums_.get() + at, 3 * kBlockRows, turned_.get() + at);
          next = i + 1;
        }
      }
    }
    turn_back(rows);
  }

 private:
  static constexpr int kChunkPairs = 128;  // input pixel pairs that are turned at once

  // Bytes [begin, end) of the rows -> columns_[pair][channel][row][2].
  void turn(const BlockRows& rows, int64_t begin, int64_t end, int64_t row_bytes) {
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
    for (int64_t i = 0; i < (end - begin) / 2; ++i) {
      const uint8_t* left = bytes_ + (i / 3 * 6 + i % 3) * kBlockRows;
      interleave(left, left + 3 * kBlockRows, kBlockRows, columns_ + i * 2 * kBlockRows);
    }
  }

  void resample(const Window& window, int pair, uint32_t* sums) const {
    const int16_t* columns = columns_ + (window.from - pair) * 6 * kBlockRows;
    for (int r = 0; r < kBlockRows; r += kWords) {
      Sums<3> sum;
      sum.start(window.started ? sums + r : nullptr, kBlockRows);
      sum.add(columns + r * 2, 6 * kBlockRows, 2 * kBlockRows, window.weights,
              window.to - window.from);
      sum.store(sums + r, kBlockRows);
    }
  }

  void turn_back(BlockRows& rows) {
    for (int64_t at = 0; at < width_; at += 16) {
      Bytes16 block[16];
      std::memcpy(block, turned_.get() + at * kBlockRows, sizeof(block));
      transpose(block);
      for (int r = 0; r < kBlockRows; ++r) {
        std::memcpy(rows_.get() + r * stride_ + at, &block[r], sizeof(block[r]));
      }
    }
    for (int r = 0; r < kBlockRows; ++r) rows[r] = rows_.get() + r * stride_;
  }

  int64_t width_, stride_;  // bytes of an output row
  alignas(64) int16_t columns_[kChunkPairs * 3 * kBlockRows * 2];
  alignas(64) uint8_t bytes_[kChunkPairs * 6 * kBlockRows];
  std::unique_ptr<uint32_t[]> sums_;   // [3 * outputs, rows]
  std::unique_ptr<uint8_t[]> turned_;  // [3 * outputs, rows]
  std::unique_ptr<uint8_t[]> rows_;    // [rows, stride]
};

// Resamples down: takes blocks of rows in turn and gives each output row when its window is full.
class DownPass {
 public:
  // Output rows [first, last) of rows of `width` bytes.
  void begin(const ResizeAxis& axis, int64_t first, int64_t last, int64_t width) {
    axis_ = axis;
    next_ = first;
    last_ = last;
    width_ = width;
    num_partials_ = most_open(axis, first, last);
    const int64_t stride = (width + kStep - 1) / kStep * kStep;
    reserve(stride, num_partials_ * stride);
    stride_ = stride;
  }

  int first_pair() const { return axis_.first_pair[next_]; }
  bool finished() const { return next_ == last_; }

  // Adds rows [2 * pair, 2 * pair + kBlockRows); calls emit(output row, its bytes).
  template <class Emit>
  void add(const BlockRows& rows, int pair, Emit&& emit) {
    for (int r = 0; r < kBlockRows; r += 2) {
      interleave(rows[r], rows[r + 1], width_, pairs_.get() + r * stride_);
    }
    const int end = pair + kBlockPairs;
    for (int64_t i = next_; i < last_ && axis_.first_pair[i] < end; ++i) {
      const Window window(axis_, i, pair, end);
      resample(window, pair, partials_.get() + i % num_partials_ * stride_);
      if (window.done) {
        clamp_row(sums_.get(), width_, row_.get());
        emit(i, row_.get());
        next_ = i + 1;
      }
    }
  }

 private:
  static constexpr int kVecs = 4;
  static constexpr int kStep = kVecs * kWords;

  // The largest number of output rows whose windows are open at once.
  static int64_t most_open(const ResizeAxis& axis, int64_t first, int64_t last) {
    int64_t most = 1, end = first;
    for (int64_t i = first; i < last; ++i) {
      while (end < last && axis.first_pair[end] < axis.end_pair[i]) ++end;
      most = end - i > most ? end - i : most;
    }
    return most;
  }

  void reserve(int64_t stride, int64_t num_partial_words) {
    if (stride > reserved_) {
      reserved_ = stride;
      pairs_.reset(new int16_t[stride * kBlockRows]());
      sums_.reset(new uint32_t[stride]);
      row_.reset(new uint8_t[stride]);
    }
    if (num_partial_words > reserved_partials_) {
      reserved_partials_ = num_partial_words;
      partials_.reset(new uint32_t[num_partial_words]);
    }
  }

  void resample(const Window& window, int pair, uint32_t* partial) {
    const int16_t* pairs = pairs_.get() + (window.from - pair) * 2 * stride_;
    uint32_t* dst = window.done ? sums_.get() : partial;
    for (int64_t at = 0; at < stride_; at += kStep) {
      Sums<kVecs> sum;
      sum.start(window.started ? partial + at : nullptr, kWords);
      sum.add(pairs + 2 * at, 2 * stride_, 2 * kWords, window.weights, window.to - window.from);
      sum.store(dst + at, kWords);
    }
  }

  ResizeAxis axis_;
  int64_t next_, last_;
  int64_t width_, stride_;
  int64_t num_partials_;
  int64_t reserved_ = 0, reserved_partials_ = 0;
  std::unique_ptr<int16_t[]> pairs_;      // [rows / 2, stride, 2]
  std::unique_ptr<uint32_t[]> sums_;      // [stride], of the row just done
  std::unique_ptr<uint8_t[]> row_;        // [stride]
  std::unique_ptr<uint32_t[]> partials_;  // [num_partials, stride], open output rows in turn
};

// Resizes strips of tile_size columns.
class StripResizer {
 public:
  explicit StripResizer(int64_t tile_size) : tile_size_(tile_size), across_(tile_size) {}

  // Calls writer.write(row, [S, 3] pixels) for output rows [first, last).
  template <class Writer>
  void run(const ImageStrip& strip, int64_t first, int64_t last, const Writer& writer) {
    if (first >= last) return;
    if (strip.down_first) {
      run_down_first(strip, first, last, writer);
    } else {
      run_across_first(strip, first, last, writer);
    }
  }

 private:
  static bool unchanged(const ResizeAxis& axis) { return axis.in_size == axis.out_size; }

  // Input rows [2 * pair, 2 * pair + kBlockRows) from byte `offset` on; rows behind the last one
  // have no weight.
  static void find_rows(const ImageStrip& strip, int pair, int64_t offset, BlockRows& rows) {
    for (int r = 0; r < kBlockRows; ++r) {
      const int row = 2 * pair + r < strip.y.in_size ? 2 * pair + r : strip.y.in_size - 1;
      rows[r] = strip.pixels + int64_t{row} * strip.x.in_size * 3 + offset;
    }
  }

  template <class Writer>
  void run_across_first(const ImageStrip& strip, int64_t first, int64_t last,
                        const Writer& writer) {
    down_.begin(strip.y, first, last, tile_size_ * 3);
    for (int pair = down_.first_pair(); !down_.finished(); pair += kBlockPairs) {
      BlockRows rows;
      find_rows(strip, pair, unchanged(strip.x) ? strip.x_begin * 3 : 0, rows);
      if (!unchanged(strip.x)) {
        across_.run(strip.x, strip.x_begin, 0, int64_t{strip.x.in_size} * 3, rows);
      }
      down_.add(rows, pair, [&](int64_t row, const uint8_t* pixels) { writer.write(row, pixels); });
    }
  }

  template <class Writer>
  void run_down_first(const ImageStrip& strip, int64_t first, int64_t last, const Writer& writer) {
    const int64_t x_last = strip.x_begin + tile_size_ - 1;
    const int64_t begin =
        unchanged(strip.x) ? strip.x_begin : strip.x.first_pair[strip.x_begin] * 2;
    const int64_t end = unchanged(strip.x) ? x_last + 1 : strip.x.end_pair[x_last] * 2;
    const int64_t width = ((end < strip.x.in_size ? end : strip.x.in_size) - begin) * 3;
    const std::unique_ptr<uint8_t[]> block(new uint8_t[width * kBlockRows]());
    const auto flush = [&](int64_t row_end) {
      const int64_t row_begin = (row_end - 1 - first) / kBlockRows * kBlockRows + first;
      BlockRows rows;
      for (int r = 0; r < kBlockRows; ++r) rows[r] = block.get() + r * width;
      if (!unchanged(strip.x)) {
        across_.run(strip.x, strip.x_begin, static_cast<int>(begin / 2), width, rows);
      }
      for (int64_t row = row_begin; row < row_end; ++row) writer.write(row, rows[row - row_begin]);
    };
    down_.begin(strip.y, first, last, width);
    for (int pair = down_.first_pair(); !down_.finished(); pair += kBlockPairs) {
      BlockRows rows;
      find_rows(strip, pair, begin * 3, rows);
      down_.add(rows, pair, [&](int64_t row, const uint8_t* pixels) {
        std::memcpy(block.get() + (row - first) % kBlockRows * width, pixels, width);
        if ((row + 1 - first) % kBlockRows == 0 || row + 1 == last) flush(row + 1);
      });
    }
  }

  int64_t tile_size_;
  AcrossPass across_;
  DownPass down_;
};

}  // namespace lightvl::cpu::LIGHTVL_ISA
