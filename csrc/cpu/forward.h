// Forward: for each (image, query, head), list the cells to read, then add them up channel by
// channel.
#pragma once

#include "geometry.h"

namespace ddetr {
namespace {

// Cells inside the map that a pair (query, head) reads, with bilinear times attention weights.
template <class C>
struct Cells {
  Index<C>* position;
  C* weight;
  int64_t count = 0;

  Cells(const Problem& p, Scratch& scratch)
      // Four per sample, and room for the last store of a whole block.
      : position(scratch.take<Index<C>>(4 * p.samples + 5 * kBlock)),
        weight(scratch.take<C>(4 * p.samples + 5 * kBlock)) {}

  void append(const CellBlock<C>& block, int64_t samples) {
    for (int corner = 0; corner < 4; ++corner) {
#if DDETR_VECTOR_BYTES == 64
      if constexpr (sizeof(C) == 4) {
        const __m512i at = _mm512_load_si512(block.position[corner]);
        const __mmask16 present = _mm512_movepi32_mask(at) ^ 0xffff;  // the sign: -1 is outside
        _mm512_storeu_si512(position + count, _mm512_maskz_compress_epi32(present, at));
        _mm512_storeu_ps(weight + count, _mm512_maskz_compress_ps(
                                             present, _mm512_load_ps(block.weight[corner])));
        count += __builtin_popcount(present);
        continue;
      }
#endif
      for (int64_t i = 0; i < samples; ++i) {
        position[count] = block.position[corner][i];
        weight[count] = block.weight[corner][i];
        count += block.position[corner][i] >= 0;
      }
    }
  }
};

// sum += weight * from[0 .. kVectors * lanes).
template <int kVectors, class T>
inline void add(Sum<T> weight, const T* from, Vector<Sum<T>>* sum) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  if constexpr (kVectors == 1) {
    sum[0] += weight * load(from);
  } else {
    for (int v = 0; v < kVectors; v += 2) {
      Vector<Sum<T>> a, b;
      load2(from + v * lanes, a, b);
      sum[v] += weight * a, sum[v + 1] += weight * b;
    }
  }
}

// out[0 .. kVectors * lanes) = sum_i weight[i] * value[position[i] * stride + ...].
template <int kVectors, class T>
inline void weighted_sum(const Cells<Sum<T>>& cells, const T* value, int64_t stride, T* out) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  constexpr int chains = kVectors >= 8 ? 1 : kVectors >= 4 ? 2 : 4;  // hides the latency of FMA
  Vector<Sum<T>> sum[chains][kVectors] = {};
  int64_t i = 0;
  for (; i + chains <= cells.count; i += chains)
    for (int chain = 0; chain < chains; ++chain)
      add<kVectors>(cells.weight[i + chain], value + cells.position[i + chain] * stride,
                    sum[chain]);
  for (; i < cells.count; ++i)
    add<kVectors>(cells.weight[i], value + cells.position[i] * stride, sum[0]);
  for (int v = 0; v < kVectors; ++v)
    for (int chain = 1; chain < chains; ++chain) sum[0][v] += sum[chain][v];
  if constexpr (kVectors == 1)
    store(out, sum[0][0]);
  else
    for (int v = 0; v < kVectors; v += 2) store2(out + v * lanes, sum[0][v], sum[0][v + 1]);
}

template <class T>
inline void weighted_sum(const Cells<Sum<T>>& cells, const T* value, int64_t stride,
                         int64_t channels, T* out) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  int64_t d = 0;
  if constexpr (lanes <= 4)  // 32 channels at once
    for (; d + 8 * lanes <= channels; d += 8 * lanes)
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
void forward(const Problem& p, void* output, int64_t first_query, int64_t last_query,
             int64_t first_head, int64_t last_head) {
  using C = Sum<T>;
  Scratch scratch;
  PixelMap<C> map(p, scratch);
  Cells<C> cells(p, scratch);
  C* probabilities = scratch.take<C>(p.samples + kBlock);
  // Levels are those of the samples whatever the query; samples beyond K lie in an empty level.
  const int64_t num_blocks = (p.samples + kBlock - 1) / kBlock;
  CellBlock<C>* blocks = scratch.take<CellBlock<C>>(num_blocks);
  std::memset(blocks, 0, num_blocks * sizeof(CellBlock<C>));
  for (int64_t l = 0; l < p.levels; ++l) {
    const Level& level = p.level[l];
    for (int64_t k = level.first_sample; k < level.first_sample + level.points; ++k)
      blocks[k / kBlock].set_level(k % kBlock, level, level.start);
  }

  const auto pair_forward = [&](int64_t image, int64_t pair, int64_t head) {
    const O* points = static_cast<const O*>(p.points) + 2 * pair * p.samples;
    const C* attention = static_cast<const C*>(p.weights) + pair * p.samples;
    if (p.references) {
      softmax(static_cast<const O*>(p.weights) + pair * p.samples, p.samples, probabilities);
      attention = probabilities;
    }
    cells.count = 0;
    for (int64_t k = 0; k < p.samples; k += kBlock) {
      CellBlock<C>& block = blocks[k / kBlock];
      const int64_t count = p.samples - k < kBlock ? p.samples - k : kBlock;
      block.set_pixels(0, count, points + 2 * k, map.step + 2 * k, map.base + 2 * k);
      copy_in(attention + k, count, block.attention);
      block.find(-1);
      cells.append(block, count);
    }
    const T* value =
        static_cast<const T*>(p.value) + image * p.value_strides[0] + head * p.value_strides[2];
    weighted_sum(cells, value, p.value_strides[1], p.channels,
                 static_cast<T*>(output) + pair * p.channels);
  };
  const bool all_heads = last_head - first_head == p.heads;
  for (int64_t query = first_query; query < last_query; ++query) {
    if (p.references) map.set_query(query);
    for (int64_t head = first_head; head < last_head; ++head) {
      const int64_t pair = query * p.heads + head, ahead = pair + kPrefetchQueries * p.heads;
      if (!all_heads && query + kPrefetchQueries < p.images * p.queries) {
        const int64_t weight_bytes = p.references ? sizeof(O) : sizeof(C);
        prefetch(static_cast<const O*>(p.points) + 2 * ahead * p.samples,
                 2 * p.samples * sizeof(O));
        prefetch(static_cast<const char*>(p.weights) + ahead * p.samples * weight_bytes,
                 p.samples * weight_bytes);
        prefetch(static_cast<const T*>(output) + ahead * p.channels, p.channels * sizeof(T));
      }
      pair_forward(query / p.queries, pair, head);
    }
  }
}

template <class T, class O>
void softmax_of_logits(const Problem& p, void* attention, int64_t first_pair, int64_t last_pair) {
  using C = Sum<T>;
  Scratch scratch;
  C* probabilities = scratch.take<C>(p.samples + kBlock);
  for (int64_t pair = first_pair; pair < last_pair; ++pair) {
    softmax(static_cast<const O*>(p.weights) + pair * p.samples, p.samples, probabilities);
    std::memcpy(static_cast<C*>(attention) + pair * p.samples, probabilities,
                p.samples * sizeof(C));
  }
}

}  // namespace
}  // namespace ddetr
