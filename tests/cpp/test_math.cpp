// Accuracy of the float32 functions against double, and the 16-bit conversions on every value.
#include <cmath>
#include <cstring>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/math.h"
#include "cpu/numeric.h"

using namespace lightvl::cpu::LIGHTVL_ISA;

namespace {

// Largest relative error of f against `exact` over `steps` points of [low, high].
template <class F, class Exact>
double worst_error(double low, double high, int steps, F f, Exact exact) {
  double worst = 0.0;
  for (int i = 0; i <= steps; ++i) {
    const float x = static_cast<float>(low + (high - low) * i / steps);
    const double want = exact(static_cast<double>(x));
    const double error = std::fabs(f(x) - want) / std::fabs(want);
    if (want != 0.0 && !(error <= worst)) worst = error;
  }
  return worst;
}

uint16_t rounded_half(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof(bits));
  return bits;
}

TEST(exp_is_accurate_and_saturates) {
  const auto exact = [](double x) { return std::exp(x); };
  CHECK(worst_error(-87.3, 88.3, 2000000, fast_exp, exact) < 2e-7);
  CHECK(worst_error(-1, 1, 2000000, fast_exp, exact) < 1.5e-7);
  CHECK(fast_exp(0.0f) == 1.0f);
  CHECK(fast_exp(-88.0f) == 0.0f && fast_exp(-1e30f) == 0.0f && fast_exp(-INFINITY) == 0.0f);
  CHECK(fast_exp(89.0f) == INFINITY && fast_exp(1e30f) == INFINITY &&
        fast_exp(INFINITY) == INFINITY);
  CHECK(std::isnan(fast_exp(NAN)));
}

TEST(log_is_accurate_also_near_one) {
  const auto exact = [](double x) { return std::log(x); };
  CHECK(worst_error(0.5, 2.0, 2000000, fast_log, exact) < 2e-7);
  CHECK(worst_error(0.999, 1.001, 200000, fast_log, exact) < 2e-7);
  CHECK(worst_error(2.0, 1e6, 200000, fast_log, exact) < 2e-7);
  CHECK(worst_error(1e-37, 1e-3, 200000, fast_log, exact) < 2e-7);
  CHECK(fast_log(1.0f) == 0.0f);
}

TEST(gelu_and_silu_keep_both_tails) {
  const auto exact_gelu = [](double x) { return x * std::erfc(-x / std::sqrt(2.0)) / 2; };
  const auto exact_silu = [](double x) { return x / (1 + std::exp(-x)); };
  const auto narrow_gelu = [](float x) { return gelu(x); };
  CHECK(worst_error(-3, 30, 2000000, narrow_gelu, exact_gelu) < 9e-7);
  CHECK(worst_error(-12, -3, 2000000, narrow_gelu, exact_gelu) < 5e-6);
  CHECK(worst_error(-80, 80, 2000000, silu, exact_silu) < 4e-7);
  CHECK(gelu(0.0f) == 0.0f && gelu(-100.0f) == 0.0f && gelu(100.0f) == 100.0f);
  CHECK(silu(-200.0f) == 0.0f && silu(200.0f) == 200.0f);
}

TEST(every_16_bit_number_survives_the_round_trip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float half = to_float(Float16{static_cast<uint16_t>(bits)});
    _Float16 want;
    const uint16_t narrow = static_cast<uint16_t>(bits);
    std::memcpy(&want, &narrow, sizeof(want));
    const bool is_nan = half != half;
    CHECK(is_nan ? want != want : half == static_cast<float>(want));
    if (!is_nan) CHECK(from_float<Float16>(half).bits == bits);
    const float brain = to_float(BFloat16{narrow});
    if (brain == brain) CHECK(from_float<BFloat16>(brain).bits == bits);
  }
  CHECK(std::isnan(to_float(from_float<Float16>(NAN))));
  CHECK(std::isnan(to_float(from_float<BFloat16>(NAN))));
}

TEST(rounding_is_to_nearest_even) {
  for (uint64_t bits = 0; bits < 0x7f800000u; bits += 997) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    CHECK(from_float<Float16>(x).bits == rounded_half(x));
    CHECK(from_float<Float16>(-x).bits == (rounded_half(x) | 0x8000u));
    const uint32_t low = bits & 0xffffu, high = bits >> 16;
    const bool up = low > 0x8000u || (low == 0x8000u && (high & 1u));
    CHECK(from_float<BFloat16>(x).bits == high + (up ? 1 : 0));
  }
  CHECK(from_float<Float16>(65519.0f).bits == 0x7bff);
  CHECK(from_float<Float16>(65520.0f).bits == 0x7c00);
}

}  // namespace

TEST_MAIN()
