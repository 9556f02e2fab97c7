// The type of a tensor, as the kernels know it.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "problem.h"

namespace ddetr {

inline Dtype dtype_of(const torch::stable::Tensor& t) {
  using torch::headeronly::ScalarType;
  switch (t.scalar_type()) {
    case ScalarType::Double: return Dtype::kDouble;
    case ScalarType::Float: return Dtype::kFloat;
    case ScalarType::Half: return Dtype::kHalf;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    default: STD_TORCH_CHECK(false, "values must be floating point of 16, 32 or 64 bits");
  }
}

}  // namespace ddetr
