// How pictures are cut into strips, and one axis of Pillow's 8-bit resampling.
#pragma once

#include <cstdint>

#include "params.h"

namespace lightvl::cpu {

constexpr int kWeightBits = 22;     // fraction bits of a weight
constexpr int kLowWeightBits = 15;  // weight = high * 2^15 + low, both 16-bit numbers

// Output i is the sum of the weighted inputs [first, first + count), rounded to 8 bits. Inputs are
// taken in aligned pairs (2n, 2n + 1), which is what one multiply-add instruction takes.
struct ResizeAxis {
  int32_t in_size, out_size;
  int32_t max_pairs;
  const int32_t* first_pair;  // [out_size], ascending
  const int32_t* end_pair;    // [out_size], ascending
  const uint32_t* weights;    // [out_size, max_pairs, 2]: a pair's high parts, then its low parts
};

// One column of tiles of one resized picture.
struct ImageStrip {
  const uint8_t* pixels;  // [y.in_size, x.in_size, 3]
  ResizeAxis x, y;
  bool down_first;                // order of the two passes
  int64_t x_begin;                // first column of the resized picture
  int64_t first_tile, tile_step;  // output row r lies in tile first_tile + r / S * tile_step
  int64_t row_cost;               // of one output row
  int64_t cost_begin;             // of all strips before this one
};

struct ImagePreprocessWork {
  const ImageStrip* strips;  // [num_strips], ascending cost_begin
  int64_t num_strips;
  int64_t tile_size, patch_size;
  const float* table;  // [3, 256], what a channel's 8-bit values become; unused by uint8
  void* out;           // [tiles, patches, 3, patch_size, patch_size]
  DType dtype;
};

// Input rows that are resampled at once.
constexpr int kBlockRows = 16;
constexpr int kBlockPairs = kBlockRows / 2;

}  // namespace lightvl::cpu
