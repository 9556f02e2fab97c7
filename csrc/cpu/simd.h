// Vectors of one instruction set. Included by each file that defines DDETR_VECTOR_BYTES and, around
// it, the target; everything has internal linkage, so that no code of a wider set can leak out.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "problem.h"

namespace ddetr {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <class T>
using Sum = typename SumOf<T>::type;

// GCC and Clang vectors: operators work lane by lane, a * b + c contracts to one instruction. Of
// 16-bit types there are none, so that overloads for arithmetic types do not apply to these.
template <class C, int kBytes = DDETR_VECTOR_BYTES,
          class = std::enable_if_t<std::is_arithmetic_v<C>>>
struct Lanes {
  static constexpr int count = kBytes / sizeof(C);
  typedef C Vector __attribute__((vector_size(kBytes)));
  typedef C Unaligned __attribute__((vector_size(kBytes), aligned(1), may_alias));
};
template <class C>
using Vector = typename Lanes<C>::Vector;
template <class C>
using Mask = decltype(Vector<C>{} < Vector<C>{});  // integers as wide as C, all ones for true
template <class C>
using Index = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
// At most 32 bytes: what is stored and at once loaded again is so faster than by 64 (on Zen 4).
template <class C>
using NarrowLanes = Lanes<C, (DDETR_VECTOR_BYTES < 32 ? DDETR_VECTOR_BYTES : 32)>;
template <class C>
using Narrow = typename NarrowLanes<C>::Vector;
using VectorF = Vector<float>;
using VectorU = Vector<uint32_t>;
typedef uint16_t Vector16 __attribute__((vector_size(DDETR_VECTOR_BYTES / 2)));
typedef uint16_t Unaligned16
    __attribute__((vector_size(DDETR_VECTOR_BYTES / 2), aligned(1), may_alias));

template <class C>
inline Vector<C> load(const C* p) {
  return *reinterpret_cast<const typename Lanes<C>::Unaligned*>(p);
}

template <class C>
inline void store(C* p, Vector<C> v) {
  *reinterpret_cast<typename Lanes<C>::Unaligned*>(p) = v;
}

inline VectorF load(const BFloat16* p) {
#if DDETR_VECTOR_BYTES == 64  // what the general form compiles to is slow
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return (VectorF)_mm512_slli_epi32(wide, 16);
#elif DDETR_VECTOR_BYTES == 32
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return (VectorF)_mm256_slli_epi32(wide, 16);
#endif
  const Vector16 bits = *reinterpret_cast<const Unaligned16*>(p);
  return (VectorF)(__builtin_convertvector(bits, VectorU) << 16);
}

// Rounded to nearest even; what counts is in the upper half of each lane.
inline VectorU round_to_bfloat16(VectorF v) {
  const VectorU bits = (VectorU)v, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return ((VectorU)(v == v) & rounded) | ((VectorU)(v != v) & (bits | 0x400000));  // stays a NaN
}

inline void store(BFloat16* p, VectorF v) {
  *reinterpret_cast<Unaligned16*>(p) =
      __builtin_convertvector(round_to_bfloat16(v) >> 16, Vector16);
}

inline VectorF load(const Half* p) {
#if DDETR_VECTOR_BYTES == 64
  return (VectorF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif DDETR_VECTOR_BYTES == 32
  return (VectorF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  const VectorU bits = __builtin_convertvector(*reinterpret_cast<const Unaligned16*>(p), VectorU);
  // Exponent and mantissa in place, then rebased by 2^112, which also makes subnormals right.
  const VectorF magnitude = (VectorF)((bits & 0x7fff) << 13) * 0x1p112f;
  const VectorU special = (VectorU)((bits & 0x7c00) == 0x7c00) & 0x7f800000u;
  return (VectorF)((VectorU)magnitude | special | ((bits & 0x8000) << 16));
#endif
}

// A byte for each lane.
template <class C>
inline Mask<C> load_mask(const bool* p) {
#if DDETR_VECTOR_BYTES >= 32  // what the general form compiles to takes byte after byte
  __m128i bytes{};
  std::memcpy(&bytes, p, Lanes<C>::count);
#if DDETR_VECTOR_BYTES == 64
  const __m512i wide = sizeof(C) == 4 ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepi8_epi64(bytes);
#else
  const __m256i wide = sizeof(C) == 4 ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepi8_epi64(bytes);
#endif
  return (Mask<C>)wide != 0;
#else
  typedef int8_t Bytes __attribute__((vector_size(Lanes<C>::count), aligned(1), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(p), Mask<C>) != 0;
#endif
}

// Two vectors of consecutive elements, in an order that only store2 has to know.
template <class T>
inline void load2(const T* p, Vector<Sum<T>>& a, Vector<Sum<T>>& b) {
  a = load(p), b = load(p + Lanes<Sum<T>>::count);
}

template <class T>
inline void store2(T* p, Vector<Sum<T>> a, Vector<Sum<T>> b) {
  store(p, a), store(p + Lanes<Sum<T>>::count, b);
}

// Even and odd ones: one load, and no element changes its lane.
inline void load2(const BFloat16* p, VectorF& even, VectorF& odd) {
  const VectorU bits = load(reinterpret_cast<const uint32_t*>(p));
  even = (VectorF)(bits << 16), odd = (VectorF)(bits & 0xffff0000u);
}

inline void store2(BFloat16* p, VectorF even, VectorF odd) {
  const VectorU bits =
      (round_to_bfloat16(even) >> 16) | (round_to_bfloat16(odd) & 0xffff0000u);
  store(reinterpret_cast<uint32_t*>(p), bits);
}

inline float to_sum(float v) { return v; }
inline double to_sum(double v) { return v; }
inline float to_sum(BFloat16 v) {
  const uint32_t bits = uint32_t(v.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline float to_sum(Half v) {
  uint32_t bits = uint32_t(v.bits & 0x7fff) << 13;
  float result;
  std::memcpy(&result, &bits, 4);
  result *= 0x1p112f;
  std::memcpy(&bits, &result, 4);
  if ((v.bits & 0x7c00) == 0x7c00) bits |= 0x7f800000u;
  bits |= uint32_t(v.bits & 0x8000) << 16;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline void from_sum(float v, float* p) { *p = v; }
inline void from_sum(double v, double* p) { *p = v; }
inline void from_sum(float v, BFloat16* p) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  p->bits = v == v ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : (bits >> 16) | 0x40;
}
inline void from_sum(float v, Half* p) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  const uint16_t sign = (bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) {
    p->bits = sign | 0x7e00;
  } else if (bits >= 0x477ff000) {  // rounds to 65536 or more
    p->bits = sign | 0x7c00;
  } else if (bits < 0x38800000) {  // subnormal: adding 1/2 leaves units of 2^-24 in the mantissa
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    p->bits = sign | uint16_t(bits - 0x3f000000);
  } else {
    p->bits = sign | uint16_t((bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13);
  }
}

inline void store(Half* p, VectorF v) {
#if DDETR_VECTOR_BYTES == 64
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif DDETR_VECTOR_BYTES == 32
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < Lanes<float>::count; ++i) from_sum(v[i], p + i);
#endif
}

template <class C>
inline C reduce(Vector<C> v) {
#if DDETR_VECTOR_BYTES == 64
  if constexpr (sizeof(C) == 4) return _mm512_reduce_add_ps((__m512)v);
#elif DDETR_VECTOR_BYTES == 32
  if constexpr (sizeof(C) == 4) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v),
                                   _mm256_extractf128_ps((__m256)v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
#endif
  C sum = 0;
  for (int i = 0; i < Lanes<C>::count; ++i) sum += v[i];
  return sum;
}

template <class C>
inline C reduce_max(Vector<C> v) {
#if DDETR_VECTOR_BYTES == 64
  if constexpr (sizeof(C) == 4) return _mm512_reduce_max_ps((__m512)v);
#elif DDETR_VECTOR_BYTES == 32
  if constexpr (sizeof(C) == 4) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)v),
                                   _mm256_extractf128_ps((__m256)v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
#endif
  C max = v[0];
  for (int i = 1; i < Lanes<C>::count; ++i) max = v[i] <= max ? max : v[i];
  return max;
}

#if DDETR_VECTOR_BYTES >= 32
// The first `count` of one vector, and zeros.
inline VectorF load_first(const float* p, int64_t count) {
#if DDETR_VECTOR_BYTES == 64
  return (VectorF)_mm512_maskz_loadu_ps((1u << count) - 1, p);
#else
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (VectorF)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane));
#endif
}

// from[index], lane by lane.
inline VectorF permuted(VectorF from, Mask<float> index) {
#if DDETR_VECTOR_BYTES == 64
  return (VectorF)_mm512_permutexvar_ps((__m512i)index, (__m512)from);
#else
  return (VectorF)_mm256_permutevar8x32_ps((__m256)from, (__m256i)index);
#endif
}
#endif

template <class C>
inline Narrow<C> load_narrow(const C* p) {
  return *reinterpret_cast<const typename NarrowLanes<C>::Unaligned*>(p);
}

template <class C>
inline void store_narrow(C* p, Narrow<C> v) {
  *reinterpret_cast<typename NarrowLanes<C>::Unaligned*>(p) = v;
}

// The sums of four vectors at once.
template <class C>
inline void reduce4(const Narrow<C> (&v)[4], C* out) {
#if DDETR_VECTOR_BYTES >= 32
  if constexpr (sizeof(C) == 4) {
    const __m256 ab = _mm256_hadd_ps((__m256)v[0], (__m256)v[1]);
    const __m256 sums = _mm256_hadd_ps(ab, _mm256_hadd_ps((__m256)v[2], (__m256)v[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
    return;
  }
#endif
  for (int k = 0; k < 4; ++k) {
    out[k] = 0;
    for (int i = 0; i < NarrowLanes<C>::count; ++i) out[k] += v[k][i];
  }
}

template <class C>
inline Vector<C> select(Mask<C> condition, Vector<C> yes, Vector<C> no) {
  return (Vector<C>)((condition & (Mask<C>)yes) | (~condition & (Mask<C>)no));
}

// exp to 2 ulp; 0 where x < -87, NaN for NaN. Cephes' polynomial on [-ln 2 / 2, ln 2 / 2].
inline VectorF exp(VectorF x) {
  const Mask<float> underflow = x < -87.0f;
  const VectorF bounded = select<float>(underflow, VectorF{} - 87.0f, x);
  const VectorF magic = VectorF{} + 0x1.8p23f;  // adding it rounds to an integer
  const VectorF shifted = bounded * 1.44269504088896341f + magic;
  const VectorF n = shifted - magic;
  VectorF r = bounded - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  VectorF p = VectorF{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const VectorF scale = (VectorF)(((VectorU)shifted + 127) << 23);  // 2^n: n is in the low bits
  return select<float>(underflow, VectorF{}, p * scale);
}

}  // namespace
}  // namespace ddetr
