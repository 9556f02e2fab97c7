"""The network and its criterion in plain PyTorch; nothing here knows detectron2."""

from .box_ops import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh, generalized_box_iou, inverse_sigmoid
from .capture import Capture, DeformableAttention, capture
from .criterion import LossTask, SetCriterion
from .head import MLP, DeformableDETRHead, FeatureProjector
from .matcher import HungarianMatcher
from .memory import Memory
from .ms_deform_attn import MSDeformAttn, ms_deform_attn
from .ops import flops
from .ops.extension import HAS_CPU_KERNELS, HAS_CUDA_KERNELS
from .ops.ms_deform_attn import GRID_SAMPLE_DECOMPOSITIONS, ms_deform_attn_fused
from .ops.ms_deform_attn_pytorch import locations_from_offsets, ms_deform_attn_grid_sample
from .position_encoding import PositionEmbeddingSine, box_position_encoding
from .postprocess import sigmoid_topk
from .transformer import (
    DeformableTransformer,
    DeformableTransformerDecoder,
    DeformableTransformerDecoderLayer,
    DeformableTransformerEncoder,
    DeformableTransformerEncoderLayer,
    QuerySet,
)
from .two_stage import TwoStageDeformableTransformer
