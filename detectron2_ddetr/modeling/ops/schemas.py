"""The operators by their schemas, which is how PyTorch knows what they take and give."""

import torch

NAMESPACE = "detectron2_ddetr"
_INPUTS = "Tensor value, Tensor spatial_shapes, Tensor sampling_locations, Tensor attention_weights"
_FUSED_INPUTS = (
    "Tensor value, SymInt[] level_shapes, int[] level_points, Tensor reference_points, "
    "Tensor sampling_offsets, Tensor attention_logits"
)
library = torch.library.Library(NAMESPACE, "DEF")
for _schema in (
    f"ms_deform_attn({_INPUTS}) -> Tensor",
    f"ms_deform_attn_backward(Tensor grad_output, {_INPUTS}, bool needs_value, "
    "bool needs_locations, bool needs_weights, bool deterministic) -> (Tensor, Tensor, Tensor)",
    f"ms_deform_attn_fused({_FUSED_INPUTS}) -> Tensor",
    f"ms_deform_attn_fused_backward(Tensor grad_output, {_FUSED_INPUTS}, bool needs_value, "
    "bool needs_references, bool needs_offsets, bool needs_logits, bool deterministic) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
):
    library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
library.define("cpu_kernels() -> str")  # which of the compiled ones this processor runs
