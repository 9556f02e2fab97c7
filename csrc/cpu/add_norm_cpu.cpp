// The operators that detectron2_ddetr/modeling/ops/add_norm.py defines.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "chosen_kernels.h"
#include "dtype.h"

namespace ddetr {
namespace {

// Gradients of weight and bias are summed over so many rows, which no number of threads changes.
constexpr int64_t kRowsPerPart = 128;

// The numbers of a row, after checks that all tensors are what the kernels read.
int64_t check_rows(const Tensor& x, const Tensor& update, const std::optional<Tensor>& kept,
                   const std::vector<const Tensor*>& of_channels) {
  dtype_of(x);  // is one of the four
  STD_TORCH_CHECK(x.dim() > 0 && x.is_contiguous() && update.is_contiguous(),
                  "add_norm: rows must be contiguous");
  STD_TORCH_CHECK(update.scalar_type() == x.scalar_type() && update.numel() == x.numel(),
                  "add_norm: both summands must be of one type and one size");
  if (kept.has_value()) {
    STD_TORCH_CHECK(kept->scalar_type() == ScalarType::Bool && kept->is_contiguous() &&
                        kept->numel() == x.numel(),
                    "add_norm: kept must be bool, contiguous, and of the size of the summands");
  }
  const int64_t channels = x.size(x.dim() - 1);
  for (const Tensor* t : of_channels)
    STD_TORCH_CHECK(t->scalar_type() == sum_type(x) && t->is_contiguous() &&
                        t->numel() == channels,
                    "add_norm: weight and bias must be of the type of sums and of the size of a "
                    "row, ",
                    channels);
  return channels;
}

const bool* mask_of(const std::optional<Tensor>& kept) {
  return kept.has_value() ? kept->const_data_ptr<bool>() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> add_norm(const Tensor& x, const Tensor& update,
                                            const std::optional<Tensor>& kept, double scale,
                                            const Tensor& weight, const Tensor& bias, double eps,
                                            bool needs_gradients) {
  AddNorm p{};
  p.channels = check_rows(x, update, kept, {&weight, &bias});
  const int64_t rows = p.channels == 0 ? 0 : x.numel() / p.channels;
  Tensor result = torch::stable::new_empty(x, x.sizes());
  Tensor normalized = torch::stable::new_empty(x, {needs_gradients ? x.numel() : 0});
  Tensor factor = torch::stable::new_empty(x, {needs_gradients ? rows : 0}, sum_type(x));
  p.x = x.const_data_ptr(), p.update = update.const_data_ptr(), p.kept = mask_of(kept);
  p.scale = scale, p.eps = eps;
  p.weight = weight.const_data_ptr(), p.bias = bias.const_data_ptr();
  p.result = result.mutable_data_ptr();
  if (needs_gradients)
    p.normalized = normalized.mutable_data_ptr(), p.factor = factor.mutable_data_ptr();
  const Dtype type = dtype_of(x);
  torch::stable::parallel_for(0, rows, kRowsPerPart, [&](int64_t first, int64_t last) {
    chosen_kernels().add_norm(type, p, first, last);
  });
  return {result, normalized, factor};
}

std::tuple<Tensor, Tensor, Tensor> add_norm_backward(
    const Tensor& grad, const Tensor& normalized, const Tensor& factor,
    const std::optional<Tensor>& kept, double scale, const Tensor& weight) {
  AddNormGradients p{};
  p.channels = check_rows(grad, normalized, kept, {&weight});
  const int64_t rows = p.channels == 0 ? 0 : grad.numel() / p.channels;
  STD_TORCH_CHECK(factor.scalar_type() == sum_type(grad) && factor.is_contiguous() &&
                      factor.numel() == rows,
                  "add_norm_backward: factor must be of the type of sums, one number for each row");
  const int64_t parts = (rows + kRowsPerPart - 1) / kRowsPerPart, size = factor.element_size();
  Tensor of_x = torch::stable::new_empty(grad, grad.sizes());
  Tensor of_update = torch::stable::new_empty(grad, {kept.has_value() ? grad.numel() : 0});
  Tensor sums = torch::stable::new_empty(grad, {2, parts, p.channels}, sum_type(grad));
  p.grad = grad.const_data_ptr(), p.normalized = normalized.const_data_ptr();
  p.factor = factor.const_data_ptr(), p.weight = weight.const_data_ptr();
  p.kept = mask_of(kept), p.scale = scale;
  p.of_x = of_x.mutable_data_ptr(), p.of_update = of_update.mutable_data_ptr();
  char* const of_weight = static_cast<char*>(sums.mutable_data_ptr());
  if (parts > 0) std::memset(of_weight, 0, sums.numel() * size);  // of no rows there is no memory
  char* const of_bias = of_weight + parts * p.channels * size;
  const Dtype type = dtype_of(grad);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t row = part * kRowsPerPart, offset = part * p.channels * size;
      chosen_kernels().add_norm_backward(type, p, row, std::min(row + kRowsPerPart, rows),
                                         of_weight + offset, of_bias + offset);
    }
  });
  return {of_x, of_update, sums};
}

}  // namespace
}  // namespace ddetr

STABLE_TORCH_LIBRARY_IMPL(detectron2_ddetr, CPU, m) {
  m.impl("add_norm", TORCH_BOX(&ddetr::add_norm));
  m.impl("add_norm_backward", TORCH_BOX(&ddetr::add_norm_backward));
}
