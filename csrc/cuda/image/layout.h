// How an output picture is cut into blocks, and where a block keeps what in shared memory. Read by
// the host, which chooses, and by the kernel.
#pragma once

#include <cstdint>

namespace lightvl::cuda {

constexpr int kImageWarps = 8;
constexpr int kImageThreads = 32 * kImageWarps;
constexpr int kThirdOfShared = 72400;  // bytes that let three blocks share a multiprocessor
constexpr int kHalfOfShared = 111000;  // and two
constexpr int kMaxOutputs = 128;       // of a block along an axis
constexpr int kTileOutputs = 16;       // of one matrix product
constexpr int kStepInputs = 32;        // of one matrix product
constexpr int kTileLines = 8;          // of one matrix product
constexpr int kDigits = 3;             // 8-bit parts of a weight
constexpr int kDigitBytes = kTileOutputs * kStepInputs;

// One axis of a resize as Pillow sees it.
struct ImageAxis {
  double scale;    // inputs per output
  double support;  // of the filter, in inputs
  double inverse;  // of the filter's scale
  int32_t in_size, out_size;
};

// Byte offsets and strides in a block's shared memory. The finished pixels take the place of the
// raw ones and the first axis' digits, the weights' scratch that of the values between the passes.
struct ImageLayout {
  int32_t outputs[2];  // of a block along the first and the second axis resampled
  int32_t steps[2];    // of 32 inputs that the windows of 16 outputs span
  int32_t max_taps[2];
  int32_t chunk_lines;        // lines that the first pass takes at once, a multiple of 8
  int32_t raw_stride;         // bytes between rows of raw pixels
  int32_t packs;              // of 16 bytes in a row, at most
  int32_t raw_bytes;          // of a chunk; two lie at 0
  int32_t middle_stride;      // between outputs of the first pass, lines of the second
  int32_t middle, digits[2];  // offsets
  int32_t num_bytes;
};

// A picture resized to a grid of tiles. Its blocks go row by row through all tiles.
struct ImageTarget {
  const uint8_t* pixels;  // [y.in_size, x.in_size, 3]
  ImageAxis axis[2];      // x, y
  int64_t first_tile;
  int32_t cols;                        // tiles in a row
  int32_t down_first;                  // order of the two passes
  int32_t first_block;                 // of the launch
  int32_t blocks_across, blocks_down;  // of a tile
  int32_t block_cost;                  // about the time of a block's warp, in instructions
  ImageLayout layout;
};

constexpr int kMaxTargets = 16;

struct ImageLaunch {
  ImageTarget targets[kMaxTargets];
  int32_t num_targets;
  int32_t tile_size, patch_size, per_side;  // patches along a side of a tile
  int32_t first_wave;                       // blocks that may begin while the kernel before ends
  float mean_std[6];
  void* out;  // [tiles, patches, 3, patch_size, patch_size]
};

}  // namespace lightvl::cuda
