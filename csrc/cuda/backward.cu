// Registers the backward operators for CUDA. Their schemas are in Python.
#include "backward.cuh"

#include <tuple>

#include "host.h"

namespace ddetr {
namespace {

struct Needs {
  bool value, references, points, weights;
};

struct Gradients {
  Tensor value, references, points, weights;
};

// Like `tensor`, contiguous. What is not needed has no elements.
Tensor make_gradient(const Tensor& tensor, bool needed, bool zeros) {
  const auto size = needed ? tensor.sizes().vec() : std::vector<int64_t>{0};
  return zeros ? torch::stable::new_zeros(tensor, size) : torch::stable::new_empty(tensor, size);
}

template <typename T>
T* data_or_null(const Tensor& tensor) {
  return tensor.numel() == 0 ? nullptr : static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename Sum, typename T, typename Source>
void launch_backward(const Problem& problem, const Source& source, const Tensor& value,
                     const Tensor& grad_output, const Gradients& gradients) {
  using Input = typename Source::Input;
  using Item = typename Sum::Item;
  const ScalarType compute = sum_type(value);
  Tensor sums = gradients.value, parts = gradients.references, bounds;
  BackwardParams<T, Source, Sum> params = {problem, source};
  params.value = static_cast<const T*>(value.const_data_ptr());
  params.grad_output = static_cast<const T*>(grad_output.const_data_ptr());
  params.grad_points = data_or_null<Input>(gradients.points);
  params.grad_weights = data_or_null<Input>(gradients.weights);
  if constexpr (std::is_same_v<Sum, FixedSum>) {
    bounds = torch::stable::new_zeros(value, std::vector<int64_t>{2}, ScalarType::Double);
    params.bounds = data_or_null<double>(bounds);
  }
  if constexpr (!std::is_same_v<Item, T>) {
    if (sums.numel() > 0) {
      sums = torch::stable::new_zeros(
          value, value.sizes(), std::is_same_v<Sum, FixedSum> ? ScalarType::Long : compute);
    }
  }
  params.grad_value = data_or_null<Item>(sums);
  if constexpr (Source::kFused) {
    if (parts.numel() > 0) {
      parts = torch::stable::new_empty(
          parts, std::vector<int64_t>{parts.numel() * problem.heads}, compute);
    }
    params.grad_references = data_or_null<Compute<T>>(parts);
  }
  backward(params, data_or_null<T>(gradients.value),
           data_or_null<Compute<T>>(gradients.references), current_stream(value));
}

Gradients run_backward(const Tensor& any_grad_output, const Tensor& any_value,
                       const Inputs& inputs, const Needs& needs, bool deterministic) {
  check_grad_output(any_grad_output, any_value, inputs.points);
  const torch::stable::accelerator::DeviceGuard guard(any_value.get_device_index());
  const Tensor value = addressable(any_value);
  const Tensor grad_output = torch::stable::contiguous(any_grad_output);
  const Problem problem = make_problem(value, inputs);
  const bool empty = is_empty(value, problem);
  const bool sums_in_place =
      !deterministic && value.scalar_type() == sum_type(value);
  const Gradients gradients = {
      make_gradient(value, needs.value, empty || sums_in_place),
      make_gradient(inputs.references.value_or(value), needs.references, empty),
      make_gradient(inputs.points, needs.points, empty),
      make_gradient(inputs.weights, needs.weights, empty)};
  if (empty || !(needs.value || needs.references || needs.points || needs.weights)) {
    return gradients;
  }
  with_types(value, inputs, [&](auto type, auto source) {
    using T = decltype(type);
    STD_TORCH_CHECK(shared_bytes_per_warp<Compute<T>>(problem) <= kMaxSharedBytes,
                    "too many samples per query and head for the backward pass: ",
                    problem.samples);
    if (deterministic && needs.value) {
      launch_backward<FixedSum, T>(problem, source, value, grad_output, gradients);
    } else {
      launch_backward<FloatSum<Compute<T>>, T>(problem, source, value, grad_output, gradients);
    }
  });
  return gradients;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
    const Tensor& sampling_locations, const Tensor& attention_weights, bool needs_value,
    bool needs_locations, bool needs_weights, bool deterministic) {
  const Gradients gradients = run_backward(
      grad_output, value,
      Inputs::plain(value, spatial_shapes, sampling_locations, attention_weights),
      {needs_value, false, needs_locations, needs_weights}, deterministic);
  return {gradients.value, gradients.points, gradients.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    const Tensor& grad_output, const Tensor& value, const std::vector<int64_t>& level_shapes,
    const std::vector<int64_t>& level_points, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, bool needs_value,
    bool needs_references, bool needs_offsets, bool needs_logits, bool deterministic) {
  const Gradients gradients = run_backward(
      grad_output, value,
      Inputs::fused(value, level_shapes, level_points, reference_points, sampling_offsets,
                    attention_logits),
      {needs_value, needs_references, needs_offsets, needs_logits}, deterministic);
  return {gradients.value, gradients.references, gradients.points, gradients.weights};
}

}  // namespace
}  // namespace ddetr

STABLE_TORCH_LIBRARY_IMPL(detectron2_ddetr, CUDA, m) {
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ddetr::ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ddetr::ms_deform_attn_fused_backward));
}
