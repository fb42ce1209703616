// Merges an item's pieces, which several blocks hold, in prefill attention's workspace.
//
// Each warp deals with its 16 rows alone: it writes its accumulators as they lie in registers, then
// its flag, which becomes the call's tag. If it then sees the flags of all pieces it merges them
// and clears the flags: a graph's next replay finds none. The last warp to set its flag sees them
// all, unless another did before and has merged; two that merge write the same bits.
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

  // Leaves this warp's rows; whether it is to merge the item.
  __device__ bool leave(const PrefillItem& item, const PrefillTotals& totals,
                        const float (&out)[kFloats]) const {
    const int at = index(item.piece);
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
    bool all = true;
    for (int sharer = item.first_sharer + lane(); sharer <= item.last_sharer; sharer += 32) {
      all &= *static_cast<volatile uint64_t*>(&flags_[index(item.piece_of(sharer))]) == tag_;
    }
    all = __all_sync(kAllLanes, all);
    if (all) __threadfence();
    return all;
  }

  // Replaces this warp's rows by the whole item's.
  __device__ void merge(const PrefillItem& item, PrefillTotals& totals,
                        float (&out)[kFloats]) const {
    totals = {{-INFINITY, -INFINITY}, {}};
    for (int sharer = item.first_sharer; sharer <= item.last_sharer; ++sharer) {
      const float4 part = __ldcg(&totals_[index(item.piece_of(sharer)) * 32 + lane()]);
      totals.most[0] = fmaxf(totals.most[0], part.x);
      totals.most[1] = fmaxf(totals.most[1], part.y);
    }
#pragma unroll
    for (float& x : out) x = 0.0f;
    for (int sharer = item.first_sharer; sharer <= item.last_sharer; ++sharer) {
      const int at = index(item.piece_of(sharer));
      const float4 part = __ldcg(&totals_[at * 32 + lane()]);
      const float weight[2] = {part.z > 0.0f ? exp2f(part.x - totals.most[0]) : 0.0f,
                               part.w > 0.0f ? exp2f(part.y - totals.most[1]) : 0.0f};
      totals.sum[0] += weight[0] * part.z;
      totals.sum[1] += weight[1] * part.w;
#pragma unroll
      for (int i = 0; i < kFloats / 4; ++i) {
        const float4 x = __ldcg(&out_[(at * (kFloats / 4) + i) * 32 + lane()]);
        out[4 * i] += weight[0] * x.x;
        out[4 * i + 1] += weight[0] * x.y;
        out[4 * i + 2] += weight[1] * x.z;
        out[4 * i + 3] += weight[1] * x.w;
      }
    }
    for (int sharer = item.first_sharer + lane(); sharer <= item.last_sharer; sharer += 32) {
      flags_[index(item.piece_of(sharer))] = 0;
    }
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  // Of this warp's part of a piece.
  __device__ static int index(int piece) {
    return (piece * Config::kBlocks + prefill_rank<Config>()) * kWarps +
           static_cast<int>(threadIdx.x) / 32 - 4;
  }

  float4 *totals_, *out_;
  uint64_t* flags_;
  uint64_t tag_;
};

}  // namespace lightvl::cuda
