"""Backbones of detectron2 that know nothing of us: pyramids, Swin, ViT, MViT; and plain modules."""

import importlib.util

import pytest
import torch
from torch import nn

from detectron2_ddetr import DeformableDETR
from detectron2_ddetr.backbones.padding import padding_of
from detectron2_ddetr.modeling import (
    DeformableDETRHead,
    DeformableTransformer,
    FeatureProjector,
    HungarianMatcher,
    SetCriterion,
)
from detectron2_ddetr.toolbox import TOOLBOX

from .test_gradients import BATCHES, without_gradient
from .test_meta_arch import MEAN, STD, image

needs_detectron2 = pytest.mark.skipif(
    TOOLBOX != "detectron2", reason="the embedded host has ResNets only"
)
needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="detectron2's ViT and MViT need timm"
)


def detector(backbone, in_features, channels):
    torch.manual_seed(0)
    sizes = dict(d_model=32, n_heads=4, num_encoder_layers=1, num_decoder_layers=2)
    return DeformableDETR(
        backbone=backbone,
        head=DeformableDETRHead(
            input_proj=FeatureProjector(channels, 32, len(channels)),
            transformer=DeformableTransformer(**sizes, n_levels=len(channels)),
            num_classes=3,
            num_queries=7,
        ),
        criterion=SetCriterion(HungarianMatcher()),
        in_features=in_features,
        pixel_mean=MEAN,
        pixel_std=STD,
    )


def swin(**kwargs):
    from detectron2.modeling.backbone.swin import SwinTransformer

    sizes = dict(embed_dim=12, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 2), drop_path_rate=0.0)
    return SwinTransformer(**sizes, **kwargs)


def vit():
    from detectron2.modeling.backbone.vit import ViT

    sizes = dict(img_size=160, embed_dim=24, depth=2, num_heads=2, drop_path_rate=0.0)
    return ViT(**sizes, window_size=4, window_block_indexes=[0])


def simple_pyramid(square_pad):
    from detectron2.modeling.backbone.vit import SimpleFeaturePyramid

    scales = (2.0, 1.0, 0.5)
    return SimpleFeaturePyramid(vit(), "last_feat", 16, scales, norm="LN", square_pad=square_pad)


def mvit():
    from detectron2.modeling.backbone.mvit import MViT

    return MViT(
        embed_dim=8, depth=4, num_heads=1, last_block_indexes=(0, 1, 2, 3), drop_path_rate=0.0,
        residual_pooling=True, use_rel_pos=False, out_features=("scale3", "scale4", "scale5"),
    )  # fmt: skip


def pyramid_on_swin():
    from detectron2.modeling import FPN

    return FPN(swin(), ["p1", "p2", "p3"], 16)


#: Names and channels of the maps that are read, the size that two images of 97 x 131 and 80 x 140
#: are padded to, and what of the backbone is frozen because nothing depends on it.
CASES = {
    "swin": (swin, ["p1", "p2", "p3"], [24, 48, 96], (97, 140), ("norm0.",)),
    "pyramid on swin": (
        pyramid_on_swin, ["p3", "p4", "p5"], [16] * 3, (128, 160), ("bottom_up.norm0.",)
    ),
    "vit": (vit, ["last_feat"], [24], (97, 140), ()),
    "simple pyramid": (
        lambda: simple_pyramid(0), ["p3", "p4"], [16] * 2, (128, 160), ("simfp_5.",)
    ),
    "square pyramid": (
        lambda: simple_pyramid(160), ["p3", "p4", "p5"], [16] * 3, (160, 160), ()
    ),
    "mvit": (mvit, ["scale3", "scale4", "scale5"], [16, 32, 64], (97, 140), ()),
}  # fmt: skip


@needs_detectron2
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if "swin" in n else needs_timm) for n in CASES]
)
def test_trains_and_evaluates(name):
    """Images of sizes that no stride divides; every parameter that is trained has a gradient."""
    make, in_features, channels, size, frozen = CASES[name]
    model = detector(make(), in_features, channels).train()
    images = model.preprocess_image([{"image": image(97, 131)}, {"image": image(80, 140)}])
    assert tuple(images.tensor.shape[2:]) == size
    for batch in BATCHES.values():
        assert without_gradient(model, batch()) == []
    names = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert all(n.removeprefix("backbone.").startswith(frozen) for n in names)
    assert len({n.split(".")[1] for n in names}) == len(frozen)
    with torch.no_grad():
        result = model.eval()([{"image": image(97, 131), "height": 200, "width": 260}])
    assert result[0]["instances"].image_size == (200, 260)
    assert result[0]["instances"].scores.isfinite().all() and len(result[0]["instances"]) > 0


@needs_detectron2
@pytest.mark.filterwarnings("ignore:.*use_reentrant.*:UserWarning")
def test_swin_with_recomputed_blocks():
    """Also where blocks are computed again for their gradient, no more than what is unread."""
    model = detector(swin(use_checkpoint=True), ["p1", "p2"], [24, 48])
    unread = ("norm0.", "norm3.", "layers.2.downsample.", "layers.3.")
    for name, parameter in model.backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(unread), name
    assert without_gradient(model.train(), BATCHES["boxes"]()) == []


def test_module_without_either_attribute():
    """A backbone is whatever gives maps."""
    assert padding_of(nn.Conv2d(3, 3, 1)) == {"size_divisibility": 1, "padding_constraints": {}}


@pytest.mark.parametrize("constraints", [{}, {"size_divisibility": 12, "square_size": 48}])
def test_multiples_of_what_the_backbone_needs(constraints):
    backbone = nn.Conv2d(3, 3, 1)
    backbone.size_divisibility, backbone.padding_constraints = 12, constraints
    expected = {**constraints, **({"size_divisibility": 24} if constraints else {})}
    found = padding_of(backbone, size_divisibility=8)
    assert found == {"size_divisibility": 24, "padding_constraints": expected}
    assert backbone.padding_constraints == constraints
