// Where a query reads: levels, pixel coordinates, bilinear corners and attention.
//
// A "pair" is one query of one head of one image. A "team" of lanes of one warp works on a pair:
// its lanes first compute the geometry of one sample each and leave it in shared memory, then
// all of them gather channels with it.
#pragma once

#include <initializer_list>

#include "vectors.cuh"

namespace ddetr {

constexpr int kMaxLevels = 32;
constexpr unsigned kWarp = 0xffffffffu;

struct Level {
  int height, width;
  int start;   // Its first position in the flattened map.
  int points;  // Samples per query and head.
};

struct Levels {
  int count;
  const int64_t* shapes;  // (L, 2), (H, W), on the device. Null: `level` is complete.
  Level level[kMaxLevels];
};

// Sizes that every kernel needs. `value` is (N, S, M, D) with any strides but the last, which is 1.
struct Problem {
  int64_t images;
  int positions, queries, heads, channels;
  int samples;                        // K: of one pair, over all levels.
  int64_t image_stride, head_stride;  // Of value, in elements.
  int row_bytes;                      // From one position of value to the next.
  int multiprocessors;
  int64_t first_image;  // Of this launch: see `launch_images`.
  Levels levels;
};

// Copies the levels into shared memory; sizes given on the device are read here, never by the host.
__device__ inline void load_levels(const Problem& problem, Level* table) {
  const Levels& levels = problem.levels;
  const int l = threadIdx.x;
  if (l < levels.count) {
    Level level = levels.level[l];
    if (levels.shapes != nullptr) {
      int64_t start = 0;
      for (int i = 0; i < l; ++i) {
        start += levels.shapes[2 * i] * levels.shapes[2 * i + 1];
      }
      const int64_t height = levels.shapes[2 * l], width = levels.shapes[2 * l + 1];
      constexpr int64_t kMost = 0x7fffffff;  // The product of two is a number of 64 bits.
      CUDA_KERNEL_ASSERT(height >= 0 && width >= 0 && height <= kMost && width <= kMost);
      const int64_t end = start + height * width;
      CUDA_KERNEL_ASSERT(end <= problem.positions);
      CUDA_KERNEL_ASSERT(l + 1 < levels.count || end == problem.positions);
      level.height = static_cast<int>(height);
      level.width = static_cast<int>(width);
      level.start = static_cast<int>(start);
    }
    if (level.width == 0) {
      level.height = 0;
    }
    if (level.height == 0) {
      level.height = -1;  // No y is in (-1, -1): every sample is outside.
    }
    table[l] = level;
  }
  __syncthreads();
}

// Pixel coordinates of a pair's samples on one level: anchor + scale * the operator's input.
template <typename C>
struct Frame {
  C anchor_x, anchor_y, scale_x, scale_y;
};

// The drop-in form: fractions of the level, and attention as it is.
template <typename C>
struct Locations {
  using Input = C;
  static constexpr bool kFused = false;
  const C* points;   // (N, Q, M, K, 2): sampling locations.
  const C* weights;  // (N, Q, M, K): attention weights.

  __device__ Frame<C> frame(int64_t, const Level& level) const {
    return {C(-0.5), C(-0.5), C(level.width), C(level.height)};
  }
};

// The fused form: offsets around references, and attention before the softmax.
template <typename C, typename O>
struct References {
  using Input = O;
  static constexpr bool kFused = true;
  const O* points;      // (N, Q, M, K, 2): sampling offsets.
  const O* weights;     // (N, Q, M, K): attention logits.
  const C* references;  // (N, Q, L, size)
  int size;  // 2: (x, y), offsets are pixels. 4: (cx, cy, w, h), offsets are half boxes / P.

  // row counts (n, q, l).
  __device__ Frame<C> frame(int64_t row, const Level& level) const {
    const C* reference = references + row * size;
    Frame<C> frame = {reference[0] * level.width - C(0.5), reference[1] * level.height - C(0.5),
                      C(1), C(1)};
    if (size == 4) {
      const C box_scale = C(0.5) / level.points;
      frame.scale_x = box_scale * reference[2] * level.width;
      frame.scale_y = box_scale * reference[3] * level.height;
    }
    return frame;
  }
};

template <int kLanes, typename C>
__device__ C team_sum(C number) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    number += __shfl_xor_sync(kWarp, number, offset);
  }
  return number;
}

template <int kLanes, typename C>
__device__ C team_max(C number) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    number = fmax(number, __shfl_xor_sync(kWarp, number, offset));
  }
  return number;
}

// Turns what `weights` holds into attention.
template <int kLanes, typename Source, typename C>
struct Attention {
  C maximum = 0, factor = 1;

  __device__ Attention(const Source& source, int64_t first_sample, int samples, int lane) {
    if constexpr (Source::kFused) {
      maximum = -INFINITY;
#pragma unroll 1
      for (int k = lane; k < samples; k += kLanes) {
        maximum = fmax(maximum, C(widen(source.weights[first_sample + k])));
      }
      maximum = team_max<kLanes>(maximum);
      C sum = 0;
#pragma unroll 1
      for (int k = lane; k < samples; k += kLanes) {
        sum += exp(C(widen(source.weights[first_sample + k])) - maximum);
      }
      factor = C(1) / team_sum<kLanes>(sum);
    }
  }

  __device__ C operator()(C weight) const {
    return Source::kFused ? exp(weight - maximum) * factor : weight;
  }
};

// Linear interpolation along one axis: two cells and how much of each.
template <typename C>
struct Axis {
  int low, high;  // Inside the map, even where `has_low` or `has_high` is false.
  C fraction;
  bool has_low, has_high;

  Axis() = default;
  __device__ Axis(C pixel, int size) {
    const C cell = floor(pixel);
    fraction = pixel - cell;
    low = static_cast<int>(cell);
    high = low + 1;
    has_low = low >= 0;
    has_high = high < size;
    low = has_low ? low : high;
    high = has_high ? high : low;
  }

  // A cell outside the map is replaced by its neighbour, and the neighbour's weight is halved:
  // four reads without a branch, and none of a cell that does not belong to the sample.
  __device__ void weights(C& low_weight, C& high_weight) const {
    const C half_of_one = (has_low ? C(1) - fraction : fraction) * C(0.5);
    const bool both = has_low && has_high;
    low_weight = both ? C(1) - fraction : half_of_one;
    high_weight = both ? fraction : half_of_one;
  }
};

// One sample, in the registers of the lane that computed it.
template <typename C>
struct Sample {
  bool inside;  // -1 < x < W and -1 < y < H; what is not finite is outside.
  int level;
  Frame<C> frame;
  Axis<C> x, y;
  C attention;
};

// The level of sample k, for a lane whose k only grows.
struct Cursor {
  int level = 0, end;

  __device__ explicit Cursor(const Level* table) : end(table[0].points) {}

  __device__ const Level& seek(const Level* table, int k) {
    while (k >= end) {
      end += table[++level].points;
    }
    return table[level];
  }
};

template <typename C, int kSamples>
struct Staged {
  int4 position[kSamples];  // Of the four corners in the flattened map; x < 0: nothing to read.
  Packed<C, 4> weight[kSamples];  // Bilinear, times attention.
  int4 padding;  // Teams of a warp read their samples from different banks.

  __device__ void put(int i, const Sample<C>& sample, const Level& level) {
    if (!sample.inside) {
      position[i].x = -1;
      return;
    }
    const int top = level.start + sample.y.low * level.width;
    const int bottom = level.start + sample.y.high * level.width;
    position[i] = make_int4(top + sample.x.low, top + sample.x.high, bottom + sample.x.low,
                            bottom + sample.x.high);
    C left, right, above, below;
    sample.x.weights(left, right);
    sample.y.weights(above, below);
    above *= sample.attention;
    below *= sample.attention;
    weight[i] = {above * left, above * right, below * left, below * right};
  }
};

// The channels of a sample's four corners.
template <typename T, typename C, int kVector>
__device__ void read_corners(const T* map, int row_bytes, const int4& position,
                             C (&read)[4][kVector]) {
  load(row(map, position.x, row_bytes), read[0]);
  load(row(map, position.y, row_bytes), read[1]);
  load(row(map, position.z, row_bytes), read[2]);
  load(row(map, position.w, row_bytes), read[3]);
}

// A pair and the place of its samples in the operator's inputs.
struct Pair {
  int64_t row;    // (n, q)
  int64_t index;  // (n, q, m)

  __device__ Pair(const Problem& problem, int64_t image, int query, int head)
      : row(image * problem.queries + query), index(row * problem.heads + head) {}
};

template <typename Source, typename C>
__device__ Sample<C> locate(const Source& source, const Problem& problem, const Pair& pair, int k,
                            Cursor& cursor, const Level* table, C attention) {
  using Input = typename Source::Input;
  const Level& level = cursor.seek(table, k);
  const auto frame = source.frame(pair.row * problem.levels.count + cursor.level, level);
  const auto input = reinterpret_cast<const Packed<Input, 2>*>(
      source.points)[pair.index * problem.samples + k];
  const C x = frame.anchor_x + C(widen(input.item[0])) * frame.scale_x;
  const C y = frame.anchor_y + C(widen(input.item[1])) * frame.scale_y;
  const bool inside = x > -1 && x < level.width && y > -1 && y < level.height;
  return {inside,
          cursor.level,
          frame,
          Axis<C>(inside ? x : C(0), level.width),
          Axis<C>(inside ? y : C(0), level.height),
          attention};
}

template <int kVector_, int kLanes_>
struct Layout {
  static constexpr int kVector = kVector_;  // Channels per lane.
  static constexpr int kLanes = kLanes_;    // Lanes across the channels of one position.
};

// Calls run(Layout) with lanes that read 16 bytes each where value and the other tensors with
// channels are aligned for it, or else one number each.
template <typename T, typename Run>
void with_layout(const Problem& problem, std::initializer_list<const void*> tensors, Run run) {
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int kVector = 16 / sizeof(T);
    bool aligned = problem.channels % kVector == 0 && problem.image_stride % kVector == 0 &&
                   problem.head_stride % kVector == 0 && problem.row_bytes % 16 == 0;
    for (const void* tensor : tensors) {
      aligned = aligned && reinterpret_cast<uintptr_t>(tensor) % 16 == 0;
    }
    if (aligned && problem.channels <= 4 * kVector) {
      return run(Layout<kVector, 4>{});
    }
    if (aligned) {
      return run(Layout<kVector, 8>{});
    }
  }
  run(Layout<1, 32>{});
}

// One block for each of `blocks` groups of queries, each head and each image. Images are the
// slowest and heads the next, so that one head of one image stays in the cache.
template <typename Params>
void launch_images(void (*kernel)(Params), Params params, int blocks, int threads,
                   int64_t shared_bytes, Stream stream) {
  const int64_t images = params.problem.images;
  for (int64_t first = 0; first < images; first += kMaxGridZ) {
    params.problem.first_image = first;
    const int64_t count = images - first < kMaxGridZ ? images - first : kMaxGridZ;
    launch(kernel, dim3(blocks, params.problem.heads, static_cast<unsigned>(count)), threads,
           shared_bytes, stream, params);
  }
}

}  // namespace ddetr
