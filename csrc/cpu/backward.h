// Backward of one (image, head, level). With g the gradient of the output and v_k the four cells of
// a sample, everything follows from the four dot products <g, v_k>.
#pragma once

#include "geometry.h"

namespace ddetr {
namespace {

template <class A, class B>
constexpr bool is_same = false;
template <class A>
constexpr bool is_same<A, A> = true;

// Values and their gradients, cell by cell: either the tensors themselves or a compact copy, whose
// lines do not compete for the same few sets of the cache as one head of a wide tensor does.
template <class C>
struct Cell {
  const C* value;
  C* grad;
};

template <class C>
struct Map {
  Cell<C> first;
  int64_t value_stride, grad_stride;
  Cell<C> outside;  // reads zero, and nobody looks at what is written there

  Cell<C> operator[](int32_t position) const {
    const Cell<C> cell = {first.value + position * value_stride,
                          first.grad + position * grad_stride};
    return position < 0 ? outside : cell;
  }
};

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

// Sixteen consecutive samples of one (image, head, level): points of one query, then of the next.
template <class C>
struct SampleBlock {
  C x[kBlock], y[kBlock], attention[kBlock];
  C fx[kBlock], fy[kBlock], inside[kBlock];
  C weight[kBlock][4];
  int32_t position[kBlock][4];
  int64_t query[kBlock], sample[kBlock];
  alignas(64) C dots[kBlock][4];
  C grad_x[kBlock], grad_y[kBlock], grad_attention[kBlock];

  void find_cells(const Level& level) {
    const C width = level.width, height = level.height;
    const int32_t row = level.width;
    for (int i = 0; i < kBlock; ++i) {
      const bool in = (x[i] > -1) & (y[i] > -1) & (x[i] < width) & (y[i] < height);
      const C safe_x = in ? x[i] : C(0), safe_y = in ? y[i] : C(0);
      const C x0 = std::floor(safe_x), y0 = std::floor(safe_y);
      inside[i] = in ? C(1) : C(0);
      fx[i] = safe_x - x0, fy[i] = safe_y - y0;
      const C bottom = attention[i] * fy[i], top = attention[i] - bottom;
      weight[i][1] = top * fx[i], weight[i][0] = top - weight[i][1];
      weight[i][3] = bottom * fx[i], weight[i][2] = bottom - weight[i][3];
      const bool left = in & (x0 >= 0), right = in & (x0 < width - 1);
      const bool above = y0 >= 0, below = y0 < height - 1;
      const int32_t at = int32_t(y0) * row + int32_t(x0);
      position[i][0] = left & above ? at : -1, position[i][1] = right & above ? at + 1 : -1;
      position[i][2] = left & below ? at + row : -1;
      position[i][3] = right & below ? at + row + 1 : -1;
    }
  }

  // From dot products to gradients by pixel and by attention; zero outside, whatever is there.
  void finish() {
    for (int i = 0; i < kBlock; ++i) {
      const C upper = dots[i][1] - dots[i][0], lower = dots[i][3] - dots[i][2];
      const C left = dots[i][2] - dots[i][0], right = dots[i][3] - dots[i][1];
      const C top = dots[i][0] + fx[i] * upper, bottom = dots[i][2] + fx[i] * lower;
      const bool in = inside[i] != 0;
      grad_attention[i] = in ? top + fy[i] * (bottom - top) : C(0);
      grad_x[i] = in ? attention[i] * (upper + fy[i] * (lower - upper)) : C(0);
      grad_y[i] = in ? attention[i] * (left + fx[i] * (right - left)) : C(0);
    }
  }
};

template <class T>
inline void copy_in(const T* from, int64_t count, int64_t padded, Sum<T>* to) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  int64_t d = 0;
  for (; d + lanes <= count; d += lanes) store(to + d, load(from + d));
  for (; d < count; ++d) to[d] = to_sum(from[d]);
  for (; d < padded; ++d) to[d] = 0;
}

template <class T>
inline void copy_out(const Sum<T>* from, int64_t count, T* to) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  int64_t d = 0;
  for (; d + lanes <= count; d += lanes) store(to + d, load(from + d));
  for (; d < count; ++d) from_sum(from[d], to + d);
}

template <class T, class O>
void backward(const Problem& p, const Gradients& grads, int64_t image, int64_t head,
              int64_t level_index) {
  using C = Sum<T>;
  const Level& level = p.level[level_index];
  const int64_t positions = level.height * level.width;
  const int64_t padded = round_up(p.channels, Lanes<C>::count);
  const int64_t samples = p.queries * level.points;
  Scratch scratch;

  Map<C> map;
  C* outside = scratch.take<C>(2 * padded);
  for (int64_t d = 0; d < 2 * padded; ++d) outside[d] = 0;
  map.outside = {outside, outside + padded};
  const T* value = static_cast<const T*>(p.value) + image * p.value_strides[0] +
                   level.start * p.value_strides[1] + head * p.value_strides[2];
  const int64_t grad_stride = p.heads * p.channels;
  T* grad_value = static_cast<T*>(grads.value) +
                  ((image * p.positions + level.start) * p.heads + head) * p.channels;
  // Few samples touch few cells: then the copy would cost more than it saves.
  bool compact = !is_same<T, C> || p.channels != padded || samples >= positions;
  if constexpr (is_same<T, C>) {
    if (!compact) {
      map.first = {value, grad_value};
      map.value_stride = p.value_strides[1], map.grad_stride = grad_stride;
      for (int64_t i = 0; i < positions; ++i)
        std::memset(grad_value + i * grad_stride, 0, p.channels * sizeof(C));
    }
  }
  if (compact) {
    C* copy = scratch.take<C>(positions * 2 * padded);
    map.first = {copy, copy + padded};
    map.value_stride = map.grad_stride = 2 * padded;
    for (int64_t i = 0; i < positions; ++i, copy += 2 * padded) {
      copy_in(value + i * p.value_strides[1], p.channels, padded, copy);
      std::memset(copy + padded, 0, padded * sizeof(C));
    }
  }

  const C* attention = static_cast<const C*>(grads.attention);
  const O* points = static_cast<const O*>(p.points);
  C* grad_points = static_cast<C*>(grads.sample_points);
  C* grad_attention = static_cast<C*>(grads.sample_attention);
  // By location a pixel is as wide as the level; with references, finish() does the rest.
  const C scale_x = p.references ? 1 : level.width, scale_y = p.references ? 1 : level.height;
  C step_x = level.width, step_y = level.height, base_x = C(-0.5), base_y = C(-0.5);
  C* g_copy = scratch.take<C>(padded);
  int64_t g_query = -1;
  SampleBlock<C> block;

  int64_t query = 0, point = 0;
  for (int64_t done = 0; done < samples; done += kBlock) {
    const int count = samples - done < kBlock ? int(samples - done) : kBlock;
    for (int i = 0; i < count; ++i) {
      const int64_t row = image * p.queries + query;
      if (p.references && (point == 0 || i == 0)) {
        const C* reference = static_cast<const C*>(p.references) +
                             (row * p.levels + level_index) * p.reference_size;
        step_x = step_y = 1;
        if (p.reference_size == 4) {
          step_x = reference[2] * C(level.width) / C(2 * level.points);
          step_y = reference[3] * C(level.height) / C(2 * level.points);
        }
        base_x = reference[0] * C(level.width) - C(0.5);
        base_y = reference[1] * C(level.height) - C(0.5);
      }
      const int64_t sample = (row * p.heads + head) * p.samples + level.first_sample + point;
      block.sample[i] = sample;
      block.query[i] = row * p.heads + head;
      block.x[i] = to_sum(points[2 * sample]) * step_x + base_x;
      block.y[i] = to_sum(points[2 * sample + 1]) * step_y + base_y;
      block.attention[i] = attention[sample];
      if (++point == level.points) point = 0, ++query;
    }
    for (int i = count; i < kBlock; ++i) block.x[i] = block.y[i] = -2, block.attention[i] = 0;
    block.find_cells(level);

    for (int i = 0; i < count; ++i) {
      const T* row = static_cast<const T*>(grads.output) + block.query[i] * p.channels;
      const C* g = g_copy;
      if (is_same<T, C> && p.channels == padded) {
        g = reinterpret_cast<const C*>(row);
      } else if (block.query[i] != g_query) {
        copy_in(row, p.channels, padded, g_copy);
        g_query = block.query[i];
      }
      const int32_t(&at)[4] = block.position[i];
      const Cell<C> cell[4] = {map[at[0]], map[at[1]], map[at[2]], map[at[3]]};
      const int64_t vectors = padded / Lanes<C>::count;
      switch (vectors) {
        case 1: visit_cells<1>(g, cell, block.weight[i], vectors, block.dots[i]); break;
        case 2: visit_cells<2>(g, cell, block.weight[i], vectors, block.dots[i]); break;
        case 4: visit_cells<4>(g, cell, block.weight[i], vectors, block.dots[i]); break;
        default: visit_cells<0>(g, cell, block.weight[i], vectors, block.dots[i]);
      }
    }
    for (int i = count; i < kBlock; ++i)
      for (int k = 0; k < 4; ++k) block.dots[i][k] = 0;
    block.finish();
    for (int i = 0; i < count; ++i) {
      grad_points[2 * block.sample[i]] = block.grad_x[i] * scale_x;
      grad_points[2 * block.sample[i] + 1] = block.grad_y[i] * scale_y;
      grad_attention[block.sample[i]] = block.grad_attention[i];
    }
  }

  if (compact) {
    const C* copy = map.first.grad;
    for (int64_t i = 0; i < positions; ++i, copy += 2 * padded)
      copy_out(copy, p.channels, grad_value + i * grad_stride);
  }
}

// By pixel and probability -> by offset, logit and reference.
template <class T, class O>
void finish(const Problem& p, const Gradients& grads, int64_t first_query, int64_t last_query) {
  using C = Sum<T>;
  Scratch scratch;
  SampleTable<C> table(p, scratch);
  C *sum_x = scratch.take<C>(p.samples), *sum_y = scratch.take<C>(p.samples);
  C *sum_w = scratch.take<C>(p.samples), *sum_h = scratch.take<C>(p.samples);
  for (int64_t query = first_query; query < last_query; ++query) {
    table.set_query(query);
    for (int64_t k = 0; k < p.samples; ++k) sum_x[k] = sum_y[k] = sum_w[k] = sum_h[k] = 0;
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
      for (int64_t k = 0; k < p.samples; ++k) {
        const C x = by_pixel[2 * k], y = by_pixel[2 * k + 1];
        from_sum(attention[k] * (by_attention[k] - mean), grad_logits + k);
        from_sum(x * table.step_x[k], grad_points + 2 * k);
        from_sum(y * table.step_y[k], grad_points + 2 * k + 1);
        if (grads.references) {
          sum_x[k] += x, sum_y[k] += y;
          sum_w[k] += x * to_sum(points[2 * k]), sum_h[k] += y * to_sum(points[2 * k + 1]);
        }
      }
    }
    if (!grads.references) continue;
    C* reference =
        static_cast<C*>(grads.references) + query * p.levels * p.reference_size;
    for (int64_t l = 0; l < p.levels; ++l, reference += p.reference_size) {
      const Level& level = p.level[l];
      for (int64_t i = 0; i < p.reference_size; ++i) reference[i] = 0;
      for (int64_t k = level.first_sample; k < level.first_sample + level.points; ++k) {
        reference[0] += sum_x[k] * C(level.width), reference[1] += sum_y[k] * C(level.height);
        if (p.reference_size == 4) {
          reference[2] += sum_w[k] * C(level.width) / C(2 * level.points);
          reference[3] += sum_h[k] * C(level.height) / C(2 * level.points);
        }
      }
    }
  }
}

}  // namespace
}  // namespace ddetr
