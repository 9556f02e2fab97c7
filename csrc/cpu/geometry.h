// From points to the cells that bilinear interpolation reads.
#pragma once

#include "simd.h"

namespace ddetr {
namespace {

constexpr int kBlock = 16;  // samples whose geometry is computed together

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Thread-local memory of a kernel, aligned to cache lines, freed with the object.
class Scratch {
 public:
  template <class C>
  C* take(int64_t count) {
    const int64_t bytes = round_up(count * sizeof(C), 64);
    Block* block = static_cast<Block*>(::operator new(sizeof(Block) + bytes, std::align_val_t(64)));
    block->next = last_;
    last_ = block;
    return reinterpret_cast<C*>(block + 1);
  }
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    while (last_) {
      Block* next = last_->next;
      ::operator delete(last_, std::align_val_t(64));
      last_ = next;
    }
  }

 private:
  struct alignas(64) Block {
    Block* next;
  };
  Block* last_ = nullptr;
};

// What turns the K points of one query into pixels and cells; arrays padded to whole blocks.
template <class C>
struct SampleTable {
  C *step_x, *step_y, *base_x, *base_y, *width, *height;
  int32_t *row, *start;  // cells of a row of the level, first cell of the level

  SampleTable(const Problem& p, Scratch& scratch) : p_(p) {
    const int64_t padded = round_up(p.samples, kBlock);
    C** arrays[] = {&step_x, &step_y, &base_x, &base_y, &width, &height};
    for (C** array : arrays) *array = scratch.take<C>(padded);
    row = scratch.take<int32_t>(padded);
    start = scratch.take<int32_t>(padded);
    for (int64_t k = 0; k < padded; ++k) {  // what is beyond K never counts: the level is empty
      step_x[k] = step_y[k] = base_x[k] = base_y[k] = width[k] = height[k] = 0;
      row[k] = start[k] = 0;
    }
    for (int64_t l = 0; l < p.levels; ++l) {
      const Level& level = p.level[l];
      for (int64_t k = level.first_sample; k < level.first_sample + level.points; ++k) {
        width[k] = step_x[k] = level.width;
        height[k] = step_y[k] = level.height;
        base_x[k] = base_y[k] = C(-0.5);
        row[k] = level.width;
        start[k] = level.start;
      }
    }
  }

  // With references, step and base are those of a query, (image, query) flattened.
  void set_query(int64_t query) {
    const C* reference =
        static_cast<const C*>(p_.references) + query * p_.levels * p_.reference_size;
    for (int64_t l = 0; l < p_.levels; ++l, reference += p_.reference_size) {
      const Level& level = p_.level[l];
      const C w = level.width, h = level.height;
      C step_w = 1, step_h = 1;
      if (p_.reference_size == 4) {
        step_w = reference[2] * w / C(2 * level.points);
        step_h = reference[3] * h / C(2 * level.points);
      }
      for (int64_t k = level.first_sample; k < level.first_sample + level.points; ++k) {
        step_x[k] = step_w, step_y[k] = step_h;
        base_x[k] = reference[0] * w - C(0.5), base_y[k] = reference[1] * h - C(0.5);
      }
    }
  }

 private:
  const Problem& p_;
};

// Cells inside the map that a pair (query, head) reads, with bilinear times attention weights.
template <class C>
struct Cells {
  int32_t* position;
  C* weight;
  int64_t count = 0;

  Cells(const Problem& p, Scratch& scratch)
      // Four per sample, and room for the last store of a whole vector.
      : position(scratch.take<int32_t>(4 * round_up(p.samples, kBlock) + kBlock)),
        weight(scratch.take<C>(4 * round_up(p.samples, kBlock) + kBlock)) {}
};

#if DDETR_VECTOR_BYTES == 64
inline __m512 load_float(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load_float(const Half* p, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}
inline __m512 load_float(const BFloat16* p, __mmask16 mask) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

// 16 samples at once; cells outside vanish by compression.
template <class O>
inline void append_block(const SampleTable<float>& table, int64_t k, int64_t count, const O* points,
                         const float* attention, Cells<float>& cells) {
  const __mmask16 present = count >= kBlock ? 0xffff : (1u << count) - 1;
  const __mmask16 low = 2 * count >= kBlock ? 0xffff : (1u << 2 * count) - 1;
  const __mmask16 high = count >= kBlock       ? 0xffff
                         : 2 * count > kBlock ? (1u << (2 * count - kBlock)) - 1
                                              : 0;
  const __m512 xy0 = load_float(points, low), xy1 = load_float(points + kBlock, high);
  const __m512i even =
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const __m512 x = _mm512_fmadd_ps(_mm512_permutex2var_ps(xy0, even, xy1),
                                   _mm512_load_ps(table.step_x + k),
                                   _mm512_load_ps(table.base_x + k));
  const __m512 y = _mm512_fmadd_ps(_mm512_permutex2var_ps(xy0, odd, xy1),
                                   _mm512_load_ps(table.step_y + k),
                                   _mm512_load_ps(table.base_y + k));
  const __m512 a = _mm512_maskz_loadu_ps(present, attention);
  const __m512 one = _mm512_set1_ps(1), minus_one = _mm512_set1_ps(-1);
  const __m512 width = _mm512_load_ps(table.width + k), height = _mm512_load_ps(table.height + k);

  __mmask16 inside = _mm512_mask_cmp_ps_mask(present, x, minus_one, _CMP_GT_OQ);
  inside = _mm512_mask_cmp_ps_mask(inside, y, minus_one, _CMP_GT_OQ);
  inside = _mm512_mask_cmp_ps_mask(inside, x, width, _CMP_LT_OQ);
  inside = _mm512_mask_cmp_ps_mask(inside, y, height, _CMP_LT_OQ);
  const __m512 x0 = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __m512 y0 = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __mmask16 left = _mm512_cmp_ps_mask(x0, minus_one, _CMP_GT_OQ);
  const __mmask16 top = _mm512_cmp_ps_mask(y0, minus_one, _CMP_GT_OQ);
  const __mmask16 right = _mm512_cmp_ps_mask(x0, _mm512_sub_ps(width, one), _CMP_LT_OQ);
  const __mmask16 bottom = _mm512_cmp_ps_mask(y0, _mm512_sub_ps(height, one), _CMP_LT_OQ);

  const __m512 fx = _mm512_sub_ps(x, x0), fy = _mm512_sub_ps(y, y0);
  const __m512 a_bottom = _mm512_mul_ps(a, fy), a_top = _mm512_sub_ps(a, a_bottom);
  const __m512 a_bottom_right = _mm512_mul_ps(a_bottom, fx);
  const __m512 a_top_right = _mm512_mul_ps(a_top, fx);
  const __m512i row = _mm512_load_epi32(table.row + k);
  const __m512i position = _mm512_add_epi32(
      _mm512_load_epi32(table.start + k),
      _mm512_add_epi32(_mm512_mullo_epi32(_mm512_cvttps_epi32(y0), row), _mm512_cvttps_epi32(x0)));

  const auto append = [&](__mmask16 mask, __m512i at, __m512 weight) {
    _mm512_storeu_si512(cells.position + cells.count, _mm512_maskz_compress_epi32(mask, at));
    _mm512_storeu_ps(cells.weight + cells.count, _mm512_maskz_compress_ps(mask, weight));
    cells.count += __builtin_popcount(mask);
  };
  const __m512i below = _mm512_add_epi32(position, row), next = _mm512_set1_epi32(1);
  append(inside & top & left, position, _mm512_sub_ps(a_top, a_top_right));
  append(inside & top & right, _mm512_add_epi32(position, next), a_top_right);
  append(inside & bottom & left, below, _mm512_sub_ps(a_bottom, a_bottom_right));
  append(inside & bottom & right, _mm512_add_epi32(below, next), a_bottom_right);
}
#endif

// The same for any type: the first loop is for the vectoriser, the second without branches.
template <class C, class O>
inline void append_block(const SampleTable<C>& table, int64_t k, int64_t count, const O* points,
                         const C* attention, Cells<C>& cells) {
  int32_t position[kBlock], row[kBlock], use[4][kBlock];
  C weight[4][kBlock];
  if (count > kBlock) count = kBlock;
  for (int64_t i = 0; i < count; ++i) {
    const C x = to_sum(points[2 * i]) * table.step_x[k + i] + table.base_x[k + i];
    const C y = to_sum(points[2 * i + 1]) * table.step_y[k + i] + table.base_y[k + i];
    const C width = table.width[k + i], height = table.height[k + i];
    const int32_t inside = (x > -1) & (y > -1) & (x < width) & (y < height);
    const C safe_x = inside ? x : C(0), safe_y = inside ? y : C(0);
    const C x0 = std::floor(safe_x), y0 = std::floor(safe_y);
    const C fx = safe_x - x0, fy = safe_y - y0;
    const C bottom = attention[i] * fy, top = attention[i] - bottom;
    weight[1][i] = top * fx, weight[0][i] = top - weight[1][i];
    weight[3][i] = bottom * fx, weight[2][i] = bottom - weight[3][i];
    const int32_t has_left = inside & (x0 >= 0), has_right = inside & (x0 < width - 1);
    const int32_t has_top = y0 >= 0, has_bottom = y0 < height - 1;
    use[0][i] = has_top & has_left, use[1][i] = has_top & has_right;
    use[2][i] = has_bottom & has_left, use[3][i] = has_bottom & has_right;
    row[i] = table.row[k + i];
    position[i] = table.start[k + i] + int32_t(y0) * row[i] + int32_t(x0);
  }
  int64_t n = cells.count;
  for (int64_t i = 0; i < count; ++i) {
    for (int corner = 0; corner < 4; ++corner) {
      cells.position[n] = position[i] + (corner & 1) + (corner >> 1) * row[i];
      cells.weight[n] = weight[corner][i];
      n += use[corner][i];
    }
  }
  cells.count = n;
}

// Attention of the K samples of a pair, from logits.
template <class O>
inline void softmax(const O* logits, int64_t samples, float* attention) {
  constexpr int count = Lanes<float>::count;
  // Not a number wins, as in PyTorch: a comparison with it is false.
  float max = -INFINITY;
  for (int64_t k = 0; k < samples; ++k) {
    attention[k] = to_sum(logits[k]);
    max = attention[k] <= max ? max : attention[k];
  }
  const int64_t padded = round_up(samples, count);
  for (int64_t k = samples; k < padded; ++k) attention[k] = -INFINITY;
  VectorF sums = {};
  for (int64_t k = 0; k < padded; k += count) {
    const VectorF e = exp(load(attention + k) - max);
    store(attention + k, e);
    sums += e;
  }
  const float scale = 1 / reduce<float>(sums);
  for (int64_t k = 0; k < padded; k += count) store(attention + k, load(attention + k) * scale);
}

inline void softmax(const double* logits, int64_t samples, double* attention) {
  double max = -INFINITY, sum = 0;
  for (int64_t k = 0; k < samples; ++k) max = logits[k] <= max ? max : logits[k];
  for (int64_t k = 0; k < samples; ++k) sum += attention[k] = std::exp(logits[k] - max);
  for (int64_t k = 0; k < samples; ++k) attention[k] /= sum;
}

}  // namespace
}  // namespace ddetr
