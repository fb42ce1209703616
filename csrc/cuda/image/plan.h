// Chooses the blocks that a target is made in: which fit shared memory, and which of those do the
// least work for an output. Host code.
#pragma once

#include <algorithm>
#include <cmath>

#include "cuda/image/layout.h"

namespace lightvl::cuda {

inline ImageAxis make_axis(int64_t in_size, int64_t out_size) {
  ImageAxis axis;
  axis.scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  const double filter_scale = std::max(axis.scale, 1.0);
  axis.support = 2.0 * filter_scale;
  axis.inverse = 1.0 / filter_scale;
  axis.in_size = static_cast<int32_t>(in_size);
  axis.out_size = static_cast<int32_t>(out_size);
  return axis;
}

// Pillow's rule since 13.0: down first where the height shrinks by more than twice what the width
// does, in pixels. The order shows, because the values between the passes are rounded.
inline bool goes_down_first(const ImageAxis& x, const ImageAxis& y) {
  const int64_t rows_less = int64_t{y.in_size} - y.out_size;
  const int64_t columns_less = int64_t{x.in_size} - x.out_size;
  return rows_less > 0 && rows_less > 2 * columns_less;
}

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Bytes between lines that eight lines' words, read at once, meet in no bank: an odd multiple
// of 16.
inline int64_t line_bytes(int64_t inputs) { return round_up(inputs, 16) | 16; }

// The most inputs that `count` neighbouring outputs need, from a multiple of 4 on.
inline int64_t most_inputs(const ImageAxis& axis, int64_t count) {
  const double span = (static_cast<double>(count) - 1) * axis.scale + 2 * axis.support;
  return std::min<int64_t>(static_cast<int64_t>(span) + 1, axis.in_size) + 3;
}

// What blocks of so many outputs along an axis need.
struct SidePlan {
  int64_t outputs, padded, inputs, steps, max_taps, digit_bytes;

  SidePlan() = default;
  SidePlan(const ImageAxis& axis, int64_t outputs)
      : outputs(outputs),
        padded(round_up(outputs, kTileOutputs)),
        inputs(most_inputs(axis, outputs)),
        steps((most_inputs(axis, kTileOutputs) + kStepInputs - 1) / kStepInputs),
        max_taps(static_cast<int64_t>(std::ceil(axis.support)) * 2 + 1),
        digit_bytes(padded / kTileOutputs * steps * kDigits * kDigitBytes) {}

  int64_t tiles() const { return padded / kTileOutputs; }
};

// The layout of blocks of two sides, along the first and the second axis resampled.
inline ImageLayout make_layout(const SidePlan& first, const SidePlan& second, bool down_first,
                               int64_t chunk, int64_t pixel_bytes) {
  // Products take whole steps of a line's inputs and up to three behind it, with weights of zero,
  // but nothing of the other chunk, which is being copied.
  const int64_t inputs = std::max(first.inputs, first.steps * kStepInputs);
  const int64_t raw_rows = down_first ? inputs + 3 : chunk;
  const int64_t raw_stride = line_bytes((down_first ? chunk : inputs) * 3 + 15);
  const int64_t raw = raw_rows * raw_stride + 16;
  const int64_t scratch = (first.outputs * first.max_taps + second.outputs * second.max_taps) * 8;
  const int64_t middle_stride = line_bytes(round_up(second.inputs, kTileLines));
  const int64_t middle = std::max(3 * first.outputs * middle_stride, round_up(scratch, 16));
  const int64_t middle_at = std::max(2 * raw + first.digit_bytes, round_up(pixel_bytes, 16));
  const int64_t digits_at = middle_at + middle;
  // Those of the second pass may go on into what is behind its lines.
  const int64_t beyond = kTileLines * middle_stride + second.steps * kStepInputs;
  const auto number = [](int64_t value) {
    return static_cast<int32_t>(std::min<int64_t>(value, 1 << 30));
  };
  return {{number(first.outputs), number(second.outputs)},
          {number(first.steps), number(second.steps)},
          {number(first.max_taps), number(second.max_taps)},
          number(chunk),
          number(raw_stride),
          number(((down_first ? chunk : first.inputs) * 3 + 30) / 16),
          number(raw),
          number(middle_stride),
          number(middle_at),
          {number(2 * raw), number(digits_at)},
          number(digits_at + std::max(second.digit_bytes, beyond))};
}

// About the instructions of a block's warp for each output.
inline double cost_of(const ImageLayout& l, const SidePlan& first, const SidePlan& second) {
  const auto turns = [](const SidePlan& side, int64_t groups) {
    const int64_t parts = kImageWarps / side.tiles();
    return static_cast<double>((groups + parts - 1) / parts);
  };
  const int64_t chunks = second.inputs / l.chunk_lines;
  const int64_t rest = second.inputs - chunks * l.chunk_lines;
  const double across = static_cast<double>(chunks) * turns(first, l.chunk_lines / kTileLines) +
                        turns(first, (rest + kTileLines - 1) / kTileLines);
  const double down = turns(second, (first.outputs + kTileLines - 1) / kTileLines);
  const auto outputs = static_cast<double>(first.outputs * second.outputs);
  const auto weights = static_cast<double>(first.outputs * (100 + 70 * first.max_taps) +
                                           second.outputs * (100 + 70 * second.max_taps)) /
                       kImageThreads;
  const auto copies = static_cast<double>(first.inputs * second.inputs) * (3.0 * 20 / 512 / 8);
  return (across * (55.0 + 30.0 * static_cast<double>(first.steps)) +
          down * (80.0 + 20.0 * static_cast<double>(second.steps)) + weights + copies + 800 +
          100.0 * static_cast<double>(chunks)) /
         outputs;
}

// The sides that blocks may have: whole patches, else parts of one; longest first.
struct SideLengths {
  int64_t lengths[2 * kMaxOutputs];
  int count = 0, whole = 0;

  SideLengths(int64_t tile_size, int64_t patch_size) {
    const auto per_side = static_cast<int>(tile_size / patch_size);
    const auto size = static_cast<int>(patch_size);
    for (int n = std::min(kMaxOutputs / size, per_side); n > 0; --n) {
      if (per_side % n == 0) lengths[count++] = n * patch_size;
    }
    whole = count;
    for (int n = std::min(kMaxOutputs, size - 1); n > 0; --n) {
      if (size % n == 0) lengths[count++] = n;
    }
  }
};

constexpr double kChunkWait = 200;  // in instructions, about

// Chooses target.layout and the cost of its blocks; false if no block fits into `limit` bytes, of
// whole patches if `whole`. `most` outputs a block keep the GPU busy.
inline bool choose_layout(ImageTarget& target, const SideLengths& sides, int64_t patch_size,
                          int64_t element_bytes, int64_t most, int64_t limit, bool whole) {
  const bool down_first = target.down_first != 0;
  const ImageAxis &x = target.axis[down_first], &y = target.axis[1 - down_first];
  const int count = whole ? sides.whole : sides.count;
  double best = INFINITY;
  for (int a = 0; a < count; ++a) {
    const SidePlan first(x, sides.lengths[a]);
    double last = INFINITY;
    for (int b = 0; b < count; ++b) {
      if (best < INFINITY && std::max(a, b) >= sides.whole) break;
      const SidePlan second(y, sides.lengths[b]);
      if (first.outputs * second.outputs > most && b + 1 < sides.whole) continue;
      const int64_t pixels =
          round_up(first.outputs, patch_size) * round_up(second.outputs, patch_size);
      ImageLayout layout;
      int64_t chunk = 128;
      do {
        chunk /= 2;
        layout = make_layout(first, second, down_first, chunk, 3 * pixels * element_bytes);
      } while (chunk > 16 && layout.num_bytes > limit);
      if (layout.num_bytes > limit) continue;
      const double cost = cost_of(layout, first, second);
      if (cost > last) break;  // shorter ones cost even more
      last = cost;
      if (cost >= best) continue;
      best = cost;
      target.layout = layout;
      // Besides, a block waits for each chunk.
      const int64_t chunks = (second.inputs + chunk - 1) / chunk;
      target.block_cost = static_cast<int32_t>(
          cost * static_cast<double>(first.outputs * second.outputs) + kChunkWait * chunks);
    }
  }
  return best < INFINITY;
}

}  // namespace lightvl::cuda
