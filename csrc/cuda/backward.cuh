// Backward: a warp per pair. With d_j = <grad_output, value at corner j>, four numbers of a sample,
// all gradients but that of value are scalar arithmetic of one lane.
#pragma once

#include "sampling.cuh"
#include "sums.cuh"

namespace ddetr {

constexpr int kBackwardWarps = 8;
constexpr int64_t kMaxSharedBytes = 46 * 1024;  // 48 without opting in, less the table of levels.

// Null pointers stand for gradients that are not needed.
template <typename T, typename Source, typename Sum>
struct BackwardParams {
  using C = Compute<T>;
  using Input = typename Source::Input;
  Problem problem;
  Source source;
  const T* value;
  const T* grad_output;             // (N, Q, M * D)
  typename Sum::Item* grad_value;   // (N, S, M, D), added to.
  Input* grad_points;               // Like source.points.
  Input* grad_weights;              // Like source.weights.
  C* grad_references;               // (N, Q, M, L, size), still one for each head.
  double* bounds;                   // Of FixedSum.
};

// What the samples of a pair leave for the sums over all of them.
template <typename C>
struct Record {
  C attention, grad_attention, grad_x, grad_y;  // grad_x, grad_y: with respect to pixels.
};

template <typename C>
struct WarpMemory {
  Staged<C, 32> staged;
  C dots[32][4];
};

// Sums four numbers over kLanes lanes; the result of lane i is the sum of number i % 4. Lanes
// exchange what they drop for what they keep: 3 shuffles for four lanes, 4 for eight.
template <int kLanes, typename C>
__device__ C sum_four(const C (&number)[4], int lane) {
  const bool upper = lane & 2, odd = lane & 1;
  C first = upper ? number[2] : number[0], second = upper ? number[3] : number[1];
  first += __shfl_xor_sync(kWarp, upper ? number[0] : number[2], 2);
  second += __shfl_xor_sync(kWarp, upper ? number[1] : number[3], 2);
  C sum = odd ? second : first;
  sum += __shfl_xor_sync(kWarp, odd ? first : second, 1);
#pragma unroll
  for (int offset = 4; offset < kLanes; offset *= 2) {
    sum += __shfl_xor_sync(kWarp, sum, offset);
  }
  return sum;
}

// Adds to grad_value, and to memory.dots, what the staged samples contribute. Each group of kLanes
// lanes takes another sample.
template <typename Layout, typename T, typename Source, typename Sum, typename C>
__device__ void scatter(const BackwardParams<T, Source, Sum>& params, const Pair& pair,
                        const T* map, typename Sum::Item* grad_map, const Sum& sum,
                        WarpMemory<C>& memory, int count, int lane) {
  constexpr int kVector = Layout::kVector, kLanes = Layout::kLanes;
  const Problem& problem = params.problem;
  const int part = lane / kLanes;
  const bool needs_dots = params.grad_points != nullptr || params.grad_weights != nullptr ||
                          params.grad_references != nullptr;
  const int grad_row_bytes =
      static_cast<int>(sizeof(typename Sum::Item)) * problem.heads * problem.channels;
  for (int first = 0; first < problem.channels; first += kVector * kLanes) {
    const int channel = first + lane % kLanes * kVector;
    const bool has_channel = channel < problem.channels;
    const T* source = map + (has_channel ? channel : 0);
    C grad[kVector] = {};
    if (has_channel) {
      load(params.grad_output + pair.index * problem.channels + channel, grad);
    }
    for (int i = part; i < count + part; i += 32 / kLanes) {  // As often in all lanes.
      const int4 position = memory.staged.position[i];
      const bool inside = position.x >= 0 && has_channel;
      C dot[4] = {};
      if (inside && needs_dots) {
        C read[4][kVector];
        read_corners(source, problem.row_bytes, position, read);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int v = 0; v < kVector; ++v) {
            dot[j] += grad[v] * read[j][v];
          }
        }
      }
      if (inside && grad_map != nullptr) {
        const int corner[4] = {position.x, position.y, position.z, position.w};
        const Packed<C, 4> weight = memory.staged.weight[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum.add(row(grad_map + channel, corner[j], grad_row_bytes), grad, weight.item[j]);
        }
      }
      if (needs_dots) {
        const C total = sum_four<kLanes>(dot, lane);
        if (lane % kLanes < 4) {
          memory.dots[i][lane % 4] += total;
        }
      }
    }
  }
}

// The gradients of one sample with respect to its attention and its pixel coordinates.
template <typename C>
__device__ Record<C> differentiate(const Sample<C>& sample, const C (&dots)[4]) {
  if (!sample.inside) {
    return {sample.attention, 0, 0, 0};
  }
  const Axis<C>&x = sample.x, &y = sample.y;
  // Corners outside the map hold zero.
  const C left_top = x.has_low && y.has_low ? dots[0] : C(0);
  const C right_top = x.has_high && y.has_low ? dots[1] : C(0);
  const C left_bottom = x.has_low && y.has_high ? dots[2] : C(0);
  const C right_bottom = x.has_high && y.has_high ? dots[3] : C(0);
  const C top = (C(1) - x.fraction) * left_top + x.fraction * right_top;
  const C bottom = (C(1) - x.fraction) * left_bottom + x.fraction * right_bottom;
  const C slope_top = right_top - left_top, slope_bottom = right_bottom - left_bottom;
  return {sample.attention, (C(1) - y.fraction) * top + y.fraction * bottom,
          sample.attention * ((C(1) - y.fraction) * slope_top + y.fraction * slope_bottom),
          sample.attention * (bottom - top)};
}

// x and y of a reference move all samples of its level; w and h scale their offsets.
template <typename C, typename Source>
__device__ void reduce_references(const Source& source, const Problem& problem, const Pair& pair,
                                  const Level* table, const Record<C>* records, int lane,
                                  C* grad_references) {
  const int count = problem.levels.count * source.size;
  for (int i = lane; i < count; i += 32) {
    const int l = i / source.size, coordinate = i % source.size;
    int k = 0;
#pragma unroll 1
    for (int before = 0; before < l; ++before) {
      k += table[before].points;
    }
    const bool along_x = coordinate % 2 == 0;
    const C extent = along_x ? table[l].width : table[l].height;
    const C box_scale = C(0.5) / table[l].points;
    C sum = 0;
#pragma unroll 1
    for (const int end = k + table[l].points; k < end; ++k) {
      const C grad = (along_x ? records[k].grad_x : records[k].grad_y) * extent;
      if (coordinate < 2) {
        sum += grad;
      } else if (grad != 0) {  // The offset of a sample outside may be infinite.
        const int64_t offset = (pair.index * problem.samples + k) * 2 + coordinate % 2;
        sum += grad * box_scale * C(widen(source.points[offset]));
      }
    }
    grad_references[pair.index * count + i] = sum;
  }
}

template <typename T, typename Source, typename Sum, typename Layout>
__global__ void __launch_bounds__(kBackwardWarps * 32, 4)
    backward_kernel(const __grid_constant__ BackwardParams<T, Source, Sum> params) {
  using C = Compute<T>;
  using Input = typename Source::Input;
  __shared__ Level table[kMaxLevels];
  const Problem& problem = params.problem;
  load_levels(problem, table);

  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int query = blockIdx.x * warps + warp;
  if (query >= problem.queries) {
    return;
  }
  auto* memories = reinterpret_cast<WarpMemory<C>*>(dynamic_shared_memory());
  WarpMemory<C>& memory = memories[warp];
  Record<C>* records = reinterpret_cast<Record<C>*>(memories + warps) + warp * problem.samples;

  const int head = blockIdx.y;
  const int64_t image = problem.first_image + blockIdx.z;
  const Pair pair(problem, image, query, head);
  const int64_t first_sample = pair.index * problem.samples;
  const T* map = params.value + image * problem.image_stride + head * problem.head_stride;
  auto* grad_map = params.grad_value;
  if (grad_map != nullptr) {
    grad_map += (image * problem.positions * problem.heads + head) * problem.channels;
  }
  const Sum sum(params.bounds, problem);
  const Attention<32, Source, C> attention(params.source, first_sample, problem.samples, lane);

  C weighted = 0;  // sum_k attention * grad_attention, of the softmax.
  Cursor cursor(table);
  for (int done = 0; done < problem.samples; done += 32) {
    const int count = min(32, problem.samples - done), k = done + lane;
    Sample<C> sample = {};
    if (lane < count) {
      const C weight = widen(params.source.weights[first_sample + k]);
      sample = locate(params.source, problem, pair, k, cursor, table, attention(weight));
    }
    memory.staged.put(lane, sample, table[sample.level]);
    for (C& dot : memory.dots[lane]) {
      dot = 0;
    }
    __syncwarp();
    scatter<Layout>(params, pair, map, grad_map, sum, memory, count, lane);
    __syncwarp();
    if (lane < count) {
      const Record<C> record = differentiate(sample, memory.dots[lane]);
      if (params.grad_points != nullptr) {
        const C grad[2] = {sample.inside ? record.grad_x * sample.frame.scale_x : C(0),
                           sample.inside ? record.grad_y * sample.frame.scale_y : C(0)};
        store(params.grad_points + 2 * (first_sample + k), grad);
      }
      if constexpr (Source::kFused) {
        records[k] = record;
        weighted += record.attention * record.grad_attention;
      } else if (params.grad_weights != nullptr) {
        params.grad_weights[first_sample + k] = record.grad_attention;
      }
    }
  }
  if constexpr (Source::kFused) {
    if (params.grad_weights != nullptr) {
      weighted = team_sum<32>(weighted);
#pragma unroll 1
      for (int k = lane; k < problem.samples; k += 32) {
        const C grad = records[k].attention * (records[k].grad_attention - weighted);
        params.grad_weights[first_sample + k] = narrow<Input>(grad);
      }
    }
    if (params.grad_references != nullptr) {
      __syncwarp();
      reduce_references(params.source, problem, pair, table, records, lane,
                        params.grad_references);
    }
  }
}

// Shared memory of one warp; at most kMaxSharedBytes whatever the number of warps.
template <typename C>
int64_t shared_bytes_per_warp(const Problem& problem) {
  return sizeof(WarpMemory<C>) + static_cast<int64_t>(problem.samples) * sizeof(Record<C>);
}

// Computes all gradients that have a place in `params`, of which those of value and of references
// are sums on the way to `grad_value` and `grad_references`. Where the sums of value have its type
// they are the gradient. They and the bounds must have been zeroed.
template <typename T, typename Source, typename Sum>
void backward(const BackwardParams<T, Source, Sum>& params, T* grad_value,
              Compute<T>* grad_references, Stream stream) {
  const Problem& problem = params.problem;
  const int64_t rows = problem.images * problem.queries;
  const int64_t pairs = rows * problem.heads;
  if (params.bounds != nullptr) {
    const int64_t outputs = pairs * problem.channels;
    launch_items(largest_kernel<T>, outputs, stream, params.grad_output, outputs, params.bounds);
    if constexpr (!Source::kFused) {
      const int64_t weights = pairs * problem.samples;
      launch_items(largest_kernel<Compute<T>>, weights, stream, params.source.weights, weights,
                   params.bounds + 1);
    }
  }
  const int64_t bytes = shared_bytes_per_warp<Compute<T>>(problem);
  const int fitting = static_cast<int>(kMaxSharedBytes / bytes);
  const int warps = fitting < kBackwardWarps ? fitting : kBackwardWarps;
  with_layout<T>(
      problem, {params.value, params.grad_output, params.grad_value}, [&](auto layout) {
        launch_images(backward_kernel<T, Source, Sum, decltype(layout)>, params,
                      (problem.queries - 1) / warps + 1, warps * 32, warps * bytes, stream);
      });
  if constexpr (!std::is_same_v<typename Sum::Item, T>) {
    if (params.grad_value != nullptr) {
      const int64_t values =
          problem.images * problem.positions * problem.heads * problem.channels;
      launch_items(result_kernel<T, Sum>, values, stream, problem, params.grad_value, values,
                   params.bounds, grad_value);
    }
  }
  if constexpr (Source::kFused) {
    if (params.grad_references != nullptr) {
      const int width = problem.levels.count * params.source.size;
      launch_items(sum_heads_kernel<Compute<T>>, rows * width, stream, params.grad_references,
                   rows, problem.heads, width, grad_references);
    }
  }
}

}  // namespace ddetr
