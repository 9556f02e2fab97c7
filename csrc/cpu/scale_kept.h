// What dropout makes of its input and its mask.
#pragma once

#include "simd.h"

namespace ddetr {
namespace {

template <class T>
inline void scale_kept(const T* x, const bool* kept, Sum<T> scale, T* result, int64_t count) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  typedef int8_t Bytes __attribute__((vector_size(lanes), aligned(1), may_alias));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Bytes bytes = *reinterpret_cast<const Bytes*>(kept + i);
    const Mask<Sum<T>> mask = __builtin_convertvector(bytes, Mask<Sum<T>>) != 0;
    store(result + i, (Vector<Sum<T>>)((Mask<Sum<T>>)(load(x + i) * scale) & mask));
  }
  for (; i < count; ++i) from_sum(kept[i] ? to_sum(x[i]) * scale : 0, result + i);
}

}  // namespace
}  // namespace ddetr
