// Forward: for each (image, query, head), find the cells to read, then add them up channel by
// channel.
#pragma once

#include <algorithm>

#include "geometry.h"

namespace ddetr {
namespace {

// The values of one image and head. What is outside the map reads zeros: in a copy they have a
// position of their own, so that all positions are alike, and positions are those of elements.
template <bool kCopy, class T>
struct Source {
  const T* value;
  int64_t stride;
  const T* zeros;

  const T* at(Index<Sum<T>> position) const {
    if constexpr (kCopy) return value + std::make_unsigned_t<Index<Sum<T>>>(position);
    return position >= 0 ? value + position * stride : zeros;
  }
  Source channel(int64_t d) const { return {value + d, stride, zeros + d}; }
};

// sum += weight * from[0 .. kVectors * lanes).
template <int kVectors, class T, class Weight>
inline void add(Weight weight, const T* from, Vector<Sum<T>>* sum) {
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

// Adds one of the four cells of `count` samples. Upper left ones come one after the other, then
// upper right ones, ...: what is read next is not what lies beside it, and has time to arrive.
template <int kVectors, int kChains, bool kCopy, class T>
inline void add_corner(const CellBlock<Sum<T>>& block, int corner, int64_t count,
                       const Source<kCopy, T>& from, Vector<Sum<T>> (*sum)[kVectors]) {
  const Index<Sum<T>>* position = block.position[corner];
  const Sum<T>* weight = block.weight[corner];
#if DDETR_VECTOR_BYTES == 64
  if constexpr (kVectors == 2 && std::is_same_v<T, float>) {
    if (count == kBlock) {
      // Out of a register: loads are what takes longest.
      const __m512 weights = _mm512_load_ps(weight);
#pragma GCC unroll 16
      for (int i = 0; i < kBlock; ++i) {
        const __m512 same = _mm512_permutexvar_ps(_mm512_set1_epi32(i), weights);
        add<kVectors>((VectorF)same, from.at(position[i]), sum[i % kChains]);
      }
      return;
    }
  }
#endif
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains)
    for (int chain = 0; chain < kChains; ++chain)
      add<kVectors>(weight[i + chain], from.at(position[i + chain]), sum[chain]);
  for (; i < count; ++i) add<kVectors>(weight[i], from.at(position[i]), sum[0]);
}

// out[0 .. kVectors * lanes) = scale * the sum over the cells of all samples of weight * value.
template <int kVectors, bool kCopy, class T>
inline void weighted_sum(const CellBlock<Sum<T>>* block, int64_t samples,
                         const Source<kCopy, T>& from, Sum<T> scale, T* out) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  constexpr int chains = kVectors >= 8 ? 1 : kVectors >= 4 ? 2 : 4;  // hides the latency of FMA
  Vector<Sum<T>> sum[chains][kVectors] = {};
  for (; samples > 0; samples -= kBlock, ++block)
    for (int corner = 0; corner < 4; ++corner)
      add_corner<kVectors, chains>(*block, corner, samples < kBlock ? samples : kBlock, from, sum);
  for (int v = 0; v < kVectors; ++v) {
    for (int chain = 1; chain < chains; ++chain) sum[0][v] += sum[chain][v];
    sum[0][v] *= scale;
  }
  if constexpr (kVectors == 1)
    store(out, sum[0][0]);
  else
    for (int v = 0; v < kVectors; v += 2) store2(out + v * lanes, sum[0][v], sum[0][v + 1]);
}

// Always inline: as a function of its own, it would take a twentieth more time.
template <bool kCopy, class T>
__attribute__((always_inline)) inline void weighted_sum(const CellBlock<Sum<T>>* blocks,
                                                        int64_t samples,
                                                        const Source<kCopy, T>& from, Sum<T> scale,
                                                        int64_t channels, T* out) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  int64_t d = 0;
  if constexpr (lanes <= 4)  // 32 channels at once
    for (; d + 8 * lanes <= channels; d += 8 * lanes)
      weighted_sum<8>(blocks, samples, from.channel(d), scale, out + d);
  for (; d + 4 * lanes <= channels; d += 4 * lanes)
    weighted_sum<4>(blocks, samples, from.channel(d), scale, out + d);
  for (; d + 2 * lanes <= channels; d += 2 * lanes)
    weighted_sum<2>(blocks, samples, from.channel(d), scale, out + d);
  for (; d + lanes <= channels; d += lanes)
    weighted_sum<1>(blocks, samples, from.channel(d), scale, out + d);
  for (; d < channels; ++d) {
    Sum<T> sum = 0;
    for (int64_t k = 0; k < samples; ++k) {
      const CellBlock<Sum<T>>& block = blocks[k / kBlock];
      for (int corner = 0; corner < 4; ++corner)
        sum += block.weight[corner][k % kBlock] *
               to_sum(from.at(block.position[corner][k % kBlock])[d]);
    }
    from_sum(sum * scale, out + d);
  }
}

template <class T, class O>
void forward(const Problem& p, void* output, int64_t first_query, int64_t last_query,
             int64_t first_head, int64_t last_head) {
  using C = Sum<T>;
  Scratch scratch;
  PixelMap<C> map(p, scratch);
  C* powers = scratch.take<C>(p.samples + kBlock);
  T* zeros = scratch.take<T>(p.channels);
  std::memset(zeros, 0, p.channels * sizeof(T));
  // Levels are those of the samples whatever the query; samples beyond K lie in an empty level.
  const int64_t num_blocks = (p.samples + kBlock - 1) / kBlock;
  CellBlock<C>* blocks = scratch.take<CellBlock<C>>(num_blocks);
  std::memset(blocks, 0, num_blocks * sizeof(CellBlock<C>));
  const int64_t pace = p.outside < 0 ? 1 : p.value_strides[1];
  for (int64_t l = 0; l < p.levels; ++l) {
    const Level& level = p.level[l];
    for (int64_t k = level.first_sample; k < level.first_sample + level.points; ++k)
      blocks[k / kBlock].set_level(k % kBlock, level, level.start, pace);
  }

  const auto pair_forward = [&](int64_t image, int64_t pair, int64_t head) {
    const O* points = static_cast<const O*>(p.points) + 2 * pair * p.samples;
    const C* attention = static_cast<const C*>(p.weights) + pair * p.samples;
    C scale = 1;
    if (p.references) {
      const O* logits = static_cast<const O*>(p.weights) + pair * p.samples;
      const C sum = exponentials(logits, p.samples, powers);  // which only the result waits for
      if (sum > 0)
        scale = 1 / sum;
      else  // not a number, and only what is read becomes so
        std::fill(powers, powers + p.samples, sum);
      attention = powers;
    }
    for (int64_t k = 0; k < p.samples; k += kBlock) {
      CellBlock<C>& block = blocks[k / kBlock];
      with_count(std::min<int64_t>(p.samples - k, kBlock), [&](auto count) {
        block.set_pixels(0, count, points + 2 * k, map.step + 2 * k, map.base + 2 * k);
        copy_in(attention + k, count, block.attention);
      });
      block.find(p.outside, pace);
    }
    const T* value =
        static_cast<const T*>(p.value) + image * p.value_strides[0] + head * p.value_strides[2];
    T* out = static_cast<T*>(output) + pair * p.channels;
    const auto sum_of = [&](auto from) {
      weighted_sum(blocks, p.samples, from, scale, p.channels, out);
    };
    if (p.outside < 0)
      sum_of(Source<false, T>{value, p.value_strides[1], zeros});
    else
      sum_of(Source<true, T>{value, p.value_strides[1], zeros});
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
        map.prefetch_query(query + kPrefetchQueries);
      }
      pair_forward(query / p.queries, pair, head);
    }
  }
}

}  // namespace
}  // namespace ddetr
