// Merges an item's pieces, which several blocks hold, in prefill attention's workspace.
//
// Each warp deals with its 16 rows alone. If the flags of all other pieces bear the call's tag it
// merges them with its own. Otherwise it leaves its accumulators as they lie in registers, then
// sets its flag and looks again: others may have finished meanwhile. So the last to finish always
// merges; two that both do write the same bits. Who merges clears the flags: a graph's next replay
// finds none.
#pragma once

#include "cuda/attention/prefill_schedule.cuh"
#include "cuda/attention/prefill_tile.cuh"

namespace lightvl::cuda {

// Of a thread's two rows: base-2 maxima, sums relative to them.
struct PrefillTotals {
  float most[2], sum[2];
};

template <class Config>
class PrefillPieces {
 public:
  static constexpr int kWarps = 4 * Config::kWarpgroups, kFloats = Config::kHeadDim / 2;

  static int64_t bytes(int64_t blocks) {
    return 2 * blocks * kWarps * (32 * (kFloats * 4 + 16) + 8);
  }

  __device__ explicit PrefillPieces(const AttentionWorkspace& room)
      : totals_(static_cast<float4*>(room.data)),
        out_(totals_ + 2 * gridDim.x * kWarps * 32),
        flags_(reinterpret_cast<uint64_t*>(out_ + 2 * gridDim.x * kWarps * 32 * (kFloats / 4))),
        tag_(room.tag) {}

  // Makes totals and outputs those of the whole item; false if another warp is to do so.
  __device__ bool collect(const PrefillItem& item, PrefillTotals& totals,
                          float (&out)[kFloats]) const {
    const int mine = item.piece / 2;
    if (!all_left(item, mine)) {
      leave(item.piece, totals, out);
      if (!all_left(item, -1)) return false;
    }
    __threadfence();
    merge(item, mine, totals, out);
    __syncwarp();
    for (int sharer = item.first_sharer + lane(); sharer <= item.last_sharer; sharer += 32) {
      flags_[index(item.piece_of(sharer))] = 0;
    }
    return true;
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  // Of this warp's part of a piece.
  __device__ static int index(int piece) {
    return piece * kWarps + static_cast<int>(threadIdx.x) / 32 - 4;
  }

  // Whether all pieces but one are there.
  __device__ bool all_left(const PrefillItem& item, int except) const {
    bool all = true;
    for (int sharer = item.first_sharer + lane(); sharer <= item.last_sharer; sharer += 32) {
      const uint64_t* flag = &flags_[index(item.piece_of(sharer))];
      all &= sharer == except || *static_cast<const volatile uint64_t*>(flag) == tag_;
    }
    return __all_sync(kAllLanes, all);
  }

  __device__ void leave(int piece, const PrefillTotals& totals, const float (&out)[kFloats]) const {
    const int at = index(piece);
    totals_[at * 32 + lane()] =
        float4{totals.most[0], totals.most[1], totals.sum[0], totals.sum[1]};
#pragma unroll
    for (int i = 0; i < kFloats / 4; ++i) {
      out_[(at * (kFloats / 4) + i) * 32 + lane()] =
          float4{out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3]};
    }
    __threadfence();
    __syncwarp();
    if (lane() == 0) {
      *static_cast<volatile uint64_t*>(&flags_[at]) = tag_;
      __threadfence();
    }
    __syncwarp();
  }

  // Adds the pieces up in their order, whoever does it.
  __device__ void merge(const PrefillItem& item, int mine, PrefillTotals& totals,
                        float (&out)[kFloats]) const {
    const PrefillTotals own = totals;
    const auto totals_of = [&](int sharer) {
      if (sharer == mine) return own;
      const float4 part = __ldcg(&totals_[index(item.piece_of(sharer)) * 32 + lane()]);
      return PrefillTotals{{part.x, part.y}, {part.z, part.w}};
    };
    for (int sharer = item.first_sharer; sharer <= item.last_sharer; ++sharer) {
      const PrefillTotals part = totals_of(sharer);
      totals.most[0] = fmaxf(totals.most[0], part.most[0]);
      totals.most[1] = fmaxf(totals.most[1], part.most[1]);
    }
    totals.sum[0] = totals.sum[1] = 0.0f;
    float all[kFloats] = {};
    for (int sharer = item.first_sharer; sharer <= item.last_sharer; ++sharer) {
      const PrefillTotals part = totals_of(sharer);
      float weight[2];
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        const bool any = part.sum[which] > 0.0f;
        weight[which] = any ? exp2f(part.most[which] - totals.most[which]) : 0.0f;
        totals.sum[which] += weight[which] * part.sum[which];
      }
      if (sharer == mine) {
#pragma unroll
        for (int i = 0; i < kFloats; ++i) all[i] += weight[i / 2 % 2] * out[i];
        continue;
      }
      const float4* from = &out_[index(item.piece_of(sharer)) * (kFloats / 4) * 32 + lane()];
#pragma unroll
      for (int i = 0; i < kFloats / 4; ++i) {
        const float4 x = __ldcg(from + i * 32);
        all[4 * i] += weight[0] * x.x;
        all[4 * i + 1] += weight[0] * x.y;
        all[4 * i + 2] += weight[1] * x.z;
        all[4 * i + 3] += weight[1] * x.w;
      }
    }
#pragma unroll
    for (int i = 0; i < kFloats; ++i) out[i] = all[i];
  }

  float4 *totals_, *out_;
  uint64_t* flags_;
  uint64_t tag_;
};

}  // namespace lightvl::cuda
