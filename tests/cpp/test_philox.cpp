// The random numbers' published vector, and the noise against double.
#include <cmath>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/philox.h"

using namespace lightvl::cpu::LIGHTVL_ISA;

namespace {

TEST(the_published_vector) {
  const PhiloxWords words = philox({.seed = 0, .offset = 0}, 0);
  CHECK(words.w0 == 0x6627e8d5u && words.w1 == 0xe169c58du);
  CHECK(words.w2 == 0xbc57ac4cu && words.w3 == 0x9b00dbd8u);
}

TEST(gumbel_noise_is_accurate_and_finite) {
  for (uint64_t random = 0; random < (uint64_t{1} << 32); random += 4099) {
    const double v = (static_cast<double>(random >> 1) + 0.5) / 2147483648.0;
    const double want = -std::log(-std::log1p(-v));
    const float noise = gumbel(static_cast<uint32_t>(random));
    // Near v = 1 the float nearest to 1 - v is off by up to half its smallest step.
    CHECK(std::fabs(noise - want) < (v < 0.999 ? 2e-5 : 6e-2));
  }
  CHECK(std::fabs(gumbel(0) - kMaxGumbel) < 1e-4 && gumbel(0) <= kMaxGumbel);
  CHECK(std::isfinite(gumbel(0xffffffffu)));
}

TEST(neighbouring_tokens_have_their_own_words) {
  float noise[kNoiseBlock];
  const NoiseKey key{.seed = 123456789012345u, .offset = 42};
  fill_noise(key, 3, noise);
  for (int i = 0; i < kNoiseBlock; ++i) {
    const PhiloxWords words = philox(key, 3 * 16 + i % 16);
    const uint32_t all[] = {words.w0, words.w1, words.w2, words.w3};
    CHECK(std::fabs(noise[i] - gumbel(all[i / 16])) < 1e-5f);
  }
}

}  // namespace

TEST_MAIN()
