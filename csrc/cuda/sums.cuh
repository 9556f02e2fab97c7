// How gradients of many samples become one: floating-point atomics in any order, or fixed-point
// ones, whose result does not depend on it.
#pragma once

#include "sampling.cuh"

namespace ddetr {

// The fast way. 16-bit gradients are summed in float, too, and rounded once.
template <typename C>
struct FloatSum {
  using Item = C;

  __device__ FloatSum(const double*, const Problem&) {}

  template <int kCount>
  __device__ void add(C* target, const C (&grad)[kCount], C weight) const {
    C product[kCount];
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
      product[v] = weight * grad[v];
    }
    atomic_add(target, product);
  }

  __device__ C result(C item) const { return item; }
};

// The reproducible way: integers of 2^-62 of a bound that no sum can exceed. The bound comes from
// `largest_kernel`: bounds = {max |grad_output|, max |attention weight|}, the latter at least 1.
struct FixedSum {
  using Item = unsigned long long;
  static constexpr int kBits = 62;
  double* bounds;
  double scale;  // Zero: something is not finite, and the result will be NaN.

  __device__ FixedSum(double* bounds, const Problem& problem) : bounds(bounds) {
    const double bound = bounds[0] * fmax(bounds[1], 1.0) * problem.samples * problem.queries;
    int exponent = 0;
    if (bound > 0 && bound < INFINITY) {
      frexp(bound, &exponent);  // bound < 2^exponent
    }
    scale = bound < INFINITY ? ldexp(1.0, min(kBits - exponent, 1000)) : 0.0;
  }

  template <typename C, int kCount>
  __device__ void add(Item* target, const C (&grad)[kCount], C weight) const {
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
      const double number = static_cast<double>(weight * grad[v]) * scale;
      if (fabs(number) <= ldexp(1.0, kBits)) {
        atomicAdd(target + v, static_cast<Item>(__double2ll_rn(number)));
      } else {
        // An integer cannot hold it, so that all becomes NaN. Who still reads the old bound adds
        // what nobody will see.
        bounds[0] = NAN;
      }
    }
  }

  __device__ double result(Item item) const {
    return scale == 0 ? NAN : static_cast<double>(static_cast<long long>(item)) / scale;
  }
};

__device__ inline int64_t first_item() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ inline int64_t all_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// bound = max(bound, |numbers|). Doubles without a sign are ordered like integers, NaN on top.
template <typename T>
__global__ void largest_kernel(const T* numbers, int64_t count, double* bound) {
  unsigned long long largest = 0;
  for (int64_t i = first_item(); i < count; i += all_threads()) {
    const double number = fabs(static_cast<double>(widen(numbers[i])));
    largest = max(largest, static_cast<unsigned long long>(__double_as_longlong(number)));
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    largest = max(largest, __shfl_xor_sync(kWarp, largest, offset));
  }
  if (threadIdx.x % 32 == 0) {
    atomicMax(reinterpret_cast<unsigned long long*>(bound), largest);
  }
}

// From the sums to the gradient.
template <typename T, typename Sum>
__global__ void result_kernel(const __grid_constant__ Problem problem,
                              const typename Sum::Item* items, int64_t count, double* bounds,
                              T* result) {
  const Sum sum(bounds, problem);
  for (int64_t i = first_item(); i < count; i += all_threads()) {
    result[i] = narrow<T>(static_cast<Compute<T>>(sum.result(items[i])));
  }
}

// result (rows, width) = sum over heads of parts (rows, heads, width), always in the same order.
template <typename C>
__global__ void sum_heads_kernel(const C* parts, int64_t rows, int heads, int width, C* result) {
  for (int64_t i = first_item(); i < rows * width; i += all_threads()) {
    const C* part = parts + i / width * heads * width + i % width;
    C sum = 0;
    for (int head = 0; head < heads; ++head) {
      sum += part[static_cast<int64_t>(head) * width];
    }
    result[i] = sum;
  }
}

template <typename Kernel, typename... Arguments>
void launch_items(Kernel kernel, int64_t count, Stream stream, Arguments... arguments) {
  constexpr int kThreads = 256, kMaxBlocks = 2048;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  launch(kernel, dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)), kThreads,
         0, stream, arguments...);
}

}  // namespace ddetr
