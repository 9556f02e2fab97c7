// The normalised sum of a row and of what dropout leaves of another, and its gradients.
#pragma once

#include "scale_kept.h"

namespace ddetr {
namespace {

template <class C>
inline C total(Vector<C> lanes, C rest) {
  return reduce<C>(lanes) + rest;
}

template <class C>
void add_norm(const AddNorm& p, int64_t first, int64_t last) {
  constexpr int lanes = Lanes<C>::count;
  const int64_t n = p.channels, whole = n / lanes * lanes;
  const C scale = p.scale;
  const C* const weight = static_cast<const C*>(p.weight);
  const C* const bias = static_cast<const C*>(p.bias);
  for (int64_t row = first; row < last; ++row) {
    const C* const x = static_cast<const C*>(p.x) + row * n;
    const C* const update = static_cast<const C*>(p.update) + row * n;
    const bool* const kept = p.kept == nullptr ? nullptr : p.kept + row * n;
    C* const result = static_cast<C*>(p.result) + row * n;
    // What is kept for gradients holds the sum meanwhile.
    C* const sum = p.normalized == nullptr ? result : static_cast<C*>(p.normalized) + row * n;
    Vector<C> sums{};
    C rest = 0;
    for (int64_t i = 0; i < whole; i += lanes) {
      Vector<C> v = load(update + i);
      if (kept != nullptr) v = scaled_kept<C>(v, kept + i, scale);
      v += load(x + i);
      store(sum + i, v), sums += v;
    }
    for (int64_t i = whole; i < n; ++i) {
      sum[i] = x[i] + (kept == nullptr ? update[i] : kept[i] ? update[i] * scale : 0);
      rest += sum[i];
    }
    const C mean = total<C>(sums, rest) / n;
    sums = Vector<C>{}, rest = 0;
    for (int64_t i = 0; i < whole; i += lanes) {
      const Vector<C> v = load(sum + i) - mean;
      sums += v * v;
    }
    for (int64_t i = whole; i < n; ++i) rest += (sum[i] - mean) * (sum[i] - mean);
    const C variance = total<C>(sums, rest) / n;
    // Of squares that overflow NaN, as PyTorch gives, and not 0, which would hide it.
    const C factor = 1 / std::sqrt(variance + static_cast<C>(p.eps)) + (variance - variance);
    for (int64_t i = 0; i < whole; i += lanes) {
      const Vector<C> v = (load(sum + i) - mean) * factor;
      if (p.normalized != nullptr) store(sum + i, v);
      store(result + i, v * load(weight + i) + load(bias + i));
    }
    for (int64_t i = whole; i < n; ++i) {
      const C v = (sum[i] - mean) * factor;
      if (p.normalized != nullptr) sum[i] = v;
      result[i] = v * weight[i] + bias[i];
    }
    if (p.normalized != nullptr) static_cast<C*>(p.factor)[row] = factor;
  }
}

// Of the weight and the bias, the sums over these rows are added to `of_weight` and `of_bias`.
template <class C>
void add_norm_backward(const AddNormGradients& p, int64_t first, int64_t last, C* of_weight,
                       C* of_bias) {
  constexpr int lanes = Lanes<C>::count;
  const int64_t n = p.channels, whole = n / lanes * lanes;
  const C scale = p.scale;
  const C* const weight = static_cast<const C*>(p.weight);
  for (int64_t row = first; row < last; ++row) {
    const C* const grad = static_cast<const C*>(p.grad) + row * n;
    const C* const normalized = static_cast<const C*>(p.normalized) + row * n;
    const bool* const kept = p.kept == nullptr ? nullptr : p.kept + row * n;
    C* const of_x = static_cast<C*>(p.of_x) + row * n;
    C* const of_update = static_cast<C*>(p.of_update) + row * n;
    Vector<C> sums{}, products{};
    C rest = 0, product_rest = 0;
    for (int64_t i = 0; i < whole; i += lanes) {
      const Vector<C> g = load(grad + i), v = load(normalized + i), weighted = g * load(weight + i);
      sums += weighted, products += weighted * v;
      store(of_weight + i, load(of_weight + i) + g * v);
      store(of_bias + i, load(of_bias + i) + g);
    }
    for (int64_t i = whole; i < n; ++i) {
      const C weighted = grad[i] * weight[i];
      rest += weighted, product_rest += weighted * normalized[i];
      of_weight[i] += grad[i] * normalized[i], of_bias[i] += grad[i];
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
      of_x[i] = (grad[i] * weight[i] - mean - normalized[i] * slope) * factor;
      if (kept != nullptr) of_update[i] = kept[i] ? of_x[i] * scale : 0;
    }
  }
}

}  // namespace
}  // namespace ddetr
