"""The normalised sum of a tensor and of what dropout leaves of another, in one pass over them."""

import torch

_library = torch.library.Library("detectron2_ddetr", "FRAGMENT")
# `weight` and `bias` have the type of sums: 32 bits where `x` and `update` have 16. `normalized`,
# before weight and bias, and the `factor` of each row are empty where nothing needs gradients.
_library.define(
    "add_norm(Tensor x, Tensor update, Tensor? kept, float scale, Tensor weight, Tensor bias, "
    "float eps, bool needs_gradients) -> (Tensor result, Tensor normalized, Tensor factor)"
)
# `of_update` is empty where all is kept, and is then that of `x`; `sums` are parts of the gradients
# of weight and bias, (2, parts, C).
_library.define(
    "add_norm_backward(Tensor grad, Tensor normalized, Tensor factor, Tensor? kept, float scale, "
    "Tensor weight) -> (Tensor of_x, Tensor of_update, Tensor sums)"
)
