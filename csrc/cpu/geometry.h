// From points to the cells that bilinear interpolation reads.
#pragma once

#include "simd.h"

namespace ddetr {
namespace {

constexpr int kBlock = 16;  // samples whose geometry is computed together

// f(count), of the samples of a block; all sixteen as a constant, with which loops have no rest.
template <class F>
inline void with_count(int64_t count, const F& f) {
  if (count == kBlock)
    f(std::integral_constant<int64_t, kBlock>());
  else
    f(count);
}

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Thread-local memory of a kernel, aligned to cache lines, freed with the object.
class Scratch {
 public:
  template <class C>
  C* take(int64_t count) {
    const int64_t bytes = round_up(count * sizeof(C), 64);
    void* memory = ::operator new(sizeof(Header) + bytes, std::align_val_t(alignof(Header)));
    last_ = new (memory) Header{last_};
    return reinterpret_cast<C*>(last_ + 1);
  }
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    while (last_) {
      Header* next = last_->next;
      ::operator delete(last_, std::align_val_t(alignof(Header)));
      last_ = next;
    }
  }

 private:
  struct alignas(64) Header {
    Header* next;
  };
  Header* last_ = nullptr;
};

template <class T>
inline void copy_in(const T* from, int64_t count, Sum<T>* to) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = to_sum(from[i]);
}

template <class T>
inline void copy_out(const Sum<T>* from, int64_t count, T* to) {
  constexpr int lanes = Lanes<Sum<T>>::count;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(to + i, load(from + i));
  for (; i < count; ++i) from_sum(from[i], to + i);
}

// The four cells around each of sixteen samples: upper left, upper right, lower left, lower right.
template <class C>
struct CellBlock {
  // Given: pixels, attention; size, cells of a row and first cell of the level.
  alignas(64) C x[kBlock], y[kBlock], attention[kBlock], width[kBlock], height[kBlock];
  alignas(64) Index<C> row[kBlock], start[kBlock];
  // Found: position, or `outside`; attention times bilinear weight; distances to the upper left.
  alignas(64) Index<C> position[4][kBlock], inside[kBlock];
  alignas(64) C weight[4][kBlock], fx[kBlock], fy[kBlock];

  // Sample i lies in `level`, whose first cell is at position `first`; from a cell to the next it
  // is `pace` positions.
  void set_level(int64_t i, const Level& level, int64_t first, int64_t pace = 1) {
    width[i] = level.width, height[i] = level.height;
    row[i] = pace * level.width, start[i] = pace * first;
  }

  // From points (count, 2), (x, y), and the step and base of each number.
  template <class O, class Count>
  void set_pixels(int64_t first, Count count, const O* points, const C* step, const C* base) {
    alignas(64) C pixels[2 * kBlock];
    copy_in(points, 2 * count, pixels);
    for (int64_t i = 0; i < 2 * count; ++i) pixels[i] = pixels[i] * step[i] + base[i];
    for (int64_t i = 0; i < count; ++i)
      x[first + i] = pixels[2 * i], y[first + i] = pixels[2 * i + 1];
  }

  void find(Index<C> outside, Index<C> pace = 1) {
    using V = Vector<C>;
    using M = Mask<C>;
    for (int i = 0; i < kBlock; i += Lanes<C>::count) {
      const V x_in = load(x + i), y_in = load(y + i), w = load(width + i), h = load(height + i);
      // False where a pixel is not a number; what is outside is then moved to where it is finite.
      const M in = (x_in > -1) & (x_in < w) & (y_in > -1) & (y_in < h);
      const V xs = select<C>(in, x_in, V{}), ys = select<C>(in, y_in, V{});
      M ix = __builtin_convertvector(xs, M), iy = __builtin_convertvector(ys, M);
      ix += __builtin_convertvector(ix, V) > xs;  // truncated -> floor: true is -1
      iy += __builtin_convertvector(iy, V) > ys;
      const V x0 = __builtin_convertvector(ix, V), y0 = __builtin_convertvector(iy, V);
      const V dx = xs - x0, dy = ys - y0, a = load(attention + i);
      const V bottom = a * dy, top = a - bottom, bottom_right = bottom * dx, top_right = top * dx;
      store(fx + i, dx), store(fy + i, dy);
      const M has_left = in & (ix >= 0), has_right = in & (x0 < w - 1);
      const M has_top = iy >= 0, has_bottom = y0 < h - 1;
      const M rows = load(row + i), at = load(start + i) + iy * rows + ix * pace;
      const auto put = [&](int corner, M present, M where, V share) {
        store(position[corner] + i, (M)((present & where) | (~present & outside)));
        store(weight[corner] + i, (V)(present & (M)share));
      };
      put(0, has_left & has_top, at, top - top_right);
      put(1, has_right & has_top, at + pace, top_right);
      put(2, has_left & has_bottom, at + rows, bottom - bottom_right);
      put(3, has_right & has_bottom, at + rows + pace, bottom_right);
      store(inside + i, in);
    }
  }
};

// Between the samples of two queries lie those of the other heads, farther than hardware follows.
constexpr int64_t kPrefetchQueries = 4;

inline void prefetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

// How the K points of one query become pixels: point * step + base, as x and y by turns.
template <class C>
struct PixelMap {
  C *step, *base;  // (K, 2)

  PixelMap(const Problem& p, Scratch& scratch) : p_(p) {
    const int64_t padded = round_up(2 * p.samples, kBlock);  // what is behind K nobody reads
    step = scratch.take<C>(padded), base = scratch.take<C>(padded);
    size_ = scratch.take<C>(padded), half_share_ = scratch.take<C>(padded);
    source_ = scratch.take<Index<C>>(padded);
    for (int64_t l = 0; l < p.levels; ++l) {
      const Level& level = p.level[l];
      for (int64_t k = level.first_sample; k < level.first_sample + level.points; ++k)
        for (int axis = 0; axis < 2; ++axis) {
          const int64_t i = 2 * k + axis;
          size_[i] = axis ? level.height : level.width;
          half_share_[i] = size_[i] / C(2 * level.points);
          source_[i] = l * p.reference_size + axis;
          step[i] = p.references ? C(1) : size_[i];
          base[i] = C(-0.5);
        }
    }
  }

  // What set_query will read, if anything.
  void prefetch_query(int64_t query) const {
    if (p_.references) prefetch(reference_of(query), numbers() * sizeof(C));
  }

  // With references they are those of a query, (image, query) flattened; of samples first to last.
  void set_query(int64_t query) { set_query(query, 0, p_.samples); }

  void set_query(int64_t query, int64_t first, int64_t last) {
    const C* reference = reference_of(query);
    const bool box = p_.reference_size == 4;  // then offsets are shares of half its size
#if DDETR_VECTOR_BYTES >= 32
    if constexpr (sizeof(C) == 4) {
      if (numbers() <= Lanes<C>::count) {  // they fit into one register
        const VectorF all = load_first(reference, numbers());
        for (int64_t i = 2 * first / kBlock * kBlock; i < 2 * last; i += Lanes<C>::count) {
          const Mask<C> source = load(source_ + i);
          store(base + i, permuted(all, source) * load(size_ + i) - 0.5f);
          if (box) store(step + i, permuted(all, source + 2) * load(half_share_ + i));
        }
        return;
      }
    }
#endif
    for (int64_t i = 2 * first; i < 2 * last; ++i) {
      base[i] = reference[source_[i]] * size_[i] - C(0.5);
      if (box) step[i] = reference[source_[i] + 2] * half_share_[i];
    }
  }

 private:
  int64_t numbers() const { return p_.levels * p_.reference_size; }  // of a query
  const C* reference_of(int64_t query) const {
    return static_cast<const C*>(p_.references) + query * numbers();
  }

  const Problem& p_;
  C *size_, *half_share_;  // of the level: its width or height, and that by twice its points
  Index<C>* source_;       // which of the numbers of a query
};

// The softmax of the K samples of a pair, times its denominator, which is returned: exp(logit -
// largest logit). A logit that is not a number makes all so.
template <class O, class C>
inline C exponentials(const O* logits, int64_t samples, C* powers) {
  if constexpr (sizeof(C) == 8) {
    C max = -INFINITY, sum = 0;
    for (int64_t k = 0; k < samples; ++k) max = logits[k] <= max ? max : logits[k];
    for (int64_t k = 0; k < samples; ++k) sum += powers[k] = std::exp(logits[k] - max);
    return sum;
  } else {
    constexpr int lanes = Lanes<C>::count;
    const int64_t padded = round_up(samples, lanes);
    copy_in(logits, samples, powers);
    for (int64_t k = samples; k < padded; ++k) powers[k] = -INFINITY;
    VectorF highest = load(powers), sums = {};
    for (int64_t k = lanes; k < padded; k += lanes) {
      const VectorF v = load(powers + k);
      highest = select<float>(v <= highest, highest, v);
    }
    const float max = reduce_max<float>(highest);
    for (int64_t k = 0; k < padded; k += lanes) {
      const VectorF e = exp(load(powers + k) - max);
      store(powers + k, e);
      sums += e;
    }
    return reduce<float>(sums);
  }
}

// `result` has room for K rounded up to whole vectors; behind K it is zero.
template <class O, class C>
inline void softmax(const O* logits, int64_t samples, C* result) {
  const C scale = 1 / exponentials(logits, samples, result);
  for (int64_t k = 0; k < samples; ++k) result[k] *= scale;
}

}  // namespace
}  // namespace ddetr
