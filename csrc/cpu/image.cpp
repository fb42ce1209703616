// Resizes pictures as Pillow's Image.resize(BICUBIC) does, bit for bit, cuts them into tiles and
// writes normalised patches, in one pass over each strip.
//
// 16 input rows at a time are turned so that vectors run down the rows, resampled across, turned
// back and added to the output rows whose window they touch. Sums are kept modulo 2^32: the whole
// sum fits, so partial sums and the split of a weight into two 16-bit parts are exact.
#include <memory>

#include "cpu/image_resize.h"
#include "cpu/kernels.h"

namespace lightvl::cpu::LIGHTVL_ISA {
namespace {

// Writes rows of one strip into its tiles: [tile, patch, channel, py, px].
template <class T>
struct PatchWriter {
  const ImagePreprocessWork& p;
  const ImageStrip& strip;
  const T* table;  // [3, 256]

  void write(int64_t row, const uint8_t* pixels) const {
    const int64_t size = p.patch_size, per_side = p.tile_size / size, area = size * size;
    const int64_t y = row % p.tile_size;
    const int64_t tile = strip.first_tile + row / p.tile_size * strip.tile_step;
    T* out = static_cast<T*>(p.out) + (tile * per_side + y / size) * per_side * 3 * area +
             y % size * size;
    for (int64_t patch = 0; patch < per_side; ++patch, out += 3 * area) {
      for (int64_t x = 0; x < size; ++x, pixels += 3) {
        for (int c = 0; c < 3; ++c) out[c * area + x] = table[c * 256 + pixels[c]];
      }
    }
  }
};

template <class T>
void run(const ImagePreprocessWork& p, int64_t begin, int64_t end, const T* table) {
  const std::unique_ptr<StripResizer> resizer(new StripResizer(p.tile_size));
  for (const ImageStrip* strip = p.strips; strip < p.strips + p.num_strips; ++strip) {
    // Row r begins at cost_begin + r * row_cost.
    const int64_t cost = strip->row_cost, rows = strip->y.out_size;
    const int64_t from = begin - strip->cost_begin, to = end - strip->cost_begin;
    const int64_t first = from <= 0 ? 0 : (from + cost - 1) / cost;
    const int64_t last = to <= 0 ? 0 : (to + cost - 1) / cost;
    const PatchWriter<T> writer{p, *strip, table};
    resizer->run(*strip, first, last < rows ? last : rows, writer);
  }
}

}  // namespace

void image_preprocess(const ImagePreprocessWork& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kUInt8) {
    uint8_t table[3 * 256];
    for (int i = 0; i < 3 * 256; ++i) table[i] = static_cast<uint8_t>(i % 256);
    return run(p, begin, end, table);
  }
  dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    T table[3 * 256];
    for (int i = 0; i < 3 * 256; ++i) table[i] = from_float<T>(p.table[i]);
    run(p, begin, end, table);
  });
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
