// The operators that detectron2_ddetr/modeling/ops/scale_kept.py defines.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "chosen_kernels.h"
#include "dtype.h"

namespace ddetr {
namespace {

using torch::stable::Tensor;

constexpr int64_t kElementsPerThread = 1 << 15;  // for fewer, another thread is not worth waking

void check_operands(const char* name, const Tensor& x, const Tensor& other,
                    const Tensor& result) {
  STD_TORCH_CHECK(result.scalar_type() == x.scalar_type(), name,
                  ": what is scaled and the result must be of one type");
  STD_TORCH_CHECK(other.numel() == x.numel() && result.numel() == x.numel(), name,
                  ": all tensors must be of one size");
  STD_TORCH_CHECK(x.is_contiguous() && other.is_contiguous() && result.is_contiguous(), name,
                  ": all tensors must be contiguous");
}

void scale_kept(Tensor x, Tensor kept, double scale, bool of_relu, Tensor result) {
  STD_TORCH_CHECK(kept.scalar_type() == torch::headeronly::ScalarType::Bool,
                  "scale_kept: kept must be bool");
  check_operands("scale_kept", x, kept, result);
  const Dtype type = dtype_of(x);
  const void* const from = x.const_data_ptr();
  void* const to = result.mutable_data_ptr();
  const bool* const mask = kept.const_data_ptr<bool>();
  torch::stable::parallel_for(0, x.numel(), kElementsPerThread, [&](int64_t first, int64_t last) {
    chosen_kernels().scale_kept(type, from, mask, scale, of_relu, to, first, last);
  });
}

void scale_passed(Tensor grad, Tensor of, double scale, Tensor result) {
  STD_TORCH_CHECK(of.scalar_type() == grad.scalar_type(),
                  "scale_passed: both operands must be of one type");
  check_operands("scale_passed", grad, of, result);
  const Dtype type = dtype_of(grad);
  const void *const from = grad.const_data_ptr(), *const mask = of.const_data_ptr();
  void* const to = result.mutable_data_ptr();
  torch::stable::parallel_for(
      0, grad.numel(), kElementsPerThread, [&](int64_t first, int64_t last) {
        chosen_kernels().scale_passed(type, from, mask, scale, to, first, last);
      });
}

}  // namespace
}  // namespace ddetr

STABLE_TORCH_LIBRARY_IMPL(detectron2_ddetr, CPU, m) {
  m.impl("scale_kept", TORCH_BOX(&ddetr::scale_kept));
  m.impl("scale_passed", TORCH_BOX(&ddetr::scale_passed));
}
