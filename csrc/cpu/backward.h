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
  const C* value;
  C* grad;
  int64_t value_stride, grad_stride;
  int64_t outside;  // the position that stands for it: behind the last, or -1 without a copy
  const C* zero;
  C* unread;
};

template <class C>
struct Cell {
  const C* value;
  C* grad;
};

template <bool kCompact, class C>
inline Cell<C> cell_at(const Map<C>& map, int64_t position) {
  const Cell<C> cell = {map.value + position * map.value_stride,
                        map.grad + position * map.grad_stride};
  if (kCompact || position >= 0) return cell;
  return {map.zero, map.unread};
}

// grad_k += weight_k * g, and the four dot products.
template <int kVectors, class C>
inline void visit_cells(const C* g, const Cell<C> (&cell)[4], const C (&weight)[4], int64_t vectors,
                        C* dots) {
  constexpr int lanes = Lanes<C>::count;
  Vector<C> dot[4] = {};
  for (int64_t v = 0; v < (kVectors ? kVectors : vectors); ++v) {
    const Vector<C> out = load(g + v * lanes);
    for (int k = 0; k < 4; ++k) dot[k] += out * load(cell[k].value + v * lanes);
    for (int k = 0; k < 4; ++k) {
      C* grad = cell[k].grad + v * lanes;
      store(grad, load(grad) + weight[k] * out);
    }
  }
  reduce4<C>(dot[0], dot[1], dot[2], dot[3], dots);
}

// Sixteen samples: those of a query in turn, or of as many queries as fit.
template <class C>
struct SampleBlock {
  CellBlock<C> cells;
  const C* g[kBlock];  // gradient of the output that a sample belongs to
  alignas(64) C dots[kBlock][4];
  alignas(64) C grad_xy[2 * kBlock], grad_attention[kBlock];

  template <bool kCompact, int kVectors>
  void visit(const Map<C>& map, int64_t count, int64_t vectors) {
    for (int64_t i = 0; i < count; ++i) {
      const Cell<C> cell[4] = {cell_at<kCompact>(map, cells.position[0][i]),
                               cell_at<kCompact>(map, cells.position[1][i]),
                               cell_at<kCompact>(map, cells.position[2][i]),
                               cell_at<kCompact>(map, cells.position[3][i])};
      const C weight[4] = {cells.weight[0][i], cells.weight[1][i], cells.weight[2][i],
                           cells.weight[3][i]};
      visit_cells<kVectors>(g[i], cell, weight, vectors, dots[i]);
    }
  }

  // From dot products to gradients by pixel and by attention; zero outside, whatever is there.
  void finish() {
    for (int i = 0; i < kBlock; ++i) {
      const C upper = dots[i][1] - dots[i][0], lower = dots[i][3] - dots[i][2];
      const C left = dots[i][2] - dots[i][0], right = dots[i][3] - dots[i][1];
      const C top = dots[i][0] + cells.fx[i] * upper, bottom = dots[i][2] + cells.fx[i] * lower;
      const bool in = cells.inside[i] != 0;
      grad_attention[i] = in ? top + cells.fy[i] * (bottom - top) : C(0);
      grad_xy[2 * i] = in ? cells.attention[i] * (upper + cells.fy[i] * (lower - upper)) : C(0);
      grad_xy[2 * i + 1] = in ? cells.attention[i] * (left + cells.fx[i] * (right - left)) : C(0);
    }
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
  const int64_t padded = round_up(p.channels, Lanes<C>::count), vectors = padded / Lanes<C>::count;

  const T* value = static_cast<const T*>(p.value) + image * p.value_strides[0] +
                   first.start * p.value_strides[1] + head * p.value_strides[2];
  const int64_t grad_stride = p.heads * p.channels;
  T* grad_value = static_cast<T*>(grads.value) +
                  ((image * p.positions + first.start) * p.heads + head) * p.channels;
  Map<C> map{};
  bool compact = true;
  if constexpr (std::is_same_v<T, C>) {
    compact = p.channels != padded || p.queries * samples >= positions;
    if (!compact) {
      C* outside = scratch.take<C>(2 * padded);
      std::memset(outside, 0, 2 * padded * sizeof(C));
      map = {value, grad_value, p.value_strides[1], grad_stride, -1, outside, outside + padded};
      for (int64_t i = 0; i < positions; ++i)
        std::memset(grad_value + i * grad_stride, 0, p.channels * sizeof(C));
    }
  }
  if (compact) {
    C* copy = scratch.take<C>((positions + 1) * 2 * padded);
    map = {copy, copy + padded, 2 * padded, 2 * padded, positions, nullptr, nullptr};
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

  const auto visit = !compact       ? &SampleBlock<C>::template visit<false, 0>
                     : vectors == 1 ? &SampleBlock<C>::template visit<true, 1>
                     : vectors == 2 ? &SampleBlock<C>::template visit<true, 2>
                     : vectors == 4 ? &SampleBlock<C>::template visit<true, 4>
                                    : &SampleBlock<C>::template visit<true, 0>;

  // Gradients of the output as they are, or converted and padded.
  const bool as_is = std::is_same_v<T, C> && p.channels == padded;
  C* g_rows = as_is ? nullptr : scratch.take<C>(block_queries * padded);
  if (!as_is) std::memset(g_rows, 0, block_queries * padded * sizeof(C));

  PixelMap<C> pixels(p, scratch);
  const C* step = pixels.step + 2 * first.first_sample;
  const C* base = pixels.base + 2 * first.first_sample;
  const T* grad_output = static_cast<const T*>(grads.output);
  const C* attention = static_cast<const C*>(grads.attention) + first.first_sample;
  const O* points = static_cast<const O*>(p.points) + 2 * first.first_sample;
  C* grad_points = static_cast<C*>(grads.sample_points) + 2 * first.first_sample;
  C* grad_attention = static_cast<C*>(grads.sample_attention) + first.first_sample;

  for (int64_t query = 0; query < p.queries; query += block_queries) {
    const int64_t queries = std::min(block_queries, p.queries - query);
    for (int64_t b = 0; b < num_blocks; ++b) {
      SampleBlock<C>& block = blocks[b];
      const int64_t k = b * kBlock, count = std::min<int64_t>(samples - k, kBlock);  // of a query
      for (int64_t q = 0; q < queries; ++q) {
        const int64_t row = image * p.queries + query + q, pair = row * p.heads + head;
        const int64_t ahead = kPrefetchQueries * p.heads;
        if (query + q + kPrefetchQueries < p.queries) {
          prefetch(points + 2 * ((pair + ahead) * p.samples + k), 2 * count * sizeof(O));
          prefetch(attention + (pair + ahead) * p.samples + k, count * sizeof(C));
          prefetch(grad_points + 2 * ((pair + ahead) * p.samples + k), 2 * count * sizeof(C));
          prefetch(grad_attention + (pair + ahead) * p.samples + k, count * sizeof(C));
          if (b == 0) prefetch(grad_output + (pair + ahead) * p.channels, p.channels * sizeof(T));
        }
        if (p.references && b == 0)
          pixels.set_query(row, first.first_sample, first.first_sample + samples);
        const C* g;
        if constexpr (std::is_same_v<T, C>) g = grad_output + pair * p.channels;
        if (!as_is) {
          copy_in(grad_output + pair * p.channels, p.channels, g_rows + q * padded);
          g = g_rows + q * padded;
        }
        block.cells.set_pixels(q * samples, count, points + 2 * (pair * p.samples + k),
                               step + 2 * k, base + 2 * k);
        copy_in(attention + pair * p.samples + k, count, block.cells.attention + q * samples);
        for (int64_t i = 0; i < count; ++i) block.g[q * samples + i] = g;
      }
      const int64_t filled = (queries - 1) * samples + count;
      block.cells.find(map.outside);
      (block.*visit)(map, filled, vectors);
      block.finish();
      for (int64_t q = 0; q < queries; ++q) {
        const int64_t sample = ((image * p.queries + query + q) * p.heads + head) * p.samples + k;
        const C* by_pixel = block.grad_xy + 2 * q * samples;
        // With references finish() does the rest; by location a pixel is as wide as the level.
        for (int64_t i = 0; i < 2 * count; ++i)
          grad_points[2 * sample + i] = p.references ? by_pixel[i] : by_pixel[i] * step[2 * k + i];
        std::memcpy(grad_attention + sample, block.grad_attention + q * samples, count * sizeof(C));
      }
    }
  }

  if (compact)
    for (int64_t i = 0; i < positions; ++i)
      copy_out(map.grad + i * map.grad_stride, p.channels, grad_value + i * grad_stride);
}

// By pixel and probability -> by offset, logit and reference.
template <class T, class O>
void finish(const Problem& p, const Gradients& grads, int64_t first_query, int64_t last_query) {
  using C = Sum<T>;
  Scratch scratch;
  PixelMap<C> map(p, scratch);
  C *sum = scratch.take<C>(2 * p.samples), *moment = scratch.take<C>(2 * p.samples);
  for (int64_t query = first_query; query < last_query; ++query) {
    map.set_query(query);
    for (int64_t i = 0; i < 2 * p.samples; ++i) sum[i] = moment[i] = 0;
    for (int64_t head = 0; head < p.heads; ++head) {
      const int64_t first = (query * p.heads + head) * p.samples;
      const C* attention = static_cast<const C*>(grads.attention) + first;
      const C* by_attention = static_cast<const C*>(grads.sample_attention) + first;
      const C* by_pixel = static_cast<const C*>(grads.sample_points) + 2 * first;
      const O* points = static_cast<const O*>(p.points) + 2 * first;
      O* grad_logits = static_cast<O*>(grads.logits) + first;
      O* grad_points = static_cast<O*>(grads.points) + 2 * first;
      C mean = 0;
      for (int64_t k = 0; k < p.samples; ++k) mean += attention[k] * by_attention[k];
      for (int64_t k = 0; k < p.samples; ++k)
        from_sum(attention[k] * (by_attention[k] - mean), grad_logits + k);
      if (grads.references) {
        for (int64_t i = 0; i < 2 * p.samples; ++i) {
          const C offset = to_sum(points[i]);
          sum[i] += by_pixel[i];
          moment[i] += by_pixel[i] != 0 ? by_pixel[i] * offset : C(0);
        }
      }
      // What is not read has no gradient, even where an offset or a side of a box is not finite.
      for (int64_t i = 0; i < 2 * p.samples; ++i)
        from_sum(by_pixel[i] != 0 ? by_pixel[i] * map.step[i] : C(0), grad_points + i);
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
