"""Images in, losses out: padding, targets, backbones, and inputs that are unusual."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr import DeformableDETR
from detectron2_ddetr.meta_arch import padding_mask
from detectron2_ddetr.modeling import HungarianMatcher, SetCriterion
from detectron2_ddetr.toolbox import (
    BACKBONE_REGISTRY,
    Backbone,
    Boxes,
    Instances,
    ShapeSpec,
    build_model,
)

from .conftest import FAMILY, TWO_STAGE, VARIANTS, small_cfg

NODE = "MODEL.DETR."
MEAN, STD = [123.675, 116.280, 103.530], [58.395, 57.120, 57.375]


class TinyBackbone(Backbone):
    """Odd names and strides, and a divisibility: "fine" (stride 6) and "coarse" (stride 12)."""

    def __init__(self, size_divisibility=0):
        super().__init__()
        self.fine = nn.Conv2d(3, 5, 6, stride=6)
        self.coarse = nn.Conv2d(5, 7, 2, stride=2)
        self.divisibility = size_divisibility

    @property
    def size_divisibility(self):
        return self.divisibility

    def forward(self, x):
        fine = self.fine(x)
        return {"fine": fine, "coarse": self.coarse(fine)}

    def output_shape(self):
        return {"fine": ShapeSpec(channels=5, stride=6), "coarse": ShapeSpec(channels=7, stride=12)}


@BACKBONE_REGISTRY.register()
def build_tiny_backbone(cfg, input_shape):
    return TinyBackbone(size_divisibility=24)


#: And how many levels, last.
TINY_BACKBONE = ["MODEL.BACKBONE.NAME", "build_tiny_backbone"]
TINY_BACKBONE += ["MODEL.DETR.IN_FEATURES", ["coarse"], "MODEL.DETR.NUM_FEATURE_LEVELS"]


class FixedHead(nn.Module):
    """Says what it was given; for every image the same queries."""

    def __init__(self, logits, boxes):
        super().__init__()
        self.logits, self.boxes = torch.tensor(logits), torch.tensor(boxes)
        self.num_classes = self.logits.shape[-1]

    def forward(self, features, padding_mask, targets=None):
        self.padding_mask = padding_mask
        n = len(features[0])
        logits, boxes = (x.expand(n, -1, -1) for x in (self.logits, self.boxes))
        return {"pred_logits": logits, "pred_boxes": boxes, "aux_outputs": []}


def fixed_model(logits, boxes, num_detections=100, needed=0, **options):
    return DeformableDETR(
        backbone=TinyBackbone(needed),
        head=FixedHead(logits, boxes),
        criterion=SetCriterion(HungarianMatcher()),
        in_features=["fine", "coarse"],
        pixel_mean=MEAN,
        pixel_std=STD,
        num_detections=num_detections,
        **options,
    ).eval()


def image(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


def sample(height, width, boxes=((3.0, 5.0, 20.0, 11.0),), classes=None, seed=0):
    """A training sample; boxes (x0, y0, x1, y1) in pixels."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.int64)
    return {"image": image(height, width, seed), "instances": instances}


def build(*opts, config="deformable_detr/deformable_detr_R_50_50ep.yaml", seed=0):
    """A small model whose zero-initialised weights do something."""
    torch.manual_seed(seed)
    model = build_model(small_cfg("MODEL.BACKBONE.FREEZE_AT", 0, *opts, config=config))
    for parameter in model.head.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
    return model


ONE_BOX = ([[2.0, -3.0, -4.0]], [[0.25, 0.5, 0.5, 0.2]])
SIZES = [(13, 29), (31, 18), (24, 24)]


@pytest.mark.parametrize(
    "needed, wanted, padded",
    [(0, 1, (31, 29)), (16, 1, (32, 32)), (0, 10, (40, 30)), (4, 6, (36, 36))],
)
def test_padded_batch_and_mask(needed, wanted, padded):
    """Parity A1, A2: top left corner, zeros after normalisation, True = padding."""
    model = fixed_model(*ONE_BOX, needed=needed, size_divisibility=wanted)
    inputs = [{"image": image(h, w, seed=h)} for h, w in SIZES]
    images = model.preprocess_image(inputs)
    tensor = np.zeros((3, 3, *padded), dtype=np.float32)
    mask = np.ones((3, *padded), dtype=bool)
    for i, (h, w) in enumerate(SIZES):
        for channel in range(3):
            for y in range(h):
                tensor[i, channel, y, :w] = inputs[i]["image"][channel, y].numpy()
                mask[i, y, :w] = False
            tensor[i, channel, :h, :w] -= np.float32(MEAN[channel])
            tensor[i, channel, :h, :w] /= np.float32(STD[channel])
    assert images.image_sizes == SIZES
    assert images.tensor.dtype == torch.float32
    assert torch.equal(images.tensor, torch.from_numpy(tensor))
    assert padding_mask(images).dtype == torch.bool
    assert torch.equal(padding_mask(images), torch.from_numpy(mask))


@pytest.mark.parametrize("divisibility, padded", [(0, [False, True]), (16, [True, True])])
def test_a_mask_only_where_there_is_padding(divisibility, padded):
    """Images of one size have none, unless the backbone asks for more pixels."""
    model = fixed_model(*ONE_BOX, needed=divisibility)
    for sizes, expected in zip(([(24, 36)] * 2, [(24, 36), (24, 35)]), padded):
        images = model.preprocess_image([{"image": image(h, w)} for h, w in sizes])
        assert (padding_mask(images) is not None) == expected


@pytest.mark.parametrize("training", [False, True])
def test_backbone_reads_channels_last_on_a_cpu(training):
    """The layout alone differs: the features are those of the same numbers channels first."""
    model = fixed_model(*ONE_BOX).train(training)
    seen = []
    model.backbone.register_forward_hook(lambda module, args, out: seen.extend((args[0], out)))
    images = model.preprocess_image([{"image": image(h, w, seed=h)} for h, w in SIZES])
    model.network_outputs(images)
    pixels, features = seen[:2]
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pixels, images.tensor)
    for name, feature in model.backbone(images.tensor).items():
        assert_close(features[name], feature)


def test_normalisation_equals_the_official_one():
    """Parity A2: torchvision's ToTensor and Normalize."""
    from torchvision.transforms.functional import normalize

    x = image(9, 5)
    expected = normalize(x.double() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    images = fixed_model(*ONE_BOX).preprocess_image([{"image": x}])
    assert_close(images.tensor[0].double(), expected, rtol=0, atol=1e-6)


def test_head_gets_the_mask_in_evaluation_too():
    """PEERS 7.1: padding of a batch is masked whether training or not, and only padding."""
    model = fixed_model(*ONE_BOX)
    for training in (True, False):
        model.train(training)
        model([sample(30, 18), sample(24, 36)])
        mask = model.head.padding_mask
        assert mask.shape == (2, 30, 36)
        assert not mask[0, :, :18].any() and mask[0, :, 18:].all()
        assert not mask[1, :24].any() and mask[1, 24:].all()


def test_positions_do_not_depend_on_the_batch():
    """PEERS 7.1: encodings and valid ratios of an image, alone and padded."""
    model = build(NODE + "NUM_FEATURE_LEVELS", 3).eval()
    seen = []

    def record(maps, masks, pos_embeds):
        seen.append((masks, pos_embeds))
        return encode(maps, masks, pos_embeds)

    encode, model.head.transformer.encode = model.head.transformer.encode, record
    small, large = {"image": image(64, 96)}, {"image": image(128, 160)}
    with torch.no_grad():
        model([small])
        model([large, small])
    (_, alone), (masks, batched) = seen
    for level in range(3):
        height, width = alone[level].shape[2:]
        assert (~masks[level][1]).sum() == height * width
        assert not masks[level][1, :height, :width].any()
        assert_close(batched[level][1:, :, :height, :width], alone[level], rtol=0, atol=1e-5)


def test_targets_are_fractions_of_the_valid_image():
    """Not of the padded one; x by the width, y by the height."""
    model = fixed_model(*ONE_BOX)
    batch = [sample(20, 100, [(10.0, 4.0, 50.0, 12.0)], [2]), sample(7, 9, [])]
    targets = model.prepare_targets([x["instances"] for x in batch])
    assert_close(targets[0]["boxes"], torch.tensor([[0.3, 0.4, 0.4, 0.4]]))
    assert targets[0]["labels"].tolist() == [2]
    assert targets[1]["boxes"].shape == (0, 4) and len(targets[1]["labels"]) == 0


def test_a_perfect_prediction_costs_nothing():
    """Targets and predictions share their frame, in a padded batch."""
    model = fixed_model(*ONE_BOX).train()
    batch = [sample(40, 80, [(0.0, 16.0, 40.0, 24.0)]), sample(60, 20, [(0.0, 24.0, 10.0, 36.0)])]
    losses = model(batch)
    assert losses["loss_bbox"] < 1e-5 and losses["loss_giou"] < 1e-5


@pytest.mark.parametrize("variant", FAMILY)
def test_training_returns_losses_only(variant):
    """PEERS 7.7: detectron2 sums whatever the dict holds. PEERS 7.6: every layer is there."""
    model = build(config=FAMILY[variant])
    losses = model([sample(40, 60), sample(50, 30)])
    layers = ["", "_0", "_enc"] if variant in TWO_STAGE else ["", "_0"]
    layers += {"h": ["_one2many", "_one2many_0"]}.get(variant, [])
    layers += ["_dn", "_dn_0"] if variant in ("dn", "dino") else []
    assert set(losses) == {f"loss_{term}{s}" for term in ("ce", "bbox", "giou") for s in layers}
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_moving_moves_everything(variant):
    """No tensor is a plain attribute, which `.to` would miss."""
    model = build(config=VARIANTS[variant])
    model([sample(40, 60)])  # whatever is made on the way
    for name, module in model.named_modules():
        tensors = [k for k, v in vars(module).items() if isinstance(v, torch.Tensor)]
        assert tensors == [], name
    assert model.double().pixel_mean.dtype == torch.float64
    assert model.eval()([sample(40, 60)])[0]["instances"].scores.isfinite().all()
    assert model.to("meta").device.type == "meta"
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])


def test_pixel_statistics_come_from_the_config_not_the_checkpoint():
    assert not [key for key in build().state_dict() if "pixel" in key]


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
@pytest.mark.parametrize("boxes", [[[], []], [[], [(1.0, 2.0, 30.0, 20.0)]]])
def test_images_without_objects(variant, boxes):
    """A batch without any, and one image of two: finite losses and gradients."""
    model = build(config=VARIANTS[variant])
    losses = model([sample(40, 60, b) for b in boxes])
    assert torch.stack(list(losses.values())).isfinite().all()
    if not any(boxes):
        assert all(v == 0 for k, v in losses.items() if not k.startswith("loss_ce"))
    assert losses["loss_ce"] > 0
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.head.class_embed.parameters()]
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


def test_more_objects_than_queries():
    generator = torch.Generator().manual_seed(0)
    corners = 20 * torch.rand(30, 2, generator=generator)
    boxes = torch.cat((corners, corners + 3 + 10 * torch.rand(30, 2, generator=generator)), 1)
    losses = build()([sample(40, 60, boxes.tolist(), [i % 3 for i in range(30)])])
    assert torch.stack(list(losses.values())).isfinite().all()


@pytest.mark.parametrize("variant", FAMILY)
def test_image_smaller_than_the_coarsest_stride(variant):
    """7 x 13 pixels: maps of one cell, fewer tokens than queries."""
    model = build(config=FAMILY[variant])
    losses = model([sample(7, 13, [(1.0, 2.0, 9.0, 6.0)])])
    assert torch.stack(list(losses.values())).isfinite().all()
    with torch.no_grad():
        result = model.eval()([{"image": image(7, 13)}, {"image": image(40, 20)}])
    for r, size in zip(result, [(7, 13), (40, 20)]):
        assert r["instances"].scores.isfinite().all()
        assert r["instances"].pred_boxes.tensor.isfinite().all()
        assert r["instances"].image_size == size


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_training_and_evaluation_are_one_path(variant):
    """Without dropout, the raw outputs are those that detections and losses are made of."""
    model = build(config=VARIANTS[variant])
    batch = [sample(40, 66), sample(50, 30, seed=3)]
    raw = []
    for training in (True, False):
        model.train(training)
        raw.append(model.network_outputs(model.preprocess_image(batch)))
    for key in ("pred_logits", "pred_boxes"):
        assert torch.equal(raw[0][key], raw[1][key])
    results = model(batch)
    losses = model.train()(batch)
    targets = model.prepare_targets([x["instances"] for x in batch])
    assert losses == model.criterion(raw[1], targets)
    for logits, result in zip(raw[1]["pred_logits"], results):
        scores = result["instances"].scores[:, None]
        assert len(scores) > 0
        assert (logits.sigmoid().flatten() - scores).abs().min(1).values.max() < 1e-6


@pytest.mark.parametrize("refine", [False, True])
def test_any_backbone_will_do(refine):
    """Other names and strides, padded to its divisibility, and levels made on top."""
    opts = ["MODEL.BACKBONE.NAME", "build_tiny_backbone", NODE + "NUM_FEATURE_LEVELS", 3]
    opts += [NODE + "IN_FEATURES", ["fine", "coarse"], NODE + "WITH_BOX_REFINE", refine]
    model = build(*opts, NODE + "TWO_STAGE", refine)
    batch = [sample(40, 50), sample(30, 70)]
    assert model.preprocess_image(batch).tensor.shape == (2, 3, 48, 72)
    losses = model(batch)
    assert torch.stack(list(losses.values())).isfinite().all()
    sum(losses.values()).backward()
    assert model.backbone.fine.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert len(model.eval()(batch)[0]["instances"]) > 0


def test_features_that_the_backbone_lacks_are_named():
    opts = ["MODEL.BACKBONE.NAME", "build_tiny_backbone"]
    with pytest.raises(ValueError) as error:
        build(*opts, NODE + "IN_FEATURES", ["fine", "p7"])
    for word in ("IN_FEATURES", "p7", "build_tiny_backbone", "coarse"):
        assert word in str(error.value)
    with pytest.raises(ValueError, match="res4"):
        build("MODEL.RESNETS.OUT_FEATURES", ["res5"])
