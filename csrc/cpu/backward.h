// Backward of one (image, head, level). With g the gradient of the output and v_k the four cells of
// a sample, everything follows from the four dot products <g, v_k>.
#pragma once

#include <algorithm>

#include "geometry.h"

namespace ddetr {
namespace {

// Values and gradients of one level and head, cell by cell. The compact copy has them side by side,
// and after the last cell one for what is outside: it reads zero, and nobody reads what is written
// there. Lines of a copy do not compete for the same few sets of a cache, as one head of a tensor
// with many heads does; but where few samples touch few cells, copying costs more than it saves.
template <class C>
struct Map {
  int64_t channels;  // of a row of the copy, a multiple of the lanes
  int64_t outside;   // the position that stands for it: behind the last, or -1 without a copy
  C* copy;           // (cell, 2, channels); without it, what follows
  const C* value;
  C* grad;
  int64_t value_stride, grad_stride;
  const C* zero;
  C* unread;
};

template <class C>
struct Cell {
  const C* value;
  C* grad;
};

// With kCompact `channels` are those of the map, as a constant if they are one.
template <bool kCompact, class C>
inline Cell<C> cell_at(const Map<C>& map, int64_t position, int64_t channels) {
  if constexpr (kCompact) {
    C* const value = map.copy + position * 2 * channels;
    return {value, value + channels};
  }
  if (position < 0) return {map.zero, map.unread};
  return {map.value + position * map.value_stride, map.grad + position * map.grad_stride};
}

// grad_k += weight_k * g, and the four dot products.
template <class C>
inline void visit_cells(const C* g, const Cell<C> (&cell)[4], const C (&weight)[4],
                        int64_t channels, C* dots) {
  Narrow<C> dot[4] = {};
  for (int64_t d = 0; d < channels; d += NarrowLanes<C>::count) {
    const Narrow<C> out = load_narrow(g + d);
    for (int k = 0; k < 4; ++k) dot[k] += out * load_narrow(cell[k].value + d);
    for (int k = 0; k < 4; ++k)
      store_narrow(cell[k].grad + d, load_narrow(cell[k].grad + d) + weight[k] * out);
  }
  reduce4<C>(dot, dots);
}

// Sixteen samples: those of a query in turn, or of as many queries as fit.
template <class C>
struct SampleBlock {
  CellBlock<C> cells;
  const C* g[kBlock];  // gradient of the output that a sample belongs to
  alignas(64) C dots[kBlock][4];
  alignas(64) C grad_xy[2 * kBlock], grad_attention[kBlock];

  // kVectors, if not zero, are the vectors of a row.
  template <bool kCompact, int kVectors>
  void visit(const Map<C>& shared, int64_t count) {
    const Map<C> map = shared;  // of our own: no gradient that is written can change it
    const int64_t channels = kVectors ? kVectors * NarrowLanes<C>::count : map.channels;
    for (int64_t i = 0; i < count; ++i) {
      Cell<C> cell[4];
      C weight[4];
      for (int k = 0; k < 4; ++k) {
        cell[k] = cell_at<kCompact>(map, cells.position[k][i], channels);
        weight[k] = cells.weight[k][i];
      }
      visit_cells(g[i], cell, weight, channels, dots[i]);
    }
  }

  // From dot products to gradients by pixel and by attention; zero outside, whatever is there.
  void finish() {
    alignas(64) C dot[4][kBlock], by_x[kBlock], by_y[kBlock];
    for (int i = 0; i < kBlock; ++i)
      for (int k = 0; k < 4; ++k) dot[k][i] = dots[i][k];
    for (int i = 0; i < kBlock; i += Lanes<C>::count) {
      using V = Vector<C>;
      const V top_left = load(dot[0] + i), top_right = load(dot[1] + i);
      const V bottom_left = load(dot[2] + i), bottom_right = load(dot[3] + i);
      const V upper = top_right - top_left, lower = bottom_right - bottom_left;
      const V left = bottom_left - top_left, right = bottom_right - top_right;
      const V dx = load(cells.fx + i), dy = load(cells.fy + i), a = load(cells.attention + i);
      const V top = top_left + dx * upper, bottom = bottom_left + dx * lower;
      const Mask<C> in = load(cells.inside + i);
      const auto put = [&](C* to, V v) { store(to + i, (V)(in & (Mask<C>)v)); };
      put(grad_attention, top + dy * (bottom - top));
      put(by_x, a * (upper + dy * (lower - upper)));
      put(by_y, a * (left + dx * (right - left)));
    }
    for (int i = 0; i < kBlock; ++i) grad_xy[2 * i] = by_x[i], grad_xy[2 * i + 1] = by_y[i];
  }
};

template <class T, class O>
void backward(const Problem& p, const Gradients& grads, int64_t image, int64_t head,
              int64_t first_level, int64_t last_level) {
  using C = Sum<T>;
  Scratch scratch;
  const Level &first = p.level[first_level], &last = p.level[last_level - 1];
  const int64_t positions = last.start + last.height * last.width - first.start;
  const int64_t samples = last.first_sample + last.points - first.first_sample;  // of a query
  const int64_t padded = round_up(p.channels, NarrowLanes<C>::count);

  const T* value = static_cast<const T*>(p.value) + image * p.value_strides[0] +
                   first.start * p.value_strides[1] + head * p.value_strides[2];
  const int64_t grad_stride = p.heads * p.channels;
  T* grad_value = static_cast<T*>(grads.value) +
                  ((image * p.positions + first.start) * p.heads + head) * p.channels;
  Map<C> map{};
  map.channels = padded;
  bool compact = true;
  if constexpr (std::is_same_v<T, C>) {
    compact = p.channels != padded || p.queries * samples >= positions;
    if (!compact) {
      C* outside = scratch.take<C>(2 * padded);
      std::memset(outside, 0, 2 * padded * sizeof(C));
      map.outside = -1, map.zero = outside, map.unread = outside + padded;
      map.value = value, map.value_stride = p.value_strides[1];
      map.grad = grad_value, map.grad_stride = grad_stride;
      for (int64_t i = 0; i < positions; ++i)
        std::memset(grad_value + i * grad_stride, 0, p.channels * sizeof(C));
    }
  }
  if (compact) {
    C* copy = scratch.take<C>((positions + 1) * 2 * padded);
    map.copy = copy, map.outside = positions;
    for (int64_t i = 0; i < positions; ++i, copy += 2 * padded) {
      copy_in(value + i * p.value_strides[1], p.channels, copy);
      std::memset(copy + p.channels, 0, (2 * padded - p.channels) * sizeof(C));
    }
    std::memset(copy, 0, 2 * padded * sizeof(C));
  }

  // A block has the samples of several queries, or a query has several blocks.
  const int64_t num_blocks = (samples + kBlock - 1) / kBlock;
  const int64_t block_queries = samples > 0 && samples < kBlock ? kBlock / samples : 1;
  SampleBlock<C>* blocks = scratch.take<SampleBlock<C>>(num_blocks);
  std::memset(blocks, 0, num_blocks * sizeof(SampleBlock<C>));
  for (int64_t l = first_level; l < last_level; ++l) {
    const Level& level = p.level[l];
    for (int64_t point = 0; point < level.points; ++point) {
      const int64_t k = level.first_sample - first.first_sample + point;
      for (int64_t i = k; i < k + block_queries * samples; i += samples)
        blocks[i / kBlock].cells.set_level(i % kBlock, level, level.start - first.start);
    }
  }

  const int64_t vectors = padded / NarrowLanes<C>::count;
  const auto visit = !compact       ? &SampleBlock<C>::template visit<false, 0>
                     : vectors == 1 ? &SampleBlock<C>::template visit<true, 1>
                     : vectors == 2 ? &SampleBlock<C>::template visit<true, 2>
                     : vectors == 4 ? &SampleBlock<C>::template visit<true, 4>
                                    : &SampleBlock<C>::template visit<true, 0>;

  // Gradients of the output, padded, where the samples of other queries do not push them out.
  C* g_rows = scratch.take<C>(block_queries * padded);
  std::memset(g_rows, 0, block_queries * padded * sizeof(C));

  // The attention of a query, and of the queries of a block one after the other.
  const int64_t row = round_up(p.samples, kBlock);
  C* attention = scratch.take<C>(block_queries * row);
  const int64_t weight_bytes = p.references ? sizeof(O) : sizeof(C);
  const auto find_attention = [&](int64_t pair, C* to) {
    if (p.references)
      softmax(static_cast<const O*>(p.weights) + pair * p.samples, p.samples, to);
    else
      copy_in(static_cast<const C*>(p.weights) + pair * p.samples, p.samples, to);
  };

  PixelMap<C> pixels(p, scratch);
  const int64_t first_sample = first.first_sample;
  const C *step = pixels.step + 2 * first_sample, *base = pixels.base + 2 * first_sample;
  const T* grad_output = static_cast<const T*>(grads.output);
  const O* points = static_cast<const O*>(p.points) + 2 * first_sample;
  C* grad_points = static_cast<C*>(grads.sample_points) + 2 * first_sample;
  C* grad_attention = static_cast<C*>(grads.sample_attention) + first_sample;

  // Of sample k of a pair and the next.
  const auto read = [&](SampleBlock<C>& block, int64_t q, int64_t pair, int64_t k, auto count) {
    block.cells.set_pixels(q * samples, count, points + 2 * (pair * p.samples + k), step + 2 * k,
                           base + 2 * k);
    copy_in(attention + q * row + first_sample + k, count, block.cells.attention + q * samples);
  };
  const auto write = [&](const SampleBlock<C>& block, int64_t q, int64_t pair, int64_t k,
                         auto count) {
    const C* by_pixel = block.grad_xy + 2 * q * samples;
    C* xy = grad_points + 2 * (pair * p.samples + k);
    // With references finish() does the rest; by location a pixel is as wide as the level.
    if (p.references)
      copy_in(by_pixel, 2 * count, xy);
    else
      for (int64_t i = 0; i < 2 * count; ++i) xy[i] = by_pixel[i] * step[2 * k + i];
    copy_in(block.grad_attention + q * samples, count, grad_attention + pair * p.samples + k);
  };
  for (int64_t query = 0; query < p.queries; query += block_queries) {
    const int64_t queries = std::min(block_queries, p.queries - query);
    const auto pair_of = [&](int64_t q) {
      return (image * p.queries + query + q) * p.heads + head;
    };
    for (int64_t b = 0; b < num_blocks; ++b) {
      SampleBlock<C>& block = blocks[b];
      const int64_t k = b * kBlock, count = std::min<int64_t>(samples - k, kBlock);  // of a query
      for (int64_t q = 0; q < queries; ++q) {
        const int64_t pair = pair_of(q), ahead = pair + kPrefetchQueries * p.heads;
        if (query + q + kPrefetchQueries < p.queries) {
          prefetch(points + 2 * (ahead * p.samples + k), 2 * count * sizeof(O));
          prefetch(grad_points + 2 * (ahead * p.samples + k), 2 * count * sizeof(C));
          prefetch(grad_attention + ahead * p.samples + k, count * sizeof(C));
          if (b == 0) {
            prefetch(static_cast<const char*>(p.weights) + ahead * p.samples * weight_bytes,
                     p.samples * weight_bytes);
            prefetch(grad_output + ahead * p.channels, p.channels * sizeof(T));
            pixels.prefetch_query(ahead / p.heads);
          }
        }
        C* g = g_rows + q * padded;
        if (b == 0) {
          if (p.references)
            pixels.set_query(pair / p.heads, first_sample, first_sample + samples);
          find_attention(pair, attention + q * row);
          copy_in(grad_output + pair * p.channels, p.channels, g);
        }
        std::fill_n(block.g + q * samples, count, g);
        with_count(count, [&](auto constant) { read(block, q, pair, k, constant); });
      }
      block.cells.find(map.outside);
      (block.*visit)(map, (queries - 1) * samples + count);
      block.finish();
      for (int64_t q = 0; q < queries; ++q)
        with_count(count, [&](auto constant) { write(block, q, pair_of(q), k, constant); });
    }
  }

  if (compact)
    for (int64_t i = 0; i < positions; ++i)
      copy_out(map.copy + (2 * i + 1) * padded, p.channels, grad_value + i * grad_stride);
}

// By pixel and probability -> by offset, logit and reference.
template <class T, class O>
void finish(const Problem& p, const Gradients& grads, int64_t first_query, int64_t last_query) {
  using C = Sum<T>;
  Scratch scratch;
  PixelMap<C> map(p, scratch);
  // What lies behind K, or 2 K, stays zero.
  const int64_t padded = round_up(p.samples, kBlock), numbers = round_up(2 * p.samples, kBlock);
  const auto zeros = [&](int64_t count) {
    C* const memory = scratch.take<C>(count);
    std::memset(memory, 0, count * sizeof(C));
    return memory;
  };
  C *attention = zeros(padded + kBlock), *by_attention = zeros(padded), *by_logit = zeros(padded);
  C *by_pixel = zeros(numbers), *offset = zeros(numbers);
  C *sum = zeros(numbers), *moment = zeros(numbers);
  for (int64_t query = first_query; query < last_query; ++query) {
    map.set_query(query);
    for (int64_t i = 0; i < numbers; ++i) sum[i] = moment[i] = 0;
    for (int64_t head = 0; head < p.heads; ++head) {
      using V = Vector<C>;
      const int64_t first = (query * p.heads + head) * p.samples;
      softmax(static_cast<const O*>(p.weights) + first, p.samples, attention);
      copy_in(static_cast<const C*>(grads.sample_attention) + first, p.samples, by_attention);
      copy_in(static_cast<const C*>(grads.sample_points) + 2 * first, 2 * p.samples, by_pixel);
      V products = {};
      for (int64_t k = 0; k < padded; k += Lanes<C>::count)
        products += load(attention + k) * load(by_attention + k);
      const C mean = reduce<C>(products);
      for (int64_t k = 0; k < padded; k += Lanes<C>::count)
        store(by_logit + k, load(attention + k) * (load(by_attention + k) - mean));
      copy_out(by_logit, p.samples, static_cast<O*>(grads.logits) + first);
      if (grads.references)
        copy_in(static_cast<const O*>(p.points) + 2 * first, 2 * p.samples, offset);
      // What is not read has no gradient, even where an offset or a side of a box is not finite.
      for (int64_t i = 0; i < numbers; i += Lanes<C>::count) {
        const V pixel = load(by_pixel + i);
        const Mask<C> is_read = pixel != 0;
        if (grads.references) {
          store(sum + i, load(sum + i) + pixel);
          store(moment + i, load(moment + i) + select<C>(is_read, pixel * load(offset + i), V{}));
        }
        store(by_pixel + i, select<C>(is_read, pixel * load(map.step + i), V{}));
      }
      copy_out(by_pixel, 2 * p.samples, static_cast<O*>(grads.points) + 2 * first);
    }
    if (!grads.references) continue;
    C* reference = static_cast<C*>(grads.references) + query * p.levels * p.reference_size;
    for (int64_t l = 0; l < p.levels; ++l, reference += p.reference_size) {
      const Level& level = p.level[l];
      const C size[2] = {C(level.width), C(level.height)};
      for (int64_t i = 0; i < p.reference_size; ++i) reference[i] = 0;
      for (int64_t k = level.first_sample; k < level.first_sample + level.points; ++k) {
        for (int axis = 0; axis < 2; ++axis) {
          reference[axis] += sum[2 * k + axis] * size[axis];
          if (p.reference_size == 4)
            reference[2 + axis] += moment[2 * k + axis] * size[axis] / C(2 * level.points);
        }
      }
    }
  }
}

}  // namespace
}  // namespace ddetr
