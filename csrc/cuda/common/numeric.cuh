// Element types, 16-byte packs of them, and dispatch from run-time values to template arguments.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "params.h"

namespace lightvl::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) return x;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(x);
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(x);
}

// kSize elements that are loaded and stored at once.
template <class T, int kSize>
struct alignas(sizeof(T) * kSize) Pack {
  T value[kSize];
};

template <int kSize, class T>
__device__ Pack<T, kSize> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, kSize>*>(from);
}

template <class T, int kSize>
__device__ void store_pack(T* to, const Pack<T, kSize>& pack) {
  *reinterpret_cast<Pack<T, kSize>*>(to) = pack;
}

// The same for a large result, whose lines then leave L2 before others.
template <class T, int kSize>
__device__ void stream_pack(T* to, const Pack<T, kSize>& pack) {
  if constexpr (sizeof(pack) == sizeof(uint4)) {
    __stcs(reinterpret_cast<uint4*>(to), reinterpret_cast<const uint4&>(pack));
  } else {
    store_pack(to, pack);
  }
}

// A pack's bits in whole registers. Unpacking tells the compiler nothing of their origin: else it
// would keep the elements of one use for the next, in two to four times the registers.
template <class T, int kPack>
class PackBits {
 public:
  PackBits() = default;
  __device__ explicit PackBits(const Pack<T, kPack>& pack)
      : bits_(reinterpret_cast<const Bits&>(pack)) {}

  __device__ Pack<T, kPack> unpack() const {
    Bits bits = bits_;
    if constexpr (kIsWide) {
      asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
    }
    return reinterpret_cast<Pack<T, kPack>&>(bits);
  }

 private:
  static constexpr bool kIsWide = sizeof(Pack<T, kPack>) == sizeof(uint4);
  using Bits = std::conditional_t<kIsWide, uint4, Pack<T, kPack>>;
  Bits bits_;
};

// Calls f(std::type_identity<T>) with the element type of `dtype`.
template <class F>
cudaError_t dispatch_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(std::type_identity<float>{});
    case DType::kBFloat16:
      return f(std::type_identity<__nv_bfloat16>{});
    case DType::kFloat16:
      return f(std::type_identity<__half>{});
    default:
      return cudaErrorInvalidValue;
  }
}

// Whether addresses and byte strides are multiples of `bytes`.
template <class... Values>
bool all_multiples(int64_t bytes, Values... values) {
  const auto number = [](auto value) {
    if constexpr (std::is_pointer_v<decltype(value)>)
      return reinterpret_cast<int64_t>(value);
    else
      return static_cast<int64_t>(value);
  };
  return ((number(values) % bytes == 0) && ...);
}

// Calls f(std::integral_constant<int, kPack>) with the elements of a 16-byte pack if rows of
// `width` elements of T can be cut into such packs at these addresses and strides, else with 1.
template <class T, class F, class... Values>
cudaError_t dispatch_pack(F&& f, int64_t width, int64_t strides_or, Values... addresses) {
  constexpr int kPack = 16 / sizeof(T);
  if (width % kPack == 0 && strides_or % kPack == 0 && all_multiples(16, addresses...)) {
    return f(std::integral_constant<int, kPack>{});
  }
  return f(std::integral_constant<int, 1>{});
}

}  // namespace lightvl::cuda
