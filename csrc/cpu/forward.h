// Forward: for each (image, query, head), list the cells to read, then add them up channel by
// channel. Heads are innermost, so that neighbouring lines of the value are read together.
#pragma once

#include "geometry.h"

namespace ddetr {
namespace {

// out[0 .. kVectors * lanes) = sum_i weight[i] * value[position[i] * stride + ...].
template <int kVectors, class T>
inline void weighted_sum(const Cells<Sum<T>>& cells, const T* value, int64_t stride, T* out) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  constexpr int chains = kVectors >= 8 ? 1 : kVectors >= 4 ? 2 : 4;  // hides the latency of FMA
  Vector<Sum<T>> sum[chains][kVectors] = {};
  int64_t i = 0;
  for (; i + chains <= cells.count; i += chains) {
    for (int chain = 0; chain < chains; ++chain) {
      const T* from = value + cells.position[i + chain] * stride;
      const Sum<T> weight = cells.weight[i + chain];
      for (int v = 0; v < kVectors; ++v) sum[chain][v] += weight * load(from + v * lanes);
    }
  }
  for (; i < cells.count; ++i) {
    const T* from = value + cells.position[i] * stride;
    for (int v = 0; v < kVectors; ++v) sum[0][v] += cells.weight[i] * load(from + v * lanes);
  }
  for (int v = 0; v < kVectors; ++v) {
    for (int chain = 1; chain < chains; ++chain) sum[0][v] += sum[chain][v];
    store(out + v * lanes, sum[0][v]);
  }
}

template <class T>
inline void weighted_sum(const Cells<Sum<T>>& cells, const T* value, int64_t stride,
                         int64_t channels, T* out) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  int64_t d = 0;
  for (; d + 8 * lanes <= channels && lanes <= 4; d += 8 * lanes)
    weighted_sum<8>(cells, value + d, stride, out + d);
  for (; d + 4 * lanes <= channels; d += 4 * lanes)
    weighted_sum<4>(cells, value + d, stride, out + d);
  for (; d + 2 * lanes <= channels; d += 2 * lanes)
    weighted_sum<2>(cells, value + d, stride, out + d);
  for (; d + lanes <= channels; d += lanes) weighted_sum<1>(cells, value + d, stride, out + d);
  for (; d < channels; ++d) {
    Sum<T> sum = 0;
    for (int64_t i = 0; i < cells.count; ++i)
      sum += cells.weight[i] * to_sum(value[cells.position[i] * stride + d]);
    from_sum(sum, out + d);
  }
}

template <class T, class O>
void forward(const Problem& p, void* output, int64_t first_pair, int64_t last_pair) {
  using C = Sum<T>;
  Scratch scratch;
  SampleTable<C> table(p, scratch);
  Cells<C> cells(p, scratch);
  C* probabilities = scratch.take<C>(round_up(p.samples, kBlock));
  const O* points = static_cast<const O*>(p.points);

  for (int64_t pair = first_pair; pair < last_pair; ++pair) {
    const int64_t query = pair / p.heads, head = pair % p.heads, image = query / p.queries;
    const C* attention;
    if (p.references) {
      if (pair == first_pair || head == 0) table.set_query(query);
      softmax(static_cast<const O*>(p.weights) + pair * p.samples, p.samples, probabilities);
      attention = probabilities;
    } else {
      attention = static_cast<const C*>(p.weights) + pair * p.samples;
    }
    cells.count = 0;
    for (int64_t k = 0; k < p.samples; k += kBlock)
      append_block(table, k, p.samples - k, points + 2 * (pair * p.samples + k), attention + k,
                   cells);
    const T* value = static_cast<const T*>(p.value) + image * p.value_strides[0] +
                     head * p.value_strides[2];
    weighted_sum(cells, value, p.value_strides[1], p.channels,
                 static_cast<T*>(output) + pair * p.channels);
  }
}

template <class T, class O>
void softmax_of_logits(const Problem& p, void* attention, int64_t first_pair, int64_t last_pair) {
  using C = Sum<T>;
  Scratch scratch;
  C* probabilities = scratch.take<C>(round_up(p.samples, kBlock));
  for (int64_t pair = first_pair; pair < last_pair; ++pair) {
    softmax(static_cast<const O*>(p.weights) + pair * p.samples, p.samples, probabilities);
    std::memcpy(static_cast<C*>(attention) + pair * p.samples, probabilities,
                p.samples * sizeof(C));
  }
}

}  // namespace
}  // namespace ddetr
