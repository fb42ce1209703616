// Exact selection in a row of scores, against sorting it.
#include <algorithm>
#include <random>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/scores.h"

using namespace lightvl::cpu::LIGHTVL_ISA;

namespace {

using Draw = float (*)(std::mt19937& random);

float normal(std::mt19937& random) { return std::normal_distribution<float>(0, 3)(random); }
float coarse(std::mt19937& random) { return static_cast<float>(random() % 9) - 4.0f; }
float constant(std::mt19937&) { return -7.5f; }
float wide(std::mt19937& random) {
  return std::ldexp(normal(random), static_cast<int>(random() % 200) - 100);
}
float mostly_masked(std::mt19937& random) { return random() % 50 ? -INFINITY : normal(random); }

void fill(Scores& s, int64_t size, Draw draw, std::mt19937& random) {
  for (int64_t i = 0; i < s.num_blocks * kBlock; ++i) {
    s.value[i] = i < size ? draw(random) : -INFINITY;
    s.weight[i] = 1.0f;
  }
}

TEST(the_kth_largest_equals_sorting) {
  std::mt19937 random(1);
  for (const Draw draw : {normal, coarse, constant, wide, mostly_masked}) {
    for (const int64_t size : {1, 7, 64, 111, 1000, 8191}) {
      Scores s(size);
      fill(s, size, draw, random);
      const float max = update_max(s);
      if (max == -INFINITY) continue;
      std::vector<float> sorted(s.value, s.value + size);
      std::sort(sorted.rbegin(), sorted.rend());
      CHECK(max == sorted[0]);
      for (const int64_t k : {1, 2, 50, 128, 129, 777, 8191}) {
        if (k > size) continue;
        const float want = std::max(sorted[k - 1], -FLT_MAX);
        CHECK(threshold_by_mass(s, max, 1.0f, -FLT_MAX, static_cast<double>(k)) == want);
      }
    }
  }
}

TEST(a_share_of_the_mass_equals_sorting) {
  std::mt19937 random(2);
  for (const Draw draw : {normal, coarse, constant, mostly_masked}) {
    for (const int64_t size : {7, 111, 5000}) {
      Scores s(size);
      fill(s, size, draw, random);
      const float max = update_max(s);
      if (max == -INFINITY) continue;
      // Weights of whole numbers: sums are exact in any order.
      for (int64_t i = 0; i < s.num_blocks * kBlock; ++i) {
        s.weight[i] = s.value[i] == -INFINITY ? 0.0f : std::floor(2.0f + s.value[i] - max + 40.0f);
      }
      std::vector<int> order(size);
      double total = 0.0;
      for (int64_t i = 0; i < size; ++i) {
        order[i] = static_cast<int>(i);
        total += s.weight[i];
      }
      std::sort(order.begin(), order.end(), [&](int a, int b) { return s.value[a] > s.value[b]; });
      for (const double share : {0.001, 0.3, 0.5, 0.9, 0.999, 1.0}) {
        double mass = 0.0;
        int64_t last = 0;
        for (; last < size; ++last) {
          mass += s.weight[order[last]];
          if (mass >= share * total) break;
        }
        const float want = s.value[order[last]];
        CHECK(threshold_by_mass(s, max, 0.7f, -FLT_MAX, share * total) == want);
      }
    }
  }
}

TEST(a_target_out_of_reach_keeps_everything) {
  std::mt19937 random(3);
  Scores s(500);
  fill(s, 500, normal, random);
  const float max = update_max(s);
  CHECK(threshold_by_mass(s, max, 1.0f, -FLT_MAX, 501.0) == -FLT_MAX);
  CHECK(threshold_by_mass(s, max, 1.0f, max - 1.0f, 500.0) == max - 1.0f);
}

TEST(the_first_of_equal_maxima_is_found) {
  Scores s(1000);
  for (int64_t i = 0; i < s.num_blocks * kBlock; ++i)
    s.value[i] = i == 77 || i == 900 ? 2.0f : -1.0f;
  CHECK(first_index_of(s, update_max(s)) == 77);
}

}  // namespace

TEST_MAIN()
