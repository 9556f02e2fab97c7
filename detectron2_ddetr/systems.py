"""The meta-architectures of the family, each under the name of its authors."""

from .build import build_anchor_head, build_detr_head, build_dino_head
from .meta_arch import SetDetector
from .modeling import softmax_best
from .toolbox import META_ARCH_REGISTRY


@META_ARCH_REGISTRY.register()
class DeformableDETR(SetDetector):
    """Deformable DETR (https://arxiv.org/abs/2010.04159), all five variants."""


@META_ARCH_REGISTRY.register()
class HDeformableDETR(SetDetector):
    """
    H-Deformable-DETR (https://arxiv.org/abs/2207.13080): two-stage Deformable DETR with hybrid
    matching, mixed query selection and looking forward twice, each a key.
    """


@META_ARCH_REGISTRY.register()
class DABDeformableDETR(SetDetector):
    """DAB-Deformable-DETR (https://arxiv.org/abs/2201.12329): queries are learned boxes."""

    build_head = staticmethod(build_anchor_head)


@META_ARCH_REGISTRY.register()
class DNDeformableDETR(SetDetector):
    """DN-Deformable-DETR (https://arxiv.org/abs/2203.01305): DAB with denoising queries."""

    build_head = staticmethod(build_anchor_head)


@META_ARCH_REGISTRY.register()
class DINO(SetDetector):
    """DINO (https://arxiv.org/abs/2203.03605), with any number of levels."""

    build_head = staticmethod(build_dino_head)


@META_ARCH_REGISTRY.register()
class DetrexDINO(SetDetector):
    """
    DINO as detrex has it, for its weights: each decoder layer has heads of its own, and cells have
    the positions of Deformable DETR.
    """

    build_head = staticmethod(build_anchor_head)


@META_ARCH_REGISTRY.register()
class DETR(SetDetector):
    """DETR (https://arxiv.org/abs/2005.12872), where all of this comes from; also with DC5."""

    build_head = staticmethod(build_detr_head)
    select_detections = staticmethod(softmax_best)
