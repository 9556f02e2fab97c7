// What dropout makes of its input and its mask, and of gradients where a ReLU is before it.
#pragma once

#include "simd.h"

namespace ddetr {
namespace {

// v * scale where kept, 0 elsewhere.
template <class C>
inline Vector<C> scaled_kept(Vector<C> v, const bool* kept, C scale) {
  return (Vector<C>)((Mask<C>)(v * scale) & load_mask<C>(kept));
}

// `kOfReLU`: of the ReLU of x. What is not a number stays so.
template <bool kOfReLU, class T>
inline void scale_kept(const T* x, const bool* kept, Sum<T> scale, T* result, int64_t count) {
  using C = Sum<T>;
  constexpr int lanes = Lanes<C>::count;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    Vector<C> v = load(x + i);
    if (kOfReLU) v = select<C>(v < 0, Vector<C>{}, v);
    store(result + i, scaled_kept<C>(v, kept + i, scale));
  }
  for (; i < count; ++i) {
    const C v = to_sum(x[i]);
    from_sum(kept[i] && !(kOfReLU && v < 0) ? v * scale : 0, result + i);
  }
}

// The gradient of scale_kept of a ReLU: grad * scale but where `of`, its result, is zero or less.
template <class T>
inline void scale_passed(const T* grad, const T* of, Sum<T> scale, T* result, int64_t count) {
  using C = Sum<T>;
  constexpr int lanes = Lanes<C>::count;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    store(result + i, select<C>(load(of + i) <= 0, Vector<C>{}, load(grad + i) * scale));
  for (; i < count; ++i) from_sum(to_sum(of[i]) <= 0 ? 0 : to_sum(grad[i]) * scale, result + i);
}

}  // namespace
}  // namespace ddetr
