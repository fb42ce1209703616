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

// The layout of blocks of outputs[0] x outputs[1], along the first and the second axis resampled.
inline ImageLayout make_layout(const ImageAxis& first, const ImageAxis& second, bool down_first,
                               int64_t outputs0, int64_t outputs1, int64_t chunk,
                               int64_t pixel_bytes) {
  const int64_t inputs[2] = {most_inputs(first, outputs0), most_inputs(second, outputs1)};
  const ImageAxis* axis[2] = {&first, &second};
  const int64_t outputs[2] = {outputs0, outputs1};
  int64_t padded[2], steps[2], max_taps[2], digits[2], scratch = 0;
  for (int i = 0; i < 2; ++i) {
    padded[i] = round_up(outputs[i], kTileOutputs);
    steps[i] = (most_inputs(*axis[i], kTileOutputs) + kStepInputs - 1) / kStepInputs;
    max_taps[i] = static_cast<int64_t>(std::ceil(axis[i]->support)) * 2 + 1;
    digits[i] = padded[i] / kTileOutputs * steps[i] * kDigits * kDigitBytes;
    scratch += outputs[i] * max_taps[i] * 8;
  }
  const int64_t raw_rows = down_first ? inputs[0] : chunk;
  const int64_t raw_columns = down_first ? chunk : inputs[0];
  const int64_t raw_stride = line_bytes(raw_columns * 3 + 15);
  const int64_t raw = raw_rows * raw_stride;
  const int64_t middle_stride = line_bytes(round_up(inputs[1], kTileLines));
  const int64_t middle = std::max(3 * padded[0] * middle_stride, round_up(scratch, 16));
  const int64_t middle_at = std::max(2 * raw + digits[0], round_up(pixel_bytes, 16));
  const int64_t digits_at = middle_at + middle;
  // Products read inputs behind a line's end, with weights of zero.
  const int64_t beyond = 2 * raw + (down_first ? kStepInputs * raw_stride : kStepInputs * 3);
  const auto number = [](int64_t value) {
    return static_cast<int32_t>(std::min<int64_t>(value, 1 << 30));
  };
  return {{number(outputs0), number(outputs1)},
          {number(steps[0]), number(steps[1])},
          {number(max_taps[0]), number(max_taps[1])},
          number(chunk),
          number(raw_stride),
          raw_stride > 272   ? 5
          : raw_stride > 144 ? 4
                             : 3,
          number(raw),
          number(middle_stride),
          number(middle_at),
          {number(2 * raw), number(digits_at)},
          number(std::max(digits_at + digits[1], beyond))};
}

// About the instructions of a block, of each of its warps, for each of its outputs.
inline double cost_of(const ImageLayout& l, const ImageAxis& first, const ImageAxis& second) {
  const auto inputs0 = static_cast<double>(most_inputs(first, l.outputs[0]));
  const auto inputs1 = static_cast<double>(most_inputs(second, l.outputs[1]));
  const auto turns = [](int outputs, double groups) {
    const int tiles = (outputs + kTileOutputs - 1) / kTileOutputs;
    return std::ceil(groups / (kImageWarps / tiles));
  };
  const double chunks = std::floor(inputs1 / l.chunk_lines);
  const double across = (chunks * turns(l.outputs[0], l.chunk_lines / kTileLines) +
                         turns(l.outputs[0], (inputs1 - chunks * l.chunk_lines) / kTileLines)) *
                        (55 + 30 * l.steps[0]);
  const double down = turns(l.outputs[1], (l.outputs[0] + 7) / 8) * (80 + 20 * l.steps[1]);
  const double copies = inputs0 * inputs1 * 3 / 512 / kImageWarps * 15;
  const double weights =
      (l.outputs[0] * (100.0 + 30 * l.max_taps[0]) + l.outputs[1] * (100.0 + 30 * l.max_taps[1])) /
      kImageThreads;
  const double rest = 400 + 100 * chunks;
  const double crowded = l.num_bytes > 111000 ? 4.0 : l.num_bytes > 72500 ? 1.3 : 1.0;
  return crowded * (across + down + copies + weights + rest) / (l.outputs[0] * l.outputs[1]);
}

// Chooses target.layout; false if no block fits into `limit` bytes. A block is made of whole
// patches along an axis, or lies within one; `most` outputs a block keep the GPU busy.
inline bool choose_layout(ImageTarget& target, int64_t tile_size, int64_t patch_size,
                          int64_t element_bytes, int64_t most, int64_t limit) {
  const ImageAxis &first = target.axis[target.down_first],
                  second = target.axis[1 - target.down_first];
  const auto smaller = [&](int64_t outputs) {
    for (--outputs; outputs > 0; --outputs) {
      const bool fits = outputs % patch_size == 0 || patch_size % outputs == 0;
      if (fits && tile_size % outputs == 0) break;
    }
    return outputs;
  };
  const auto patches = [&](int64_t outputs) { return round_up(outputs, patch_size); };
  const int64_t side = smaller(std::min<int64_t>(kMaxOutputs, tile_size) + 1);
  double best = INFINITY;
  for (int64_t a = side; a > 0; a = smaller(a)) {
    for (int64_t b = side; b > 0; b = smaller(b)) {
      if (best < INFINITY && (a < patch_size || b < patch_size)) break;
      if (a * b > most && smaller(b) >= patch_size) continue;
      for (const int64_t chunk : {64, 32, 16}) {
        const ImageLayout layout =
            make_layout(first, second, target.down_first != 0, a, b, chunk,
                        3 * (patches(a) * patches(b) + patch_size * patch_size) * element_bytes);
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
