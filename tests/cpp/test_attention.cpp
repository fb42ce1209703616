// The register-level pieces of attention against plain loops in double.
#include <cmath>
#include <vector>

#include "check.h"
#include "cpu/attention_tile.h"
#include "cpu/kernels.h"

using namespace lightvl::cpu::LIGHTVL_ISA;

namespace {

std::vector<float> numbers(size_t n) {
  std::vector<float> values(n);
  uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
  }
  return values;
}

TEST(exp2_is_accurate_and_ends_in_zero) {
  double worst = 0.0;
  for (int i = 0; i <= 1000000; ++i) {
    const float x = -125.9f * static_cast<float>(i) / 1000000.0f;
    const double want = std::exp2(static_cast<double>(x));
    worst = std::fmax(worst, std::fabs(exp2_nonpositive(broadcast(x))[0] - want) / want);
  }
  CHECK(worst < 2e-7);
  CHECK(exp2_nonpositive(broadcast(0.0f))[0] == 1.0f);
  for (const float x : {-126.5f, -1e4f, -1e30f, -INFINITY}) {
    CHECK(exp2_nonpositive(broadcast(x))[kLanes - 1] == 0.0f);
  }
  CHECK(std::isnan(exp2_nonpositive(broadcast(NAN))[0]));
}

TEST(sums_and_maximum_take_every_lane_once) {
  for (int lane = 0; lane < kLanes; ++lane) {
    Vec one = broadcast(-3.0f);
    one[lane] = 5.0f;
    CHECK(max_of(one) == 5.0f);
    CHECK(sum_of(one) == 5.0f - 3.0f * (kLanes - 1));
  }
}

TEST(registers_are_summed_and_turned_in_order) {
  Vec v[kLanes], turned[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) v[i][j] = static_cast<float>(i * 100 + j);
    turned[i] = v[i];
  }
  transpose(turned);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) CHECK(turned[j][i] == v[i][j]);
  }
  const Vec sums = sum_each(v);
  for (int i = 0; i < kLanes; ++i) {
    CHECK(sums[i] == static_cast<float>(kLanes * i * 100 + kLanes * (kLanes - 1) / 2));
  }
}

// Every number of rows, so every remainder of the register blocking.
template <Product kProduct>
void check_products() {
  constexpr bool kByColumn = kProduct == Product::kAccumulateColumns;
  constexpr int kMaxRows = 14, kVecs = kTileVecs + 1, kColumns = kVecs * kLanes, kDepth = 9;
  const std::vector<float> a = numbers(kMaxRows * kMaxRows), b = numbers(kDepth * kColumns);
  const std::vector<float> before = numbers(kMaxRows * kColumns), scale = numbers(kMaxRows);
  for (int rows = 1; rows <= kMaxRows; ++rows) {
    std::vector<float> c = before;
    multiply<kProduct>(rows, kVecs, kDepth, a.data(), kMaxRows, b.data(), kColumns, c.data(),
                       kColumns, scale.data());
    for (int r = 0; r < kMaxRows; ++r) {
      for (int column = 0; column < kColumns; ++column) {
        const size_t at = static_cast<size_t>(r) * kColumns + column;
        double want = kProduct == Product::kScores ? 0.0 : double{before[at]} * scale[r];
        for (int i = 0; i < kDepth; ++i) {
          const float x = kByColumn ? a[i * kMaxRows + r] : a[r * kMaxRows + i];
          want += double{x} * b[i * kColumns + column];
        }
        CHECK(std::fabs(c[at] - (r < rows ? want : before[at])) < 2e-6);
      }
    }
  }
}

TEST(products_equal_plain_loops) {
  check_products<Product::kScores>();
  check_products<Product::kAccumulate>();
  check_products<Product::kAccumulateColumns>();
}

}  // namespace

TEST_MAIN()
