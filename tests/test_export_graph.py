"""The graph that is exported: it computes what the model does, and has nothing that only trains."""

import functools

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.errors import InputError
from detectron2_ddetr.export.graph import DetectorGraph, padding_of_sizes
from detectron2_ddetr.toolbox import build_model

from .conftest import FAMILY, TWO_STAGE, small_cfg
from .modeling_cases import randomise
from .test_meta_arch import TINY_BACKBONE

OTHERS = {
    "dcn": "deformable_detr/deformable_detr_R_50_dcnv2_50ep.yaml",
    "dat": "dat/deformable_detr_DAT_T_50ep.yaml",
    "lite": "quick_start.yaml",
}


@functools.cache
def cfg_of(variant):
    """
    One layer of the encoder, and two of the decoder; of several levels, two. That of a single level
    has a backbone of two convolutions, for what every model would show.
    """
    opts = ["MODEL.DETR.ENC_LAYERS", 1, "MODEL.BACKBONE.FREEZE_AT", 0]
    opts += ["INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160]
    if variant == "dat":
        opts += ["MODEL.DAT.NAME", "DAT-XS"]
        opts += ["MODEL.DETR.IN_FEATURES", ["stride32"], "MODEL.DETR.NUM_FEATURE_LEVELS", 2]
    elif variant == "lite":
        opts += ["MODEL.DETR.IN_FEATURES", ["stride8"], "MODEL.DETR.NUM_FEATURE_LEVELS", 2]
    elif variant == "single_scale":
        opts += [*TINY_BACKBONE, 1]
    elif variant not in ("single_scale_dc5", "detr"):
        opts += ["MODEL.DETR.IN_FEATURES", ["res3"], "MODEL.DETR.NUM_FEATURE_LEVELS", 2]
    return small_cfg(*opts, config={**FAMILY, **OTHERS}[variant])


@functools.cache
def model_of(variant):
    """All weights do something."""
    torch.manual_seed(0)
    model = build_model(cfg_of(variant)).eval()
    randomise(model.head, std=0.1)
    if variant == "lite" or variant != "two_stage" and variant in TWO_STAGE:
        # Their content goes by rank, which the rounding of near ties would change.
        model.head.query_embed.weight.data[:] = model.head.query_embed.weight.data[0]
    return model


def batch(*sizes):
    """(N, 3, H, W) uint8 and (N, 2), with noise where there is padding."""
    generator = torch.Generator().manual_seed(0)
    height, width = (max(sides) for sides in zip(*sizes))
    images = torch.randint(
        0, 256, (len(sizes), 3, height, width), generator=generator, dtype=torch.uint8
    )
    return images, torch.tensor(sizes)


def by_score(boxes, scores, labels):
    """In an order that near ties do not change."""
    order = torch.argsort(boxes.sum(-1) + 1000 * labels)
    return boxes[order], scores[order], labels[order]


@pytest.mark.parametrize("variant", [*FAMILY, *OTHERS])
@torch.no_grad()
def test_graph(variant):
    """A batch of two sizes gives the detections of the model; padding may hold anything."""
    model = model_of(variant)
    state = {key: x.clone() for key, x in model.state_dict().items()}
    graph = DetectorGraph(model)
    assert all(torch.equal(x, state[key]) for key, x in model.state_dict().items())
    sizes = [(96, 140), (70, 122)]
    images, sizes_tensor = batch(*sizes)
    found = graph(images, sizes_tensor)
    samples = [{"image": image[:, :h, :w]} for image, (h, w) in zip(images, sizes)]
    for result, size, *of_image in zip(model(samples), sizes, *found):
        expected = result["instances"]
        boxes, scores, labels = of_image
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        expected = (expected.pred_boxes.tensor, expected.scores, expected.pred_classes)
        of_image = [x[kept] for x in of_image]
        assert len(of_image[0]) == len(expected[0]) > 5
        for a, b in zip(by_score(*of_image), by_score(*expected)):
            assert_close(a, b, rtol=1e-5, atol=1e-4)
        assert boxes.min() >= 0 and (boxes.amax(0) <= torch.tensor(size).flip(0).repeat(2)).all()


@torch.no_grad()
def test_multiples_that_the_model_pads_to(monkeypatch):
    model = model_of("single_scale")
    monkeypatch.setattr(model, "size_divisibility", 80)
    graph, seen = DetectorGraph(model), []
    images, sizes = batch((96, 140))
    for run, inputs in ((model, ([{"image": images[0]}],)), (graph, (images, sizes))):
        look = run.backbone.register_forward_pre_hook(
            lambda _, args: seen.append(tuple(args[0].shape[2:]))
        )
        run(*inputs)
        look.remove()
    assert seen == [(240, 240), (240, 240)]  # of 80, and of 24, which the backbone needs


def test_channels_and_mean():
    """Of a model that wants BGR the graph takes RGB all the same."""
    model = model_of("single_scale")
    images, sizes = batch((64, 96))
    assert_close(
        DetectorGraph(model, "BGR")(images.flip(1), sizes),
        DetectorGraph(model, "RGB")(images, sizes),
    )


def test_mask_of_sizes():
    mask = padding_of_sizes(torch.tensor([(2, 3), (1, 4)]), torch.zeros(2, 3, 2, 4))
    expected = [[[0, 0, 0, 1], [0, 0, 0, 1]], [[0, 0, 0, 0], [1, 1, 1, 1]]]
    assert_close(mask, torch.tensor(expected, dtype=torch.bool))


def test_squares_are_refused(monkeypatch):
    model = model_of("single_scale")
    square = property(lambda self: {"square_size": 64})
    monkeypatch.setattr(type(model.backbone), "padding_constraints", square)
    with pytest.raises(InputError, match="pads images to a square.*square_pad"):
        DetectorGraph(model)


@pytest.mark.parametrize("variant", [*FAMILY, *OTHERS])
def test_only_what_detects_is_in_it(variant):
    """Every weight moves the detections, and of the queries there are those that detect."""
    head = model_of(variant).head
    graph = DetectorGraph(model_of(variant)).requires_grad_(True)
    images, sizes = batch((96, 140))
    boxes, scores, _ = graph(images, sizes)
    (boxes.square().sum() + scores.square().sum()).backward()
    weights = {n: x for n, x in graph.named_parameters() if n.startswith("head.")}
    # References are detached from what moves them, and proposals are chosen by a rank.
    detached = ["reference_points", "refpoint_embed", "bbox_embed", "enc_output", "pos_trans"]
    if graph.head.transformer.two_stage:
        detached.append(f"class_embed.{graph.head.transformer.num_decoder_layers}.")
    unread = [n for n, x in weights.items() if x.grad is None]
    assert [n for n in unread if not any(part in n for part in detached)] == []
    assert not any("label_enc" in name or "denoising" in name for name in graph.state_dict())
    for name in ("head.query_embed.weight", "head.transformer.refpoint_embed.weight"):
        if name in weights:
            assert len(weights[name]) == head.num_queries
    if variant == "h":  # it has had more
        assert len(head.query_embed.weight) > head.num_queries
    if variant in ("dn", "dino"):
        assert head.denoising is not None
