// What does not fit is refused in Python, with a message that explains it. Here it is refused once
// more, in few words, so that a kernel that is called directly reads nothing that is not its own.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace ddetr {

inline torch::headeronly::ScalarType sum_type(const torch::stable::Tensor& value) {
  using torch::headeronly::ScalarType;
  return value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// K samples of each pair; locations and weights, or offsets and logits where `fused`.
inline void check_samples(const torch::stable::Tensor& value, int64_t samples,
                          const torch::stable::Tensor& points,
                          const torch::stable::Tensor& weights, bool fused) {
  STD_TORCH_CHECK(value.dim() == 4 && points.dim() >= 5 && points.size(0) == value.size(0) &&
                      points.size(2) == value.size(2),
                  "ms_deform_attn: points do not go with value");
  const int64_t count = points.size(0) * points.size(1) * points.size(2) * samples;
  STD_TORCH_CHECK(points.numel() == 2 * count && weights.numel() == count,
                  "ms_deform_attn: points and weights do not go with levels");
  const auto type = points.scalar_type();
  STD_TORCH_CHECK(type == weights.scalar_type() &&
                      (type == sum_type(value) || (fused && type == value.scalar_type())),
                  "ms_deform_attn: dtypes of points and weights do not go with that of value");
}

inline void check_references(const torch::stable::Tensor& value, int64_t levels,
                             const torch::stable::Tensor& points,
                             const torch::stable::Tensor& references) {
  STD_TORCH_CHECK(references.dim() == 4 && references.scalar_type() == sum_type(value) &&
                      references.size(0) == value.size(0) &&
                      references.size(1) == points.size(1) && references.size(2) == levels &&
                      (references.size(3) == 2 || references.size(3) == 4),
                  "ms_deform_attn: references do not go with value, points and levels");
}

inline void check_grad_output(const torch::stable::Tensor& grad,
                              const torch::stable::Tensor& value,
                              const torch::stable::Tensor& points) {
  STD_TORCH_CHECK(grad.scalar_type() == value.scalar_type() &&
                      grad.numel() == points.size(0) * points.size(1) * value.size(2) *
                                          value.size(3),
                  "ms_deform_attn: the gradient of the output is not like the output");
}

}  // namespace ddetr
