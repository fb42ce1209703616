// Chunked prefill attention over pages of keys and values, causal, for sm_90a.
//
// A block of threads is a warpgroup of producers and two or three consumer warpgroups, each of
// which owns 64 rows (new token, query head of the group) of a tile. Q, K and V lie in shared
// memory as panels of 64 columns with the 128-byte swizzle, as TMA writes and wgmma reads them; O,
// S and P in the consumers' registers.
//
//   warp 0        items: which tile over which keys         (prefill_schedule, prefill_share)
//   warp 1        K and V, each page a TMA box, two slots each                 (prefill_load)
//   warps 2, 3    Q, two slots                                                 (prefill_load)
//   warpgroup 1   S = Q K'  O += P V | softmax of S       | S = Q K'  O += P V (prefill_attend)
//   warpgroup 2   softmax of S       | S = Q K'  O += P V | softmax of S
//
// S of a block is issued before P V of the one before, so that a warpgroup's softmax runs under its
// own P V, too; named barriers hand the tensor cores from one warpgroup to the other. Blocks of
// keys go from the last, which holds the diagonal, to the first. The grid is one block an SM;
// mbarriers run on from item to item, so that the next one is loaded while this one is finished.
#pragma once

#include "cuda/attention/prefill_attend.cuh"
#include "cuda/attention/prefill_launch.cuh"
#include "cuda/attention/prefill_load.cuh"
#include "cuda/attention/prefill_share.cuh"
#include "cuda/common/dependent_launch.cuh"

namespace lightvl::cuda {

// The scheduling warp: items, and at last one without blocks of keys.
template <class Config>
__device__ void hand_out_items(const PagedAttentionWork& work, const PrefillShape& shape,
                               PrefillShared<Config>& shared) {
  PrefillSchedule<Config::kKeys> schedule(work, shape, shared.plan);
  PrefillRing<Config::kQueryStages> ring;
  PrefillItem item;
  for (bool more = true; more; ring.advance()) {
    more = schedule.next(item);
    if (!more) item.block_end = -1;
    wait(shared.query_empty[ring.slot], ring.parity ^ 1);
    if (threadIdx.x == 0) {
      shared.item[ring.slot] = item;
      arrive(shared.item_full[ring.slot]);
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    prefill_kernel(const __grid_constant__ PagedAttentionWork work,
                   const __grid_constant__ PrefillMaps maps,
                   const __grid_constant__ PrefillShape shape) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  auto& shared = *reinterpret_cast<PrefillShared<Config>*>(bytes);
  if (threadIdx.x == 0) init_prefill_barriers<Config>(shared);
  if (threadIdx.x == 32) {
    prefetch_map(maps.key);
    prefetch_map(maps.value);
  }
  __syncthreads();
  wait_for_previous();
  let_next_begin();
  if (threadIdx.x < 128) {
    give_registers<Config::kProducerRegisters>();
    if (threadIdx.x < 32) {
      hand_out_items<Config>(work, shape, shared);
    } else if (threadIdx.x < 64) {
      PrefillLoader<Config>(work, maps, shape, shared).run();
    } else {
      load_queries<Config>(work.params, shape, shared);
    }
  } else {
    take_registers<Config::kConsumerRegisters>();
    PrefillConsumer<Config>(work, shape, shared).run();
  }
}

template <class Config>
cudaError_t encode_prefill_maps(const PagedAttentionWork& work, const PrefillShape& shape,
                                PrefillMaps& maps) {
  const PagedAttentionParams& p = work.params;
  constexpr auto kType = std::is_same_v<typename Config::T, __half>
                             ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                             : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  constexpr int64_t kPages = INT32_MAX;  // more than there are: their number is not known here
  const auto encode_cache = [&](CUtensorMap& map, const void* cache, const int64_t (&stride)[3]) {
    return encode_tensor_map<4>(
        map, kType, cache, {p.head_dim, p.page_size, p.num_kv_heads, kPages},
        {stride[2], stride[1], stride[0]}, {64, static_cast<uint32_t>(shape.box_keys), 1, 1});
  };
  cudaError_t status = encode_cache(maps.key, p.k_cache, p.k_stride);
  if (status == cudaSuccess) status = encode_cache(maps.value, p.v_cache, p.v_stride);
  return status;
}

template <class Config>
cudaError_t run_prefill(const PagedAttentionWork& work, cudaStream_t stream) {
  constexpr auto kKernel = prefill_kernel<Config>;
  constexpr int kBytes = sizeof(PrefillShared<Config>);
  const int blocks = prefill_blocks();
  if (work.workspace.bytes < PrefillPieces<Config>::bytes(blocks)) return cudaErrorInvalidValue;
  cudaError_t status = allow_shared_memory<kKernel>(kBytes);
  PagedAttentionWork part = work;
  PagedAttentionParams& p = part.params;
  for (int64_t done = 0; status == cudaSuccess && done < work.params.num_seqs;
       done += PrefillPlan::kMostSeqs) {
    p.num_seqs = std::min<int64_t>(work.params.num_seqs - done, PrefillPlan::kMostSeqs);
    const PrefillShape shape = PrefillShape::make(p, Config::kRows, Config::kKeys);
    PrefillMaps maps;
    status = encode_prefill_maps<Config>(part, shape, maps);
    if (status != cudaSuccess) break;
    status = launch_dependent<kKernel>(dim3(blocks), dim3(Config::kThreads), kBytes, stream, part,
                                       maps, shape);
    p.page_table += PrefillPlan::kMostSeqs * p.page_table_stride;
    p.cu_q_lens += PrefillPlan::kMostSeqs;
    p.context_lens += PrefillPlan::kMostSeqs;
  }
  return status;
}

template <class T, int kHeadDim>
cudaError_t launch_prefill_sm90(const PagedAttentionWork& work, cudaStream_t stream) {
  return run_prefill<PrefillChoice<T, kHeadDim>>(work, stream);
}

}  // namespace lightvl::cuda
