"""The network and its criterion in plain PyTorch; nothing here knows detectron2."""

from .anchors import AnchorDecoder, AnchorTransformer
from .attention import MultiheadAttention
from .box_ops import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh, generalized_box_iou, inverse_sigmoid
from .capture import Capture, DeformableAttention, DenseAttention, capture
from .criterion import SetCriterion
from .decoder import (
    DeformableTransformerDecoder,
    DeformableTransformerDecoderLayer,
    QuerySet,
)
from .denoising import Denoising, Draws
from .dense import DenseDecoder, DenseDecoderLayer, DenseEncoder, DenseEncoderLayer
from .detr import DenseTransformer, DETRHead
from .dino import DINOTransformer
from .encoder import DeformableTransformerEncoder, DeformableTransformerEncoderLayer
from .head import DeformableDETRHead
from .loss_task import LossTask
from .matcher import HungarianMatcher
from .memory import Memory
from .mlp import MLP
from .ms_deform_attn import MSDeformAttn, ms_deform_attn
from .ops import flops
from .ops.extension import HAS_CPU_KERNELS, HAS_CUDA_KERNELS
from .ops.ms_deform_attn import GRID_SAMPLE_DECOMPOSITIONS, ms_deform_attn_fused
from .ops.ms_deform_attn_pytorch import locations_from_offsets, ms_deform_attn_grid_sample
from .position_encoding import PositionEmbeddingSine, box_position_encoding
from .postprocess import sigmoid_topk, softmax_best
from .projector import FeatureProjector, PlainProjector
from .query_groups import OneToMany, QueryGroup, attention_mask
from .softmax_criterion import SoftmaxCriterion, SoftmaxMatcher, softmax_cost
from .transformer import DeformableTransformer, TokenHeads
from .two_stage import TwoStageDeformableTransformer
