// Registers the forward operators for CUDA. Their schemas are in Python.
#include "forward.cuh"

#include "host.h"

namespace ddetr {
namespace {

Tensor run_forward(const Tensor& any_value, const Inputs& inputs) {
  const torch::stable::accelerator::DeviceGuard guard(any_value.get_device_index());
  const Tensor value = addressable(any_value);
  const Problem problem = make_problem(value, inputs);
  const std::vector<int64_t> size = {problem.images, problem.queries,
                                     value.size(2) * value.size(3)};
  if (is_empty(value, problem)) {
    return torch::stable::new_zeros(value, size);
  }
  Tensor output = torch::stable::new_empty(value, size);
  with_types(value, inputs, [&](auto type, auto source) {
    using T = decltype(type);
    ForwardParams<T, decltype(source)> params = {
        problem, source, static_cast<const T*>(value.const_data_ptr()),
        static_cast<T*>(output.mutable_data_ptr()), false};
    forward(params, current_stream(value));
  });
  return output;
}

Tensor ms_deform_attn(const Tensor& value, const Tensor& spatial_shapes,
                      const Tensor& sampling_locations, const Tensor& attention_weights) {
  return run_forward(
      value, Inputs::plain(value, spatial_shapes, sampling_locations, attention_weights));
}

Tensor ms_deform_attn_fused(const Tensor& value, const std::vector<int64_t>& level_shapes,
                            const std::vector<int64_t>& level_points,
                            const Tensor& reference_points, const Tensor& sampling_offsets,
                            const Tensor& attention_logits) {
  return run_forward(value, Inputs::fused(value, level_shapes, level_points, reference_points,
                                          sampling_offsets, attention_logits));
}

}  // namespace
}  // namespace ddetr

STABLE_TORCH_LIBRARY_IMPL(detectron2_ddetr, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ddetr::ms_deform_attn));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&ddetr::ms_deform_attn_fused));
}
