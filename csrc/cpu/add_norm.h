// The normalised sum of a row and of what dropout leaves of another, and its gradients.
#pragma once

#include "scale_kept.h"

namespace ddetr {
namespace {

template <class C>
inline C total(Vector<C> lanes, C rest) {
  return reduce<C>(lanes) + rest;
}

// T is the type of rows, to which their sum is not rounded.
template <class T>
void add_norm(const AddNorm& p, int64_t first, int64_t last) {
  using C = Sum<T>;
  constexpr int lanes = Lanes<C>::count;
  const int64_t n = p.channels, whole = n / lanes * lanes;
  const C scale = p.scale;
  const C* const weight = static_cast<const C*>(p.weight);
  const C* const bias = static_cast<const C*>(p.bias);
  for (int64_t row = first; row < last; ++row) {
    const T* const x = static_cast<const T*>(p.x) + row * n;
    const T* const update = static_cast<const T*>(p.update) + row * n;
    const bool* const kept = p.kept == nullptr ? nullptr : p.kept + row * n;
    T* const result = static_cast<T*>(p.result) + row * n;
    T* const normalized =
        p.normalized == nullptr ? nullptr : static_cast<T*>(p.normalized) + row * n;
    // Computed anew in each pass, as a row is in the fastest cache; but what is no whole vector.
    const auto sum = [&](int64_t i) {
      const Vector<C> v = load(update + i);
      return load(x + i) + (kept == nullptr ? v : scaled_kept<C>(v, kept + i, scale));
    };
    C tail[lanes];
    Vector<C> sums{};
    C rest = 0;
    for (int64_t i = 0; i < whole; i += lanes) sums += sum(i);
    for (int64_t i = whole; i < n; ++i) {
      const C v = to_sum(update[i]);
      tail[i - whole] = to_sum(x[i]) + (kept == nullptr ? v : kept[i] ? v * scale : 0);
      rest += tail[i - whole];
    }
    const C mean = total<C>(sums, rest) / n;
    sums = Vector<C>{}, rest = 0;
    for (int64_t i = 0; i < whole; i += lanes) {
      const Vector<C> v = sum(i) - mean;
      sums += v * v;
    }
    for (int64_t i = whole; i < n; ++i) {
      const C v = tail[i - whole] - mean;
      rest += v * v;
    }
    const C variance = total<C>(sums, rest) / n;
    // Of squares that overflow NaN, as PyTorch gives, and not 0, which would hide it.
    const C factor = 1 / std::sqrt(variance + static_cast<C>(p.eps)) + (variance - variance);
    for (int64_t i = 0; i < whole; i += lanes) {
      const Vector<C> v = (sum(i) - mean) * factor;
      if (normalized != nullptr) store(normalized + i, v);
      store(result + i, v * load(weight + i) + load(bias + i));
    }
    for (int64_t i = whole; i < n; ++i) {
      const C v = (tail[i - whole] - mean) * factor;
      if (normalized != nullptr) from_sum(v, normalized + i);
      from_sum(v * weight[i] + bias[i], result + i);
    }
    if (normalized != nullptr) static_cast<C*>(p.factor)[row] = factor;
  }
}

// Of the weight and the bias, the sums over these rows are added to `of_weight` and `of_bias`.
template <class T>
void add_norm_backward(const AddNormGradients& p, int64_t first, int64_t last, Sum<T>* of_weight,
                       Sum<T>* of_bias) {
  using C = Sum<T>;
  constexpr int lanes = Lanes<C>::count;
  const int64_t n = p.channels, whole = n / lanes * lanes;
  const C scale = p.scale;
  const C* const weight = static_cast<const C*>(p.weight);
  for (int64_t row = first; row < last; ++row) {
    const T* const grad = static_cast<const T*>(p.grad) + row * n;
    const T* const normalized = static_cast<const T*>(p.normalized) + row * n;
    const bool* const kept = p.kept == nullptr ? nullptr : p.kept + row * n;
    T* const of_x = static_cast<T*>(p.of_x) + row * n;
    T* const of_update = static_cast<T*>(p.of_update) + row * n;
    Vector<C> sums{}, products{};
    C rest = 0, product_rest = 0;
    for (int64_t i = 0; i < whole; i += lanes) {
      const Vector<C> g = load(grad + i), v = load(normalized + i), weighted = g * load(weight + i);
      sums += weighted, products += weighted * v;
      store(of_weight + i, load(of_weight + i) + g * v);
      store(of_bias + i, load(of_bias + i) + g);
    }
    for (int64_t i = whole; i < n; ++i) {
      const C g = to_sum(grad[i]), v = to_sum(normalized[i]), weighted = g * weight[i];
      rest += weighted, product_rest += weighted * v;
      of_weight[i] += g * v, of_bias[i] += g;
    }
    const C mean = total<C>(sums, rest) / n, slope = total<C>(products, product_rest) / n;
    const C factor = static_cast<const C*>(p.factor)[row];
    for (int64_t i = 0; i < whole; i += lanes) {
      const Vector<C> weighted = load(grad + i) * load(weight + i);
      const Vector<C> v = (weighted - mean - load(normalized + i) * slope) * factor;
      store(of_x + i, v);
      if (kept != nullptr) store(of_update + i, scaled_kept<C>(v, kept + i, scale));
    }
    for (int64_t i = whole; i < n; ++i) {
      const C v = (to_sum(grad[i]) * weight[i] - mean - to_sum(normalized[i]) * slope) * factor;
      from_sum(v, of_x + i);
      if (kept != nullptr) from_sum(kept[i] ? v * scale : 0, of_update + i);
    }
  }
}

}  // namespace
}  // namespace ddetr
