// Types and memory accesses: 16 bytes at a time, arithmetic in float (double for double).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "launch.cuh"

namespace ddetr {

// What a stored type is computed in. Coordinates and sums are never 16-bit.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline float widen(float number) { return number; }
__device__ inline double widen(double number) { return number; }
__device__ inline float widen(__half number) { return __half2float(number); }
__device__ inline float widen(__nv_bfloat16 number) { return __bfloat162float(number); }

template <typename T>
__device__ T narrow(Compute<T> number) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(number);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(number);
  } else {
    return number;
  }
}

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Packed {
  T item[kCount];
};

// Row `index` of an array. Both factors have 32 bits, their product 64: one instruction.
template <typename T>
__device__ T* row(T* first, int index, int row_bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(first) +
                              static_cast<int64_t>(index) * row_bytes);
}

// Reads kCount neighbours. Whole 16 bytes go through the read-only path, which lets the compiler
// move them above atomics.
template <typename T, int kCount>
__device__ void load(const T* source, Compute<T> (&target)[kCount]) {
  static_assert(kCount == 1 || kCount * sizeof(T) == 16);
  Packed<T, kCount> packed;
  if constexpr (kCount == 1) {
    packed.item[0] = __ldg(source);
  } else {
    const uint4 bytes = __ldg(reinterpret_cast<const uint4*>(source));
    memcpy(&packed, &bytes, sizeof(bytes));
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    target[i] = widen(packed.item[i]);
  }
}

template <typename T, int kCount>
__device__ void store(T* target, const Compute<T> (&source)[kCount]) {
  Packed<T, kCount> packed;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    packed.item[i] = narrow<T>(source[i]);
  }
  *reinterpret_cast<Packed<T, kCount>*>(target) = packed;
}

#if __CUDA_ARCH__ >= 900
constexpr bool kVectorAtomics = true;
#else
constexpr bool kVectorAtomics = false;
#endif

// target[0 .. kCount) += source, 16 bytes in one transaction where the hardware can.
template <int kCount, typename C>
__device__ void atomic_add(C* target, const C (&source)[kCount]) {
  if constexpr (kVectorAtomics && std::is_same_v<C, float> && kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      atomicAdd(reinterpret_cast<float4*>(target + i),
                make_float4(source[i], source[i + 1], source[i + 2], source[i + 3]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      atomicAdd(target + i, source[i]);
    }
  }
}

}  // namespace ddetr
