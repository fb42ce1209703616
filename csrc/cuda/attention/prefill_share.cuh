// Hands out a block's items of prefill attention: first whole ones in rounds, then its part of the
// rest, which may begin and end within an item. An item that several blocks have pieces of is
// merged by whoever finishes last (prefill_merge.cuh).
#pragma once

#include "cuda/attention/prefill_schedule.cuh"

namespace lightvl::cuda {

template <int kKeys>
class PrefillSchedule {
 public:
  __device__ PrefillSchedule(const PagedAttentionWork& work, const PrefillShape& shape,
                             PrefillPlan& plan)
      : items_(work, shape, plan),
        plan_(plan),
        block_(static_cast<int>(blockIdx.x)),
        blocks_(static_cast<int>(gridDim.x)) {
#pragma unroll 1
    for (int i = lane(); i < blocks_; i += 32) plan_.load[i] = 0;
    whole_ = rounds_suffice();
  }

  // The next item; false if there is none.
  __device__ bool next(PrefillItem& item) {
    while (begin_ < 0) {
      if (round_ * blocks_ >= items_.count()) return false;
      if (!whole_ && !deal()) {
        share_out();
        continue;
      }
      const int number = number_of(block_, round_++);
      if (number >= items_.count()) continue;
      items_.describe(number, item);
      return true;
    }
    return next_shared(item);
  }

 private:
  static constexpr int kLeastPart = 8;
  static constexpr int kCutCost = 3;  // of a part that begins within an item, and its merge

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ int number_of(int block, int round) const {
    return round * blocks_ + (round % 2 == 0 ? block : blocks_ - 1 - block);
  }

  // Whether rounds alone will end about as early as parts would: where the last rounds' items are
  // short. A round begins when the blocks are through with those before, about, and lasts as long
  // as its first item.
  __device__ bool rounds_suffice() const {
    const int last = divide(max(items_.count() - 1, 0), blocks_);
    if (!items_.alike()) return last == 0 && items_.longest() <= kLeastPart;
    if (last >= 32) return true;
    int end = items_.longest() + items_.kItemCost;
    if (last > 0) {
      const int cost = lane() <= last ? items_.cost(lane() * blocks_) : 0;
      const int before = __shfl_up_sync(kAllLanes, cost, 1);
      const int begin = inclusive_sum(lane() == 0 ? 0 : before + cost) / 2;
      end = warp_reduce(lane() <= last ? begin + cost : 0, Max{});
    }
    return (end - kCutCost) * blocks_ <= items_.total_cost();
  }

  // Adds a round to the loads; false, and it doesn't, if a block would get more than its share and
  // the rest is not too long to be shared out.
  __device__ bool deal() {
    int most = round_ == 0 ? items_.longest() + items_.kItemCost : 0;
#pragma unroll 1
    for (int block = lane(); round_ > 0 && block < blocks_; block += 32) {
      most = max(most, plan_.load[block] + items_.cost(number_of(block, round_)));
    }
    most = warp_reduce(most, Max{});
    const int rest = items_.count() - round_ * blocks_;
    if (most * blocks_ > items_.total_cost() && rest <= PrefillPlan::kMostRest) return false;
#pragma unroll 1
    for (int block = lane(); block < blocks_; block += 32) {
      plan_.load[block] += items_.cost(number_of(block, round_));
    }
    return true;
  }

  // Cuts what was not dealt into parts, or decides to go on dealing.
  __device__ void share_out() {
    first_ = round_ * blocks_;
    const int rest = items_.count() - first_;
    int total = 0;
#pragma unroll 1
    for (int base = 0; base < rest; base += 32) {
      const int cost = base + lane() < rest ? items_.cost(first_ + base + lane()) : 0;
      const int sum = inclusive_sum(cost);
      if (base + lane() < rest) plan_.begin[base + lane()] = total + sum - cost;
      total += __shfl_sync(kAllLanes, sum, 31);
    }
    if (lane() == 0) plan_.begin[rest] = total;
    const int level = cut_rest(total);
    int longest = items_.count() <= blocks_ ? items_.longest() + items_.kItemCost : 0;
    int most = 0;
#pragma unroll 1
    for (int block = lane(); longest == 0 && block < blocks_; block += 32) {
      int load = plan_.load[block];
#pragma unroll 1
      for (int round = round_; round * blocks_ < items_.count(); ++round) {
        load += items_.cost(number_of(block, round));
      }
      most = max(most, load);
    }
    longest = max(longest, warp_reduce(most, Max{}));
    __syncwarp();
    whole_ = longest <= level;
    if (whole_) return;
    begin_ = end_ = total;
    if (sharer_ < 0) return;
    begin_ = plan_.cut[sharer_];
    end_ = plan_.cut[sharer_ + 1];
    at_ = item_at(begin_);
  }

  // Cuts costs [0, total) so that every block comes to the same load, which it returns; a block
  // that would get little gets none.
  __device__ int cut_rest(int total) {
    const int level = level_for(total);
    if (round_ == 0) return cut_evenly(total, level);
    int room = 0;  // of the blocks before
#pragma unroll 1
    for (int base = 0; base < blocks_ && room < total; base += 32) {
      const int part = part_of(base + lane(), level), sum = inclusive_sum(part);
      const int begin = room + sum - part;
      const bool takes = part > 0 && begin < total;
      const unsigned takers = __ballot_sync(kAllLanes, takes);
      const int sharer = takes ? sharers_ + __popc(takers & ((1u << lane()) - 1)) : -1;
      if (takes) plan_.cut[sharer] = begin;
      const int mine = __shfl_sync(kAllLanes, sharer, block_ % 32);
      if (block_ / 32 * 32 == base) sharer_ = mine;
      room += __shfl_sync(kAllLanes, sum, 31);
      sharers_ += __popc(takers);
    }
    if (lane() == 0) plan_.cut[sharers_] = total;
    __syncwarp();
    move_cuts();
    return level;
  }

  // A cut near an item's begin or end moves there: to divide it would cost more.
  __device__ void move_cuts() {
#pragma unroll 1
    for (int sharer = lane() + 1; sharer < sharers_; sharer += 32) {
      const int cut = plan_.cut[sharer], item = item_at(cut);
      const int before = cut - plan_.begin[item], behind = plan_.begin[item + 1] - cut;
      if (min(before, behind) <= kCutCost) {
        plan_.cut[sharer] = before <= behind ? cut - before : cut + behind;
      }
    }
    __syncwarp();
  }

  // The item of the rest that costs [0, total) have at `at`.
  __device__ int item_at(int at) const {
    int item = 0;
#pragma unroll 1
    for (int end = items_.count() - first_; item + 1 < end;) {
      const int middle = (item + end) / 2;
      (plan_.begin[middle] <= at ? item : end) = middle;
    }
    return item;
  }

  // The same where nothing was dealt.
  __device__ int cut_evenly(int total, int level) {
    const int part = level - kCutCost;
    sharers_ = (total + part - 1) / part;
    sharer_ = block_ < sharers_ ? block_ : -1;
    for (int sharer = lane(); sharer <= sharers_; sharer += 32) {
      plan_.cut[sharer] = min(sharer * part, total);
    }
    __syncwarp();
    move_cuts();
    return level;
  }

  __device__ int part_of(int block, int level) const {
    const int part = block < blocks_ ? level - kCutCost - plan_.load[block] : 0;
    return part >= kLeastPart ? part : 0;
  }

  // The least level at which the blocks' parts hold `total`.
  __device__ int level_for(int total) const {
    int low = 0, high = max((total + blocks_ - 1) / blocks_, kLeastPart) + kCutCost;
    if (round_ == 0) return high;
#pragma unroll 1
    for (int block = lane(); block < blocks_; block += 32) low = max(low, plan_.load[block]);
    high += warp_reduce(low, Max{});
#pragma unroll 1
    for (low = 0; low + 1 < high;) {
      const int middle = (low + high) / 2;
      int room = 0;
#pragma unroll 1
      for (int block = lane(); block < blocks_; block += 32) room += part_of(block, middle);
      (warp_reduce(room, Sum{}) < total ? low : high) = middle;
    }
    return high;
  }

  __device__ bool next_shared(PrefillItem& item) {
    if (begin_ < end_) {
      const int item_begin = plan_.begin[at_], item_end = plan_.begin[at_ + 1];
      items_.describe(first_ + at_, item);
      const int blocks = item.block_end;
      const auto block_at = [&](int at) {
        return static_cast<int>(int64_t{at - item_begin} * blocks / (item_end - item_begin));
      };
      if (item_begin < begin_) item.block_begin = block_at(begin_);
      if (end_ < item_end) item.block_end = block_at(end_);
      if (item_begin < begin_ || end_ < item_end) {
        item.first_sharer = sharer_at(item_begin);
        item.last_sharer = sharer_at(item_end - 1);
        item.piece = item.piece_of(sharer_);
      }
      begin_ = item_end;
      ++at_;
      return true;
    }
    return false;
  }

  // The last sharer whose part doesn't begin beyond `at`.
  __device__ int sharer_at(int at) const {
    int sharer = 0;
#pragma unroll 1
    for (int end = sharers_; sharer + 1 < end;) {
      const int middle = (sharer + end) / 2;
      (plan_.cut[middle] <= at ? sharer : end) = middle;
    }
    return sharer;
  }

  __device__ static int inclusive_sum(int sum) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane() >= step) sum += other;
    }
    return sum;
  }

  PrefillItems<kKeys> items_;
  PrefillPlan& plan_;
  int block_, blocks_, round_ = 0;
  bool whole_;
  int first_, sharers_ = 0, sharer_ = -1;  // number of the rest's first item
  int at_, begin_ = -1, end_ = -1;         // the next item of the rest; this block's part
};

}  // namespace lightvl::cuda
