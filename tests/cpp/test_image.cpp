// The integer sums of resizing: exact for every weight, and whatever is split between calls.
#include <cstdlib>

#include "check.h"
#include "cpu/image_pairs.h"
#include "cpu/kernels.h"

using namespace lightvl::cpu::LIGHTVL_ISA;
using lightvl::cpu::kLowWeightBits;
using lightvl::cpu::kWeightBits;

namespace {

TEST(bytes_are_turned) {
  Bytes16 v[16];
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) v[i][j] = static_cast<uint8_t>(i * 16 + j);
  }
  transpose(v);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) CHECK(v[j][i] == i * 16 + j);
  }
}

TEST(sums_are_clamped_to_8_bits) {
  const uint32_t one = 1u << kWeightBits;
  const uint32_t sums[] = {0, one - 1, one, 255 * one + one - 1, 256 * one, 0u - 1, 0u - 300 * one};
  uint8_t bytes[7];
  clamp_row(sums, 7, bytes);
  const uint8_t want[] = {0, 0, 1, 255, 255, 0, 0};
  for (int i = 0; i < 7; ++i) CHECK(bytes[i] == want[i]);
}

TEST(weighted_sums_are_exact) {
  constexpr int kPairs = 6;
  std::srand(1);
  for (int trial = 0; trial < 2000; ++trial) {
    int16_t pairs[kPairs * kWords * 2];
    int32_t weights[kPairs * 2];
    uint32_t parts[kPairs * 2];
    for (int16_t& pixel : pairs) pixel = static_cast<int16_t>(std::rand() % 256);
    for (int i = 0; i < kPairs; ++i) {
      for (int side = 0; side < 2; ++side) {
        weights[2 * i + side] = std::rand() % (1 << (kWeightBits - 1)) - (1 << (kWeightBits - 2));
      }
      const int32_t left = weights[2 * i], right = weights[2 * i + 1];
      const uint32_t mask = (1u << kLowWeightBits) - 1;
      const uint32_t high_left = left >> kLowWeightBits, high_right = right >> kLowWeightBits;
      parts[2 * i] = (high_left & 0xffff) | high_right << 16;
      parts[2 * i + 1] = (left & mask) | (right & mask) << 16;
    }
    const int split = trial % (kPairs + 1);
    uint32_t sums[kWords];
    Sums<1> first, second;
    first.start(nullptr, kWords);
    first.add(pairs, 2 * kWords, 0, parts, split);
    first.store(sums, kWords);
    second.start(sums, kWords);
    second.add(pairs + split * 2 * kWords, 2 * kWords, 0, parts + 2 * split, kPairs - split);
    second.store(sums, kWords);
    for (int lane = 0; lane < kWords; ++lane) {
      int64_t want = 1 << (kWeightBits - 1);
      for (int i = 0; i < 2 * kPairs; ++i) {
        want += int64_t{weights[i]} * pairs[i / 2 * 2 * kWords + 2 * lane + i % 2];
      }
      CHECK(static_cast<int32_t>(sums[lane]) == want);
    }
  }
}

}  // namespace

TEST_MAIN()
