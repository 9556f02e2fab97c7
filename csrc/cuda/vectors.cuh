// Types and memory accesses: 16 bytes at a time, arithmetic in float (double for double).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "launch.cuh"

namespace ddetr {

#ifdef __CUDA_ARCH__
constexpr bool kVectorAtomics = __CUDA_ARCH__ >= 900;
constexpr int kMaxThreads = __CUDA_ARCH__ == 750 ? 1024 : 1536;  // Per multiprocessor, at least.
#else
constexpr bool kVectorAtomics = false;
constexpr int kMaxThreads = 1536;
#endif

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

// Row `index` of an array.
template <typename T>
__device__ T* row(T* first, int index, int row_bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(first) + multiply_wide(index, row_bytes));
}

// Reads kCount neighbours. Whole 16 bytes go through the read-only path, which lets the compiler
// move them above atomics.
template <typename T, int kCount>
__device__ void load(const T* source, Compute<T> (&target)[kCount]) {
  static_assert(kCount == 1 || kCount * sizeof(T) == 16);
  if constexpr (kCount == 1) {
    target[0] = widen(__ldg(source));
  } else {
    const uint4 bytes = __ldg(reinterpret_cast<const uint4*>(source));
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      // The upper half of a float: one instruction each, where widen would take two.
      const unsigned words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        target[2 * i] = __uint_as_float(words[i] << 16);
        target[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
      }
    } else {
      Packed<T, kCount> packed;
      memcpy(&packed, &bytes, sizeof(bytes));
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        target[i] = widen(packed.item[i]);
      }
    }
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
