"""What a model is built from: the shipped configs, parts that users register, arguments alone."""

import pickle

import pytest
import torch
from torch import nn

from detectron2_ddetr import (
    DETR_CRITERION_REGISTRY,
    DETR_TRANSFORMER_REGISTRY,
    DeformableDETR,
    DeformableDETRDatasetMapper,
    load_config,
)
from detectron2_ddetr.build import build_deformable_transformer, build_set_criterion
from detectron2_ddetr.modeling import (
    DeformableDETRHead,
    DeformableTransformer,
    FeatureProjector,
    HungarianMatcher,
    MSDeformAttn,
    SetCriterion,
    TwoStageDeformableTransformer,
)
from detectron2_ddetr.toolbox import (
    Backbone,
    Boxes,
    ImageList,
    Instances,
    ShapeSpec,
    T,
    build_model,
)

from .conftest import CONFIGS, small_cfg
from .test_config import NODE


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_build(path):
    """PEERS 7.8: each builds, and but for DETR has a deformable attention per layer."""
    cfg = load_config(str(path), ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    node = cfg.MODEL.DETR
    transformer = model.head.transformer
    for layers, number, points in (
        (transformer.encoder, node.ENC_LAYERS, node.ENC_N_POINTS),
        (transformer.decoder, node.DEC_LAYERS, node.DEC_N_POINTS),
    ):
        attention = [m for m in layers.modules() if isinstance(m, MSDeformAttn)]
        assert len(attention) == (0 if node.TRANSFORMER == "build_dense_transformer" else number)
        samples = 2 * node.NHEADS * node.NUM_FEATURE_LEVELS * points
        assert all(m.sampling_offsets.out_features == samples for m in attention)


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("quick_start*.yaml")), ids=lambda path: path.stem
)
def test_pickle_takes_the_models(path):
    """As torch.save and the processes of a server do; the inference form too."""
    model = build_model(load_config(str(path), ["MODEL.DEVICE", "cpu"])).eval()
    images = [{"image": torch.randint(256, (3, 64, 96), dtype=torch.uint8)}]
    for each in (model, model.for_inference()):
        copy = pickle.loads(pickle.dumps(each))
        assert [type(m).__name__ for m in copy.modules()] == [
            type(m).__name__ for m in each.modules()
        ]
        with torch.no_grad():
            results = [m(images)[0]["instances"] for m in (each, copy)]
        assert torch.equal(results[0].scores, results[1].scores) and len(results[0])


def test_images_can_have_a_gradient():
    """Of both sizes in a batch: as for maps of what a score depends on."""
    images = [torch.rand(3, h, w, requires_grad=True) for h, w in ((4, 6), (5, 3))]
    weights = torch.rand(2, 3, 5, 6)
    batch = ImageList.from_tensors(images, 1)
    (batch.tensor * weights).sum().backward()
    for image, weight in zip(images, weights):
        assert torch.equal(image.grad, weight[:, : image.shape[1], : image.shape[2]])


#: Of the authors' models as their code builds them, with 91 classes.
PARAMETERS = {
    "h_deformable_detr/h_deformable_detr_R_50_12ep.yaml": 47_946_073,
    "dab_deformable_detr/dab_deformable_detr_R_50_50ep.yaml": 47_405_994,
    "dn_deformable_detr/dn_deformable_detr_R_50_50ep.yaml": 47_429_154,
    "dino/dino_4scale_R_50_12ep.yaml": 46_893_182,
    "dino/dino_5scale_R_50_12ep.yaml": 47_255_806,
}


@pytest.mark.parametrize("config", PARAMETERS)
def test_parameters_of_relatives(config):
    cfg = load_config(str(CONFIGS / config), ["MODEL.DEVICE", "meta", f"{NODE}NUM_CLASSES", 91])
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[config]


class OtherTransformer(DeformableTransformer):
    """What a user might register."""


@DETR_TRANSFORMER_REGISTRY.register()
def build_other_transformer(cfg):
    transformer = build_deformable_transformer(cfg)
    transformer.__class__ = OtherTransformer
    return transformer


@DETR_CRITERION_REGISTRY.register()
class OtherCriterion(SetCriterion):
    """What a user might register: a class that takes a config."""

    def __init__(self, cfg):
        super().__init__(build_set_criterion(cfg).matcher, loss_ce_weight=7.0)


def test_users_can_register_a_transformer_and_a_criterion():
    opts = [NODE + "TRANSFORMER", "build_other_transformer", NODE + "CRITERION", "OtherCriterion"]
    model = build_model(small_cfg(*opts, "MODEL.BACKBONE.FREEZE_AT", 0))
    assert isinstance(model.head.transformer, OtherTransformer)
    assert isinstance(model.criterion, OtherCriterion)
    assert set(model(batch())) > {"loss_ce", "loss_ce_0"}
    with pytest.raises(KeyError, match="build_nothing"):
        build_model(small_cfg(NODE + "TRANSFORMER", "build_nothing"))


def batch():
    """One image with two objects."""
    instances = Instances((136, 200))
    instances.gt_boxes = Boxes(torch.tensor([[5.0, 10.0, 40.0, 30.0], [50.0, 20.0, 90.0, 60.0]]))
    instances.gt_classes = torch.tensor([2, 0])
    image = torch.randint(256, (3, 136, 200), generator=torch.Generator().manual_seed(1))
    return [{"image": image, "instances": instances}]


class OneConv(Backbone):
    """Stride 8, built without a config."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, x):
        return {"map": self.conv(x)}

    def output_shape(self):
        return {"map": ShapeSpec(channels=6, stride=8)}


@pytest.mark.parametrize("two_stage", [False, True])
def test_classes_are_built_from_keyword_arguments(two_stage):
    """No class needs a config: LazyConfig and notebooks give arguments."""
    arguments = dict(d_model=32, n_heads=4, num_encoder_layers=1, num_decoder_layers=1, n_levels=2)
    if two_stage:
        transformer = TwoStageDeformableTransformer(num_queries=5, **arguments)
    else:
        transformer = DeformableTransformer(**arguments)
    model = DeformableDETR(
        backbone=OneConv(),
        head=DeformableDETRHead(
            input_proj=FeatureProjector(in_channels=[6], d_model=32, num_levels=2),
            transformer=transformer,
            num_classes=3,
            num_queries=5,
            with_box_refine=two_stage,
        ),
        criterion=SetCriterion(matcher=HungarianMatcher()),
        in_features=["map"],
        pixel_mean=[1.0, 2.0, 3.0],
        pixel_std=[4.0, 5.0, 6.0],
        num_detections=4,
    )
    assert torch.stack(list(model(batch()).values())).isfinite().all()
    assert len(model.eval()(batch())[0]["instances"]) <= 4
    assert isinstance(model.preprocess_image(batch()), ImageList)
    mapper = DeformableDETRDatasetMapper(
        is_train=True, augmentations=[T.RandomFlip()], image_format="RGB"
    )
    assert mapper.is_train
