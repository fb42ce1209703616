// Sampling of the next token, one row of the vocabulary at a time.
//
// Penalties, bias and mask change a float32 copy of the row's logits. Every filter is then a
// threshold on it: top-k the k-th largest score, top-p a cut by mass, min-p a distance from the
// maximum; what lies above the highest threshold takes part in a Gumbel-max draw. Greedy rows
// without any change read their logits once.
#include "cpu/kernels.h"
#include "cpu/math.h"
#include "cpu/numeric.h"
#include "cpu/philox.h"
#include "cpu/scores.h"

namespace lightvl::cpu::LIGHTVL_ISA {
namespace {

constexpr float kGreedyTemperature = 1e-5f;
static_assert(kBlock == kNoiseBlock);

// Lowest index of the largest value; 0 if there is none.
template <class T>
int64_t argmax(const T* x, int64_t size) {
  constexpr int64_t kStep = 512;
  float best = -INFINITY;
  int64_t best_begin = 0;
  for (int64_t begin = 0; begin < size; begin += kStep) {
    const T* step = x + begin;
    const int count = static_cast<int>(size - begin < kStep ? size - begin : kStep);
    float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
    for (int i = 0; i < count; ++i) {
      largest = to_float(step[i]) > largest ? to_float(step[i]) : largest;
    }
    if (largest > best) {
      best = largest;
      best_begin = begin;
    }
  }
  int64_t i = best_begin;
  while (i < size && to_float(x[i]) != best) ++i;
  return i < size ? i : 0;
}

// Copies a row of logits: NaN becomes -inf, +inf the largest float.
template <class T>
float load(const T* logits, int64_t vocab_size, Scores& s) {
#pragma omp simd
  for (int64_t i = 0; i < vocab_size; ++i) {
    const float x = to_float(logits[i]);
    const float number = x == x ? x : -INFINITY;
    s.value[i] = number > FLT_MAX ? FLT_MAX : number;
  }
  for (int64_t i = vocab_size; i < s.num_blocks * kBlock; ++i) s.value[i] = -INFINITY;
  return update_max(s);
}

void penalise(const float* penalties, const int16_t* counts, int64_t vocab_size, Scores& s) {
  const float repetition = penalties[0], presence = penalties[1], frequency = penalties[2];
#pragma omp simd
  for (int64_t i = 0; i < vocab_size; ++i) {
    const float count = counts[i];
    const float x = s.value[i];
    const float scaled = x > 0.0f ? x / repetition : x * repetition;
    s.value[i] = count > 0.0f ? scaled - presence - frequency * count : x;
  }
}

void apply_mask(const int32_t* allowed, int64_t vocab_size, Scores& s) {
  for (int64_t begin = 0; begin < vocab_size; begin += 32) {
    const uint32_t word = static_cast<uint32_t>(allowed[begin / 32]);
    float* value = s.value + begin;
#pragma omp simd
    for (uint32_t i = 0; i < 32; ++i) value[i] = (word >> i) & 1u ? value[i] : -INFINITY;
  }
}

bool has_edits(const SampleParams& p, int64_t row) {
  return (p.penalties != nullptr && p.count_rows[row] >= 0) || p.allowed_mask != nullptr ||
         (p.bias_offsets != nullptr && p.bias_offsets[row] < p.bias_offsets[row + 1]);
}

// Penalties, bias and mask; returns the new maximum.
float edit(const SampleParams& p, int64_t row, Scores& s) {
  if (p.penalties != nullptr && p.count_rows[row] >= 0) {
    penalise(p.penalties + row * 3, p.counts + p.count_rows[row] * p.counts_stride, p.vocab_size,
             s);
  }
  if (p.bias_offsets != nullptr) {
    for (int32_t i = p.bias_offsets[row]; i < p.bias_offsets[row + 1]; ++i) {
      s.value[p.bias_ids[i]] += p.bias_values[i];
    }
  }
  if (p.allowed_mask != nullptr) {
    apply_mask(p.allowed_mask + row * ((p.vocab_size + 31) / 32), p.vocab_size, s);
  }
  return update_max(s);
}

// Weighs every score of the blocks that reach `cut` as exp((score - max) / temperature).
void weigh(Scores& s, float max, float inverse_temperature, float cut) {
  for (int64_t b = 0; b < s.num_blocks; ++b) {
    if (s.block_max[b] < cut) continue;
    const float* value = s.value + b * kBlock;
    float* weight = s.weight + b * kBlock;
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) weight[i] = fast_exp((value[i] - max) * inverse_temperature);
  }
}

// The score from which on a token takes part in the draw.
float filter(const SampleParams& p, int64_t row, float max, Scores& s) {
  const float temperature = p.temperature[row];
  float cut = -FLT_MAX;
  if (p.top_k[row] > 0 && p.top_k[row] < p.vocab_size) {
    for (int64_t i = 0; i < s.num_blocks * kBlock; ++i) s.weight[i] = 1.0f;
    cut = threshold_by_mass(s, max, 1.0f, cut, p.top_k[row]);
  }
  if (p.top_p[row] < 1.0f) {
    weigh(s, max, 1.0f / temperature, cut);
    const double target = p.top_p[row] * tail_from(s, cut).mass;
    cut = threshold_by_mass(s, max, temperature, cut, target);
  }
  if (p.min_p[row] > 0.0f) {
    const float least = max + temperature * fast_log(p.min_p[row]);
    cut = least > cut ? least : cut;
  }
  return cut;
}

// Gumbel-max draw among the scores from `cut` on; the lowest id wins a tie.
int64_t draw(const Scores& s, float max, float cut, float inverse_temperature, NoiseKey key) {
  int64_t best_id = first_index_of(s, max);
  float noise[kBlock];
  fill_noise(key, best_id / kBlock, noise);
  float best = noise[best_id % kBlock];
  for (int64_t b = 0; b < s.num_blocks; ++b) {
    const bool out_of_reach = (s.block_max[b] - max) * inverse_temperature + kMaxGumbel < best;
    if (s.block_max[b] < cut || out_of_reach) continue;
    fill_noise(key, b, noise);
    const float* value = s.value + b * kBlock;
    float noisy[kBlock];
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      const float sum = (value[i] - max) * inverse_temperature + noise[i];
      noisy[i] = value[i] >= cut ? sum : -INFINITY;
    }
    const float block_best = max_of_block(noisy);
    if (block_best < best) continue;
    const int64_t block_id = b * kBlock + argmax(noisy, kBlock);
    if (block_best > best || block_id < best_id) best_id = block_id;
    best = block_best;
  }
  return best_id;
}

// log of the sum of exp(score).
float log_sum_exp(const Scores& s, float max) {
  double total = 0.0;
  for (int64_t b = 0; b < s.num_blocks; ++b) {
    const float* value = s.value + b * kBlock;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < kBlock; ++i) sum += fast_exp(value[i] - max);
    total += sum;
  }
  return max + static_cast<float>(std::log(total));
}

// The most probable ids, most probable first, lower ids first on ties, by insertion.
void write_top(const Scores& s, float log_total, int64_t num_top, int32_t* ids, float* logprobs) {
  for (int64_t n = 0; n < num_top; ++n) {
    ids[n] = -1;
    logprobs[n] = -INFINITY;
  }
  for (int64_t b = 0; b < s.num_blocks; ++b) {
    if (s.block_max[b] - log_total < logprobs[num_top - 1]) continue;
    for (int64_t i = b * kBlock; i < (b + 1) * kBlock; ++i) {
      const float logprob = s.value[i] - log_total;
      if (!(logprob > logprobs[num_top - 1])) continue;
      int64_t n = num_top - 1;
      for (; n > 0 && logprob > logprobs[n - 1]; --n) {
        ids[n] = ids[n - 1];
        logprobs[n] = logprobs[n - 1];
      }
      ids[n] = static_cast<int32_t>(i);
      logprobs[n] = logprob;
    }
  }
}

int64_t choose(const SampleParams& p, int64_t row, float max, Scores& s) {
  if (has_edits(p, row)) max = edit(p, row, s);
  if (max == -INFINITY) return 0;
  if (p.temperature[row] < kGreedyTemperature) return first_index_of(s, max);
  const float cut = filter(p, row, max, s);
  const NoiseKey key{static_cast<uint64_t>(p.seeds[row]), static_cast<uint64_t>(p.offsets[row])};
  return draw(s, max, cut, 1.0f / p.temperature[row], key);
}

template <class T>
int64_t sample_row(const SampleParams& p, int64_t row, const T* logits, Scores& s) {
  const float max = load(logits, p.vocab_size, s);
  const bool wants_logprobs = p.logprobs != nullptr || p.num_top > 0;
  const float log_total = wants_logprobs ? log_sum_exp(s, max) : 0.0f;
  if (p.num_top > 0) {
    write_top(s, log_total, p.num_top, p.top_ids + row * p.num_top,
              p.top_logprobs + row * p.num_top);
  }
  const int64_t id = choose(p, row, max, s);
  if (p.logprobs != nullptr) p.logprobs[row] = to_float(logits[id]) - log_total;
  return id;
}

void count(const SampleParams& p, int64_t row, int64_t id) {
  if (p.counts == nullptr || p.count_rows[row] < 0) return;
  int16_t& cell = p.counts[p.count_rows[row] * p.counts_stride + id];
  if (cell < INT16_MAX) ++cell;
}

}  // namespace

void sample(const SampleParams& p, int64_t begin, int64_t end) {
  std::unique_ptr<Scores> scores;  // made for the first row that needs it
  dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    for (int64_t row = begin; row < end; ++row) {
      const T* logits = static_cast<const T*>(p.logits) + row * p.logits_stride;
      const bool plain = p.temperature[row] < kGreedyTemperature && p.logprobs == nullptr &&
                         p.num_top == 0 && !has_edits(p, row);
      if (!plain && scores == nullptr) scores = std::make_unique<Scores>(p.vocab_size);
      const int64_t id = plain ? argmax(logits, p.vocab_size) : sample_row(p, row, logits, *scores);
      p.out_ids[row] = id;
      count(p, row, id);
    }
  });
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
