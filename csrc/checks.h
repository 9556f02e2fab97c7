// The check of a call. Every entry makes it, forward and backward, before it reads a number of a
// tensor or computes with a size. The public functions of Python refuse the same, and say more; who
// calls the operators directly, as exported programs do, meets it here first.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Layout.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace ddetr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

// Positions and sides are 32-bit numbers in the kernels, and blocks may reach a little beyond.
constexpr int64_t kMaxPositions = std::numeric_limits<int32_t>::max() - 1024;
constexpr int64_t kMaxNumbers = int64_t{1} << 48;  // of a tensor: more than any memory holds
constexpr int64_t kMostLevels = 1024;

inline ScalarType sum_type(const Tensor& value) {
  return value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline std::string text(const Sizes& sizes) {
  std::string all;
  for (const int64_t size : sizes) all += (all.empty() ? "" : ", ") + std::to_string(size);
  return "(" + all + (sizes.size() == 1 ? ",)" : ")");
}

inline std::string text(const torch::stable::Device& device) {
  if (device.is_cpu()) return "cpu";
  if (device.is_cuda()) return "cuda:" + std::to_string(device.index());
  return "a device of type " + std::to_string(static_cast<int>(device.type()));
}

// Of numbers that are not negative; what overflows stays at the largest number.
inline int64_t product(const Sizes& factors) {
  constexpr int64_t most = std::numeric_limits<int64_t>::max();
  int64_t result = 1;
  for (const int64_t factor : factors)
    result = factor > 0 && result > most / factor ? most : result * factor;
  return result;
}

// A tensor without elements may have sides of any size, which the loops over them must not meet.
inline void check_amount(const char* what, Sizes sizes) {
  const std::string given = text(sizes);
  for (int64_t& size : sizes) size = std::max<int64_t>(size, 1);
  STD_TORCH_CHECK(product(sizes) <= kMaxNumbers, "ms_deform_attn: ", what, " of sizes ", given,
                  " is too large");
}

// The elements lie in the storage: it can be freed, or made smaller, under its tensors.
inline void check_memory(const char* name, const Tensor& tensor) {
  if (tensor.numel() == 0) return;
  int64_t last = tensor.storage_offset(), bytes = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i)
    if (tensor.size(i) > 1) last += (tensor.size(i) - 1) * tensor.stride(i);
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  STD_TORCH_CHECK(last < bytes / static_cast<int64_t>(tensor.element_size()),
                  "ms_deform_attn: the memory of ", name, " was freed: its storage has ", bytes,
                  " bytes");
}

inline void check_dim(const char* name, const Tensor& tensor, int64_t dim, const char* axes) {
  STD_TORCH_CHECK(tensor.defined(), "ms_deform_attn: ", name, " must be a tensor, got None");
  int32_t layout = 0;  // Tensor::layout is newer than torch 2.10
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  STD_TORCH_CHECK(layout == aoti_torch_layout_strided(), "ms_deform_attn: ", name,
                  " must be dense, got another layout");
  STD_TORCH_CHECK(tensor.dim() == dim, "ms_deform_attn: ", name, " must be ", axes,
                  ", got shape ", text(tensor.sizes().vec()));
}

inline void check_device(const char* name, const Tensor& tensor, const Tensor& value) {
  STD_TORCH_CHECK(tensor.device() == value.device(), "ms_deform_attn: ", name, " is on ",
                  text(tensor.device()), " but value is on ", text(value.device()));
}

inline void check_type(const char* name, const Tensor& tensor, ScalarType type) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, "ms_deform_attn: the dtype of ", name,
                  " must be ", type, ", got ", tensor.scalar_type());
}

// Everything about one tensor beside value.
inline void check_tensor(const char* name, const Tensor& tensor, const Tensor& value,
                         ScalarType type, const Sizes& sizes, const char* axes) {
  check_dim(name, tensor, static_cast<int64_t>(sizes.size()), axes);
  check_device(name, tensor, value);
  check_type(name, tensor, type);
  STD_TORCH_CHECK(tensor.sizes().vec() == sizes, "ms_deform_attn: ", name, " must be ", axes,
                  " = ", text(sizes), ", got shape ", text(tensor.sizes().vec()));
  check_memory(name, tensor);
}

inline void check_value(const Tensor& value) {
  check_dim("value", value, 4, "(N, S, M, D)");
  const ScalarType type = value.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Double || type == ScalarType::Float ||
                      type == ScalarType::Half || type == ScalarType::BFloat16,
                  "ms_deform_attn: value must be float of 16, 32 or 64 bits, got ", type);
  check_memory("value", value);
  check_amount("value", value.sizes().vec());
  STD_TORCH_CHECK(value.size(1) <= kMaxPositions, "ms_deform_attn: value has ", value.size(1),
                  " positions, more than ", kMaxPositions);
}

// Heights and widths by turns.
inline void check_levels(const Tensor& value, const Sizes& shapes) {
  int64_t positions = 0;
  for (size_t i = 0; i < shapes.size(); i += 2) {
    const int64_t height = shapes[i], width = shapes[i + 1];
    STD_TORCH_CHECK(height >= 0 && width >= 0, "ms_deform_attn: spatial_shapes must not be ",
                    "negative, got ", text({height, width}));
    STD_TORCH_CHECK(height <= kMaxPositions && width <= kMaxPositions,
                    "ms_deform_attn: spatial_shapes must not be larger than ", kMaxPositions,
                    ", got ", text({height, width}));
    positions = std::min(positions + height * width, int64_t{1} << 61);  // does not overflow
  }
  STD_TORCH_CHECK(positions == value.size(1), "ms_deform_attn: spatial_shapes cover ", positions,
                  " positions but value has ", value.size(1));
}

inline void check_level_count(int64_t levels) {
  STD_TORCH_CHECK(levels <= kMostLevels, "ms_deform_attn: at most ", kMostLevels,
                  " levels, got ", levels);
}

// What the kernels make: outputs, and sums of a gradient.
inline void check_results(const Tensor& value, int64_t queries, int64_t samples) {
  const int64_t images = value.size(0), heads = value.size(2);
  check_amount("output", {images, queries, heads, value.size(3)});
  check_amount("samples", {images, queries, heads, samples, 2});
  STD_TORCH_CHECK(samples <= kMaxPositions, "ms_deform_attn: a query has ", samples,
                  " samples of each head, more than ", kMaxPositions);
}

// Of the entry that is given locations. The numbers in spatial_shapes, which may be on a device
// that nobody waits for, are a matter of check_levels.
inline void check_plain(const Tensor& value, const Tensor& spatial_shapes,
                        const Tensor& sampling_locations, const Tensor& attention_weights) {
  check_value(value);
  const char* const axes = "(N, Q, M, L, P, 2)";
  check_dim("sampling_locations", sampling_locations, 6, axes);
  const int64_t queries = sampling_locations.size(1), levels = sampling_locations.size(3),
                points = sampling_locations.size(4);
  check_level_count(levels);
  check_tensor("spatial_shapes", spatial_shapes,
               spatial_shapes.defined() && spatial_shapes.is_cpu() ? spatial_shapes : value,
               ScalarType::Long, {levels, 2}, "(L, 2)");
  const Sizes pairs = {value.size(0), queries, value.size(2), levels, points};
  check_results(value, queries, product({levels, points}));
  check_tensor("sampling_locations", sampling_locations, value, sum_type(value),
               {pairs[0], pairs[1], pairs[2], pairs[3], pairs[4], 2}, axes);
  check_tensor("attention_weights", attention_weights, value, sum_type(value), pairs,
               "(N, Q, M, L, P)");
}

// Of the entry that is given offsets.
inline void check_fused(const Tensor& value, const Sizes& level_shapes,
                        const Sizes& level_points, const Tensor& reference_points,
                        const Tensor& sampling_offsets, const Tensor& attention_logits) {
  check_value(value);
  const int64_t levels = static_cast<int64_t>(level_points.size());
  check_level_count(levels);
  STD_TORCH_CHECK(level_shapes.size() == 2 * level_points.size(),
                  "ms_deform_attn: level_shapes must be height and width of each of ", levels,
                  " levels, got ", level_shapes.size(), " numbers");
  check_levels(value, level_shapes);
  int64_t samples = 0;
  for (const int64_t points : level_points) {
    STD_TORCH_CHECK(points >= 1 && points <= kMaxPositions, "ms_deform_attn: level_points must ",
                    "be at least 1 and at most ", kMaxPositions, ", got ", points);
    samples += points;
  }
  const char* const axes = "(N, Q, L, R), R being 2 or 4,";
  check_dim("reference_points", reference_points, 4, axes);
  const int64_t images = value.size(0), queries = reference_points.size(1),
                heads = value.size(2), numbers = reference_points.size(3);
  check_amount("reference_points", reference_points.sizes().vec());
  check_tensor("reference_points", reference_points, value, sum_type(value),
               {images, queries, levels, numbers == 2 ? 2 : 4}, axes);
  check_results(value, queries, samples);
  check_dim("sampling_offsets", sampling_offsets, 5, "(N, Q, M, K, 2)");
  const ScalarType type = sampling_offsets.scalar_type() == value.scalar_type()
                              ? value.scalar_type()
                              : sum_type(value);
  check_tensor("sampling_offsets", sampling_offsets, value, type,
               {images, queries, heads, samples, 2}, "(N, Q, M, K, 2)");
  check_tensor("attention_logits", attention_logits, value, type,
               {images, queries, heads, samples}, "(N, Q, M, K)");
}

// Queries are those of `points`, which have been checked.
inline void check_grad_output(const Tensor& grad_output, const Tensor& value,
                              const Tensor& points) {
  check_tensor("grad_output", grad_output, value, value.scalar_type(),
               {value.size(0), points.size(1), value.size(2) * value.size(3)}, "(N, Q, M * D)");
}

// Of value along N, S or M. Where there is nothing to step over it may be any number.
inline int64_t stride(const Tensor& value, int64_t axis) {
  return value.numel() == 0 || value.size(axis) == 1 ? 0 : value.stride(axis);
}

}  // namespace ddetr
