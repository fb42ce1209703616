// The kernels through their table, without torch: rows split over calls give the same bits.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"

using namespace lightvl;

namespace lightvl::cpu::LIGHTVL_ISA {
extern const Kernels table;
}

namespace {

constexpr int64_t kTokens = 9, kWidth = 111;

std::vector<float> numbers(int64_t size) {
  std::vector<float> x(size);
  for (int64_t i = 0; i < size; ++i) x[i] = std::sin(static_cast<float>(i) * 0.7f) * 3.0f;
  return x;
}

TEST(rms_norm_by_rows_and_whole) {
  const std::vector<float> x = numbers(kTokens * kWidth), weight = numbers(kWidth);
  std::vector<float> whole(x.size(), NAN), parts(x.size(), NAN);
  RmsNormParams p{
      .x = x.data(),
      .weight = weight.data(),
      .out = whole.data(),
      .num_tokens = kTokens,
      .num_heads = 1,
      .width = kWidth,
      .x_stride_t = kWidth,
      .x_stride_h = 0,
      .out_stride_t = kWidth,
      .out_stride_h = 0,
      .eps = 1e-5f,
      .dtype = DType::kFloat32,
  };
  const auto rms_norm = cpu::LIGHTVL_ISA::table.rms_norm;
  rms_norm(p, 0, kTokens);
  p.out = parts.data();
  rms_norm(p, 4, kTokens);
  CHECK(std::isnan(parts[4 * kWidth - 1]));
  rms_norm(p, 0, 4);
  CHECK(std::memcmp(whole.data(), parts.data(), whole.size() * sizeof(float)) == 0);
  double squares = 0.0;
  for (int64_t c = 0; c < kWidth; ++c) squares += static_cast<double>(x[c]) * x[c];
  const double want = x[5] / std::sqrt(squares / kWidth + 1e-5) * weight[5];
  CHECK(std::fabs(whole[5] - want) < 1e-5);
}

TEST(the_chosen_table_is_a_supported_one) { CHECK(cpu::is_supported(cpu::isa())); }

TEST(an_unknown_set_is_not_supported) { CHECK(!cpu::is_supported("mmx")); }

}  // namespace

TEST_MAIN()
