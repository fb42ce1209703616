// Products of a warpgroup (sm_90a, wgmma): 64 x N += 64 x 16 times 16 x N, asynchronous.
//
// Thread t of the warpgroup holds of an accumulator d[N / 2], for row r = 16 * (t / 32) + t % 32 /
// 4 and column c = 2 * (t % 4): d[4 * j] and d[4 * j + 1] at row r, columns 8 * j + c and + 1; d[4
// * j + 2] and d[4 * j + 3] at row r + 8. An A operand in registers holds row r at columns c and c
// + 1, row r + 8 there, then both at columns c + 8 and c + 9: a packed accumulator's layout.
//
// Operands in shared memory are panels of rows of 128 bytes (64 elements) with TMA's 128-byte
// swizzle, aligned to 1024 bytes. "K-major": a panel's rows run along M or N, its columns along the
// summed dimension; "MN-major": rows along the summed dimension, columns along N.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

__device__ inline uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- descriptors: address, leading and stride offsets in units of 16 bytes, swizzle mode

constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
constexpr uint64_t kGroupOffset = uint64_t{1024 / 16} << 32;  // between groups of eight rows

// K-major: the next 16 of the summed dimension are at + 2, the next 8 rows at + 64.
__device__ inline uint64_t describe_k_major(uint32_t panel) {
  return kSwizzle128 | kGroupOffset | uint64_t{1} << 16 | (panel >> 4 & 0x3fff);
}
__device__ inline uint64_t describe_k_major(const void* panel) {
  return describe_k_major(smem_address(panel));
}
// MN-major: the next 16 of the summed dimension are 16 rows on, at + 128; columns beyond 64 are in
// the next panel, `panel_bytes` further.
__device__ inline uint64_t describe_mn_major(uint32_t panel, uint32_t panel_bytes) {
  return kSwizzle128 | kGroupOffset | uint64_t{panel_bytes >> 4} << 16 | (panel >> 4 & 0x3fff);
}
__device__ inline uint64_t describe_mn_major(const void* panel, uint32_t panel_bytes) {
  return describe_mn_major(smem_address(panel), panel_bytes);
}

// A descriptor whose address is `units` of 16 bytes further.
__device__ inline uint64_t advance(uint64_t descriptor, uint32_t units) {
  return (descriptor >> 32 << 32) | (static_cast<uint32_t>(descriptor) + units);
}

// A matrix descriptor from which others are made, by 32-bit sums where they are used: kept whole
// they would wait in registers of a thread and have to be moved to the warp's.
struct Descriptor {
  uint32_t low, high;

  __device__ explicit Descriptor(uint64_t descriptor)
      : low(__shfl_sync(kAllLanes, static_cast<uint32_t>(descriptor), 0)),
        high(static_cast<uint32_t>(descriptor >> 32)) {
    asm volatile("" : "+r"(low));
  }
  __device__ uint64_t at(uint32_t offset) const { return uint64_t{high} << 32 | (low + offset); }
};

// ---- order

// Before the first product that reads registers written by ordinary instructions.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending committed groups are under way.
template <int kPending>
__device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of these registers across this point.
template <int kSize>
__device__ void pin(float (&registers)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kSize>
__device__ void pin(uint32_t (&registers)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// ---- products, Wgmma<T, N>: d = a * b + (accumulate ? d : 0)

template <class T, int kN>
struct Wgmma;

// The operands' numbers: ten, or the first few, of tens t.
#define LVL_P10(t) LVL_P8(t) ",%" #t "8,%" #t "9"
#define LVL_P8(t) LVL_P6(t) ",%" #t "6,%" #t "7"
#define LVL_P6(t) LVL_P4(t) ",%" #t "4,%" #t "5"
#define LVL_P4(t) LVL_P2(t) ",%" #t "2,%" #t "3"
#define LVL_P2(t) "%" #t "0,%" #t "1"
#define LVL_P20() LVL_P10() "," LVL_P10(1)
#define LVL_P40() LVL_P20() "," LVL_P10(2) "," LVL_P10(3)
#define LVL_P60() LVL_P40() "," LVL_P10(4) "," LVL_P10(5)
#define LVL_P80() LVL_P60() "," LVL_P10(6) "," LVL_P10(7)

#define LVL_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LVL_D8(i) LVL_D4(i), LVL_D4(i + 4)
#define LVL_D16(i) LVL_D8(i), LVL_D8(i + 8)
#define LVL_D32(i) LVL_D16(i), LVL_D16(i + 16)
#define LVL_D64(i) LVL_D32(i), LVL_D32(i + 32)

#define LVL_WGMMA_SS(N, type, places, regs, i0, i1, i2, i3)                                \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2                                    \
               ", 0;\n"                                                                    \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" places \
               "}, %" #i0 ", %" #i1 ", p, 1, 1, 0, %" #i3 ";\n}"                           \
               : regs                                                                      \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kTransposed))
#define LVL_WGMMA_RS(N, type, places, regs, i0, i1, i2, i3, i4, i5, i6)                    \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5                                    \
               ", 0;\n"                                                                    \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" places \
               "}, {%" #i0 ",%" #i1 ",%" #i2 ",%" #i3 "}, %" #i4 ", p, 1, 1, %" #i6 ";\n}" \
               : regs                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                       \
                 "r"(static_cast<int>(accumulate)), "n"(kTransposed))

// ss: A (K-major) and B in shared memory; rs: A in registers. kTransposed: B is MN-major.
#define LVL_WGMMA(N, places, regs, i0, i1, i2, i3, i4, i5, i6)                              \
  template <class T>                                                                        \
  struct Wgmma<T, N> {                                                                      \
    template <int kTransposed = 0>                                                          \
    __device__ static void ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) { \
      if constexpr (std::is_same_v<T, __half>)                                              \
        LVL_WGMMA_SS(N, "f16", places, LVL_ID(regs), i0, i1, i2, i3);                       \
      else                                                                                  \
        LVL_WGMMA_SS(N, "bf16", places, LVL_ID(regs), i0, i1, i2, i3);                      \
    }                                                                                       \
    template <int kTransposed = 0>                                                          \
    __device__ static void rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,        \
                              bool accumulate) {                                            \
      if constexpr (std::is_same_v<T, __half>)                                              \
        LVL_WGMMA_RS(N, "f16", places, LVL_ID(regs), i0, i1, i2, i3, i4, i5, i6);           \
      else                                                                                  \
        LVL_WGMMA_RS(N, "bf16", places, LVL_ID(regs), i0, i1, i2, i3, i4, i5, i6);          \
    }                                                                                       \
  };
#define LVL_STRIP(...) __VA_ARGS__
#define LVL_ID(list) LVL_STRIP list

LVL_WGMMA(8, LVL_P4(), (LVL_D4(0)), 4, 5, 6, 7, 8, 9, 10)
LVL_WGMMA(16, LVL_P8(), (LVL_D8(0)), 8, 9, 10, 11, 12, 13, 14)
LVL_WGMMA(32, LVL_P10() "," LVL_P6(1), (LVL_D16(0)), 16, 17, 18, 19, 20, 21, 22)
LVL_WGMMA(48, LVL_P20() "," LVL_P4(2), (LVL_D16(0), LVL_D8(16)), 24, 25, 26, 27, 28, 29, 30)
LVL_WGMMA(64, LVL_P20() "," LVL_P10(2) "," LVL_P2(3), (LVL_D32(0)), 32, 33, 34, 35, 36, 37, 38)
LVL_WGMMA(72, LVL_P20() "," LVL_P10(2) "," LVL_P6(3), (LVL_D32(0), LVL_D4(32)), 36, 37, 38, 39, 40,
          41, 42)
LVL_WGMMA(80, LVL_P40(), (LVL_D32(0), LVL_D8(32)), 40, 41, 42, 43, 44, 45, 46)
LVL_WGMMA(96, LVL_P40() "," LVL_P8(4), (LVL_D32(0), LVL_D16(32)), 48, 49, 50, 51, 52, 53, 54)
LVL_WGMMA(112, LVL_P40() "," LVL_P10(4) "," LVL_P6(5), (LVL_D32(0), LVL_D16(32), LVL_D8(48)), 56,
          57, 58, 59, 60, 61, 62)
LVL_WGMMA(128, LVL_P60() "," LVL_P4(6), (LVL_D64(0)), 64, 65, 66, 67, 68, 69, 70)
LVL_WGMMA(144, LVL_P60() "," LVL_P10(6) "," LVL_P2(7), (LVL_D64(0), LVL_D8(64)), 72, 73, 74, 75, 76,
          77, 78)
LVL_WGMMA(160, LVL_P80(), (LVL_D64(0), LVL_D16(64)), 80, 81, 82, 83, 84, 85, 86)
LVL_WGMMA(176, LVL_P80() "," LVL_P8(8), (LVL_D64(0), LVL_D16(64), LVL_D8(80)), 88, 89, 90, 91, 92,
          93, 94)
LVL_WGMMA(192, LVL_P80() "," LVL_P10(8) "," LVL_P6(9), (LVL_D64(0), LVL_D32(64)), 96, 97, 98, 99,
          100, 101, 102)
LVL_WGMMA(256,
          LVL_P80() "," LVL_P10(8) "," LVL_P10(9) "," LVL_P10(10) "," LVL_P10(11) "," LVL_P8(12),
          (LVL_D64(0), LVL_D64(64)), 128, 129, 130, 131, 132, 133, 134)

#undef LVL_P10
#undef LVL_P8
#undef LVL_P6
#undef LVL_P4
#undef LVL_P2
#undef LVL_P20
#undef LVL_P40
#undef LVL_P60
#undef LVL_P80
#undef LVL_D4
#undef LVL_D8
#undef LVL_D16
#undef LVL_D32
#undef LVL_D64
#undef LVL_WGMMA
#undef LVL_WGMMA_SS
#undef LVL_WGMMA_RS
#undef LVL_STRIP
#undef LVL_ID

}  // namespace lightvl::cuda
