// What dropout makes of its input and its mask.
#pragma once

#include "simd.h"

namespace ddetr {
namespace {

// v * scale where kept, 0 elsewhere.
template <class C>
inline Vector<C> scaled_kept(Vector<C> v, const bool* kept, C scale) {
  typedef int8_t Bytes __attribute__((vector_size(Lanes<C>::count), aligned(1), may_alias));
  const Bytes bytes = *reinterpret_cast<const Bytes*>(kept);
  const Mask<C> mask = __builtin_convertvector(bytes, Mask<C>) != 0;
  return (Vector<C>)((Mask<C>)(v * scale) & mask);
}

template <class T>
inline void scale_kept(const T* x, const bool* kept, Sum<T> scale, T* result, int64_t count) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    store(result + i, scaled_kept<Sum<T>>(load(x + i), kept + i, scale));
  for (; i < count; ++i) from_sum(kept[i] ? to_sum(x[i]) * scale : 0, result + i);
}

}  // namespace
}  // namespace ddetr
