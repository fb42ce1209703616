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

// Bytes of a line: lines begin at odd multiples of 16 bytes, so that eight of them read at once
// meet in no bank.
inline int64_t line_bytes(int64_t inputs) { return round_up(inputs, 16) | 16; }

// The most inputs that `count` neighbouring outputs need.
inline int64_t most_inputs(const ImageAxis& axis, int64_t count) {
  const double span = (static_cast<double>(count) - 1) * axis.scale + 2 * axis.support;
  return std::min<int64_t>(static_cast<int64_t>(span) + 2, axis.in_size);
}

// The layout of blocks of outputs[0] x outputs[1], along the first and the second axis resampled.
inline ImageLayout make_layout(const ImageAxis& first, const ImageAxis& second, bool down_first,
                               int64_t outputs0, int64_t outputs1, int64_t chunk) {
  const int64_t inputs[2] = {most_inputs(first, outputs0), most_inputs(second, outputs1)};
  const ImageAxis* axis[2] = {&first, &second};
  const int64_t outputs[2] = {outputs0, outputs1};
  int64_t padded[2], steps[2], max_taps[2], digits[2], scratch = 0;
  for (int i = 0; i < 2; ++i) {
    padded[i] = round_up(outputs[i], kTileOutputs);
    // Windows of a product begin at a multiple of 4, up to 3 inputs early.
    steps[i] = (most_inputs(*axis[i], kTileOutputs) + 3 + kStepInputs - 1) / kStepInputs;
    max_taps[i] = static_cast<int64_t>(std::ceil(axis[i]->support)) * 2 + 1;
    digits[i] = padded[i] / kTileOutputs * steps[i] * kDigits * kDigitWords * 4;
    scratch += outputs[i] * max_taps[i] * 8;
  }
  const int64_t raw_rows = down_first ? inputs[0] : chunk;
  const int64_t raw_columns = down_first ? chunk : inputs[0];
  const int64_t raw_stride = round_up(raw_columns * 3 + 15, 16) + 16;
  const int64_t raw = std::max(raw_rows * raw_stride, 3 * padded[0] * padded[1]);
  const int64_t line_stride = line_bytes(inputs[0] + 3);
  const int64_t line = std::max(3 * chunk * line_stride + steps[0] * kStepInputs, scratch);
  const int64_t middle_stride = line_bytes(round_up(inputs[1], chunk));
  const int64_t middle = round_up(3 * padded[0], 16) * middle_stride + steps[1] * kStepInputs;
  const int64_t line_at = round_up(raw, 16), middle_at = round_up(line_at + line, 16);
  const int64_t digits_at = round_up(middle_at + middle, 16);
  const auto number = [](int64_t value) {
    return static_cast<int32_t>(std::min<int64_t>(value, 1 << 30));
  };
  return {{number(outputs0), number(outputs1)},
          {number(steps[0]), number(steps[1])},
          {number(max_taps[0]), number(max_taps[1])},
          number(chunk),
          number(raw_stride),
          number(line_stride),
          number(middle_stride),
          number(line_at),
          number(middle_at),
          {number(digits_at), number(digits_at + digits[0])},
          number(digits_at + digits[0] + digits[1])};
}

// About the instructions of a block for each of its outputs.
inline double cost_of(const ImageLayout& l, const ImageAxis& first, const ImageAxis& second) {
  const auto inputs0 = static_cast<double>(most_inputs(first, l.outputs[0]));
  const auto inputs1 = static_cast<double>(most_inputs(second, l.outputs[1]));
  const double tiles0 = (l.outputs[0] + 7) / 8, tiles1 = (l.outputs[1] + 7) / 8;
  const double groups0 = 3 * std::ceil(inputs1 / l.chunk_lines) * l.chunk_lines / 16;
  const double groups1 = std::ceil(3 * tiles0 / 2);
  const double products =
      groups0 * tiles0 * (22 + 8 * l.steps[0]) + groups1 * tiles1 * (22 + 8 * l.steps[1]);
  const double loads = inputs0 * inputs1 / 128 * 25;
  const double waits = 800 * std::ceil(inputs1 / l.chunk_lines);
  const double weights = 600 + 60.0 * (l.max_taps[0] + l.max_taps[1]);
  const double crowded = l.num_bytes > 108 << 10 ? 2.0 : l.num_bytes > 72 << 10 ? 1.3 : 1.0;
  return crowded * (products + loads + weights + waits) / (l.outputs[0] * l.outputs[1]);
}

// Chooses target.layout; false if no block fits into `limit` bytes.
inline bool choose_layout(ImageTarget& target, int64_t tile_size, int64_t patch_size,
                          int64_t limit) {
  const ImageAxis &first = target.axis[target.down_first],
                  second = target.axis[1 - target.down_first];
  int64_t side = std::min<int64_t>(kMaxOutputs, tile_size);
  for (int64_t n = side / patch_size; n > 0; --n) {
    if (tile_size % (n * patch_size) != 0) continue;
    side = n * patch_size;
    break;
  }
  // Where windows are narrow, smaller blocks never pay.
  const auto smaller = [](const ImageAxis& axis, int64_t outputs) {
    return axis.scale > 3.0 && outputs > 8 ? (outputs + 1) / 2 : 0;
  };
  double best = INFINITY;
  for (int64_t a = side; a > 0; a = smaller(first, a)) {
    for (int64_t b = side; b > 0; b = smaller(second, b)) {
      for (const int64_t chunk : {64, 48, 32, 16}) {
        const ImageLayout layout = make_layout(first, second, target.down_first != 0, a, b, chunk);
        const double cost = cost_of(layout, first, second);
        if (layout.num_bytes > limit || cost >= best) continue;
        best = cost;
        target.layout = layout;
      }
    }
  }
  return best < INFINITY;
}

}  // namespace lightvl::cuda
