// From tensors to what the kernels take.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "../checks.h"
#include "sampling.cuh"

namespace ddetr {

inline Stream current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<Stream>(stream);
}

// Contiguous, and aligned for reading two numbers at once.
inline Tensor readable(const Tensor& tensor) {
  Tensor result = torch::stable::contiguous(tensor);
  const auto address = reinterpret_cast<uintptr_t>(result.const_data_ptr());
  return address % (2 * result.element_size()) == 0 ? result : torch::stable::clone(result);
}

// Value is read in place whatever its strides, as long as the kernels can express them.
inline Tensor addressable(const Tensor& value) {
  const bool unit_stride = value.size(3) == 1 || value.stride(3) == 1;
  const bool near = stride(value, 1) <= INT32_MAX / static_cast<int64_t>(value.element_size());
  return unit_stride && near ? value : torch::stable::contiguous(value);
}

inline void set_shapes(Levels& levels, const int64_t* shapes) {
  int64_t start = 0;
  for (int l = 0; l < levels.count; ++l) {
    Level& level = levels.level[l];
    level.height = static_cast<int>(shapes[2 * l]);
    level.width = static_cast<int>(shapes[2 * l + 1]);
    level.start = static_cast<int>(start);
    start += shapes[2 * l] * shapes[2 * l + 1];
  }
}

inline Levels make_levels(const Sizes& points) {
  const int64_t count = static_cast<int64_t>(points.size());
  STD_TORCH_CHECK(count <= kMaxLevels, "at most ", kMaxLevels, " levels, got ", count);
  Levels levels = {};
  levels.count = static_cast<int>(count);
  for (int l = 0; l < levels.count; ++l) {
    levels.level[l].points = static_cast<int>(points[l]);
  }
  return levels;
}

// What the operator reads besides value: Locations, or References where there are some. They are
// checked first; then value is on a GPU, since one of the tensors is and they are on one device.
struct Inputs {
  Tensor points;                     // (N, Q, M, K, 2), K as one or as two axes.
  Tensor weights;                    // (N, Q, M, K)
  std::optional<Tensor> references;  // (N, Q, L, 2 or 4)
  std::optional<Tensor> shapes;      // Keeps sizes alive that are on the device.
  Levels levels;

  static Inputs plain(const Tensor& value, const Tensor& spatial_shapes, const Tensor& locations,
                      const Tensor& weights) {
    check_plain(value, spatial_shapes, locations, weights);
    Inputs inputs(Sizes(spatial_shapes.size(0), locations.size(4)), locations, weights);
    inputs.shapes = torch::stable::contiguous(spatial_shapes);
    const int64_t* sizes = inputs.shapes->const_data_ptr<int64_t>();
    if (inputs.shapes->is_cuda()) {
      inputs.levels.shapes = sizes;
    } else {
      check_levels(value, Sizes(sizes, sizes + inputs.shapes->numel()));
      set_shapes(inputs.levels, sizes);
    }
    return inputs;
  }

  static Inputs fused(const Tensor& value, const Sizes& level_shapes, const Sizes& level_points,
                      const Tensor& references, const Tensor& offsets, const Tensor& logits) {
    check_fused(value, level_shapes, level_points, references, offsets, logits);
    Inputs inputs(level_points, offsets, logits);
    inputs.references = readable(references);
    set_shapes(inputs.levels, level_shapes.data());
    return inputs;
  }

 private:
  Inputs(const Sizes& level_points, const Tensor& points, const Tensor& weights)
      : points(readable(points)), weights(readable(weights)), levels(make_levels(level_points)) {}
};

// `value` must be addressable.
inline Problem make_problem(const Tensor& value, const Inputs& inputs) {
  Problem problem = {};
  const int64_t positions = value.size(1), queries = inputs.points.size(1);
  const int64_t heads = value.size(2), channels = value.size(3);
  const int64_t row_bytes = stride(value, 1) * static_cast<int64_t>(value.element_size());
  STD_TORCH_CHECK(queries <= kMaxPositions, "there are ", queries, " queries, more than ",
                  kMaxPositions);
  STD_TORCH_CHECK(heads <= 65535, "at most 65535 heads, got ", heads);
  STD_TORCH_CHECK(row_bytes <= INT32_MAX && heads * channels <= INT32_MAX / 8,
                  "value has too many channels: ", heads, " heads of ", channels);
  problem.images = value.size(0);
  problem.positions = static_cast<int>(positions);
  problem.queries = static_cast<int>(queries);
  problem.heads = static_cast<int>(heads);
  problem.channels = static_cast<int>(channels);
  problem.image_stride = stride(value, 0);
  problem.head_stride = stride(value, 2);
  problem.row_bytes = static_cast<int>(row_bytes);
  problem.levels = inputs.levels;
  for (int l = 0; l < inputs.levels.count; ++l) {
    problem.samples += inputs.levels.level[l].points;
  }
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&problem.multiprocessors, cudaDevAttrMultiProcessorCount,
                                        value.get_device_index()));
  return problem;
}

// Without samples all results are zero, and there is nothing to launch.
inline bool is_empty(const Tensor& value, const Problem& problem) {
  return value.numel() == 0 || problem.queries == 0 || problem.samples == 0;
}

// Calls run(T(), source), T being the type of value.
template <typename T, typename Run>
void with_source(ScalarType type, const Inputs& inputs, Run run) {
  using C = Compute<T>;
  const void *points = inputs.points.const_data_ptr(), *weights = inputs.weights.const_data_ptr();
  if (!inputs.references) {
    run(T(), Locations<C>{static_cast<const C*>(points), static_cast<const C*>(weights)});
    return;
  }
  const auto* references = static_cast<const C*>(inputs.references->const_data_ptr());
  const int size = static_cast<int>(inputs.references->size(3));
  if (inputs.points.scalar_type() == type) {
    run(T(), References<C, T>{static_cast<const T*>(points), static_cast<const T*>(weights),
                              references, size});
  } else {
    run(T(), References<C, C>{static_cast<const C*>(points), static_cast<const C*>(weights),
                              references, size});
  }
}

template <typename Run>
void with_types(const Tensor& value, const Inputs& inputs, Run run) {
  const ScalarType type = value.scalar_type();
  switch (type) {
    case ScalarType::Double:
      return with_source<double>(type, inputs, run);
    case ScalarType::Float:
      return with_source<float>(type, inputs, run);
    case ScalarType::Half:
      return with_source<__half>(type, inputs, run);
    case ScalarType::BFloat16:
      return with_source<__nv_bfloat16>(type, inputs, run);
    default:
      STD_TORCH_CHECK(false, "value must be float64, float32, float16 or bfloat16");
  }
}

}  // namespace ddetr
