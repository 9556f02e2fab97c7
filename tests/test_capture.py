"""`capture`: what it records is what the operator reads, and nothing else is changed."""

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import detectron2_ddetr
from detectron2_ddetr.modeling import MSDeformAttn, capture, ms_deform_attn
from detectron2_ddetr.toolbox import build_model

from .conftest import small_cfg
from .modeling_cases import (
    HEADS,
    NUM_QUERIES,
    cell_centres_loop,
    randomise,
    small_features,
    small_head,
)

SIZES = ((72, 104), (61, 83))


def hooks_of(model):
    """How many of each module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(module, kind)) for module in model.modules() for kind in kinds]


def attention_calls(head):
    """A head's attention layers by kind and number, and the arguments of their last calls."""
    layers = {("encoder", i): x.self_attn for i, x in enumerate(head.transformer.encoder.layers)}
    layers |= {("decoder", i): x.cross_attn for i, x in enumerate(head.transformer.decoder.layers)}
    calls = {}

    def remember(key):
        return lambda module, args, output: calls.update({key: (*args, output)})

    for key, layer in layers.items():
        layer.register_forward_hook(remember(key))
    return layers, calls


@pytest.fixture(params=HEADS)
def captured_head(request):
    """(head, its layers, arguments of their calls, what was captured), of two padded images."""
    head = randomise(small_head(**HEADS[request.param]), std=0.3).eval()
    layers, calls = attention_calls(head)
    with capture(head) as captured, torch.no_grad():
        head(*small_features(HEADS[request.param].get("num_levels", 4), SIZES))
    return head, layers, calls, captured


def test_every_layer_is_recorded(captured_head):
    head, layers, _, captured = captured_head
    assert set(captured.attention) == set(layers)
    assert captured.num_layers("encoder") == 2 and captured.num_layers("decoder") == 3
    cells = sum(h * w for h, w in captured.memory.spatial_shapes)
    levels = len(captured.memory.spatial_shapes)
    for (kind, _), record in captured.attention.items():
        shape = (2, cells, 4, levels, 3) if kind == "encoder" else (2, NUM_QUERIES, 4, levels, 2)
        assert record.attention_weights.shape == shape
        assert record.sampling_locations.shape == (*shape, 2)
        assert_close(record.attention_weights.sum((3, 4)), torch.ones(shape[:3]))
    assert captured.image_sizes == [*SIZES]


def test_the_operator_gives_the_same_from_what_is_recorded(captured_head):
    """Locations and weights, through the entry that takes them as they are."""
    _, layers, calls, captured = captured_head
    for key, layer in layers.items():
        query, references, src, shapes, mask, output = calls[key]
        value = layer.value_proj(src).masked_fill(mask[..., None], 0.0)
        record = captured.attention[key]
        again = ms_deform_attn(
            value.unflatten(-1, (layer.n_heads, -1)),
            torch.tensor(shapes),
            record.sampling_locations,
            record.attention_weights,
        )
        assert_close(layer.output_proj(again), output)
        assert_close(record.level_reference_points, references)


def neighbours(location, shapes, level):
    """Of a point, the cells that bilinear interpolation reads, as indices into S."""
    (height, width), start = shapes[level], sum(h * w for h, w in shapes[:level])
    x, y = location[0] * width - 0.5, location[1] * height - 0.5
    rows, columns = (range(int(v // 1), int(v // 1) + 2) for v in (y, x))
    inside = ((i, j) for i, j in itertools.product(rows, columns) if 0 <= i < height)
    return {start + i * width + j for i, j in inside if 0 <= j < width}


@pytest.mark.parametrize("key", [("encoder", 1), ("decoder", 2)])
def test_only_the_cells_around_the_points_reach_a_query(captured_head, key):
    """The gradient of one query's output is zero at all other cells, and at none of these."""
    _, layers, calls, captured = captured_head
    query, references, src, shapes, mask, _ = calls[key]
    read_in_all = set()
    for image, number in itertools.product(range(2), (0, 4)):
        src = src.detach().clone().requires_grad_()
        output = layers[key](query, references, src, shapes, mask)
        output[image, number].square().sum().backward()
        read = set(src.grad[image].abs().sum(1).nonzero().flatten().tolist())
        locations = captured.attention[key].sampling_locations[image, number]  # (M, L, P, 2)
        expected = set()
        for level in range(len(shapes)):
            for location in locations[:, level].flatten(0, 1).tolist():
                expected |= neighbours(location, shapes, level)
        expected -= set(mask[image].nonzero().flatten().tolist())
        assert read == expected
        read_in_all |= read
        assert not src.grad[1 - image].any()
    assert read_in_all and len(read_in_all) < src.shape[1]


def test_references(captured_head):
    """Of an encoder its cells; of a decoder with refinement the boxes of the layer before."""
    head, _, _, captured = captured_head
    record = captured.attention["encoder", 0]
    shapes = captured.memory.spatial_shapes
    counted = [[[], []] for _ in shapes]  # valid (w, h) of each level, by its mask
    for level, cells in enumerate(
        captured.memory.padding_mask.split([h * w for h, w in shapes], 1)
    ):
        for image, mask in enumerate(~cells.unflatten(1, shapes[level])):
            counted[level][image] = (int(mask.any(1).sum()), int(mask.any(0).sum()))
    valid = [[counted[level][image] for level in range(len(shapes))] for image in range(2)]
    centres = cell_centres_loop(shapes, valid).float()
    in_image = captured.in_image(record.level_reference_points[:, :, None, :, None])
    for level in range(len(shapes)):
        assert_close(in_image[:, :, 0, level, 0], centres)
    if head.with_box_refine:
        for layer in (1, 2):
            boxes = captured.layer_outputs(layer - 1)["pred_boxes"]
            assert_close(captured.reference_points(layer), boxes)
    else:
        assert_close(captured.reference_points(2), captured.reference_points(0))
    if head.transformer.two_stage:
        proposals = captured.outputs["enc_outputs"]
        best = proposals["pred_logits"][..., 0].topk(NUM_QUERIES).indices
        chosen = proposals["pred_boxes"].gather(1, best[..., None].expand(-1, -1, 4))
        assert_close(captured.reference_points(0), chosen)


def test_outputs_are_those_of_the_head(captured_head):
    head, _, _, captured = captured_head
    levels = len(captured.memory.spatial_shapes)
    outputs = head(*small_features(levels, SIZES))
    assert_close(captured.outputs, outputs)
    assert outputs["pred_logits"].requires_grad
    assert not captured.outputs["pred_logits"].requires_grad


def test_nothing_is_changed_and_nothing_stays():
    head = randomise(small_head(with_box_refine=True)).eval()
    before, hooks = head(*small_features()), hooks_of(head)
    with capture(head) as outer:
        assert hooks_of(head) != hooks
        assert torch.equal(head(*small_features())["pred_boxes"], before["pred_boxes"])
        with capture(head) as inner:
            head(*small_features(seed=1))
        assert inner.attention.keys() == outer.attention.keys()
        kept = outer.attention["encoder", 0].sampling_locations
        assert torch.equal(kept, inner.attention["encoder", 0].sampling_locations)
        head(*small_features(seed=2))  # the outer context goes on, the inner has ended
        assert not torch.equal(outer.outputs["pred_boxes"], inner.outputs["pred_boxes"])
    assert hooks_of(head) == hooks
    assert torch.equal(head(*small_features())["pred_boxes"], before["pred_boxes"])


def test_nothing_stays_after_an_error():
    head = small_head()
    hooks = hooks_of(head)
    with pytest.raises(RuntimeError, match="mine"), capture(head):
        raise RuntimeError("mine")
    assert hooks_of(head) == hooks
    broken = small_features()[0][:2]
    with capture(head) as captured, pytest.raises(RuntimeError):
        head(broken, small_features()[1])
    assert captured.attention == {} and hooks_of(head) == hooks


def test_arguments_by_name():
    head = randomise(small_head()).eval()
    features, padding_mask = small_features()
    found = []
    for args, named in (
        ((features, padding_mask), {}),
        ((features,), {"padding_mask": padding_mask}),
        ((), {"features": features, "padding_mask": padding_mask}),
    ):
        with torch.no_grad(), capture(head) as captured:
            head(*args, **named)
        found.append(captured.image_sizes)
    assert found[0] == found[1] == found[2] and len(set(found[0])) > 1


def test_a_new_forward_pass_replaces_the_one_before():
    head = randomise(small_head()).eval()
    with capture(head) as captured:
        head(*small_features())
        first = captured.attention
        head(*small_features(sizes=((40, 56),)))
    assert captured.image_sizes == [(40, 56)] and len(captured.memory.tokens) == 1
    assert all(len(x.sampling_locations) == 1 for x in captured.attention.values())
    assert all(len(x.sampling_locations) == 2 for x in first.values())


@pytest.mark.parametrize("dtype, expected", [(torch.bfloat16, torch.float32), (torch.float64,) * 2])
def test_coordinates_are_never_of_16_bits(dtype, expected):
    head = randomise(small_head()).eval().to(dtype)
    features, mask = small_features()
    with capture(head) as captured:
        head([x.to(dtype) for x in features], mask)
    for record in captured.attention.values():
        assert {x.dtype for x in vars(record).values()} == {expected}


def test_a_model_without_a_head():
    for model, number in ((MSDeformAttn(32), 0), (nn.ModuleList([small_head(), small_head()]), 2)):
        with pytest.raises(ValueError, match=f"one DeformableDETRHead, .* has {number}"):
            with capture(model):
                pass


def test_a_whole_model():
    """Its public name, in training too, where layers may run again in the backward pass."""
    opts = ["MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.DETR.ACTIVATION_CHECKPOINTING.ENCODER", True]
    model = build_model(small_cfg(*opts)).eval()
    images = [{"image": torch.rand(3, h, w) * 255} for h, w in ((64, 96), (48, 80))]
    with detectron2_ddetr.capture(model) as captured, torch.no_grad():
        detections = model(images)
    assert captured.image_sizes == [(64, 96), (48, 80)]
    with torch.no_grad(), capture(model) as without_padding:
        model([{"image": torch.rand(3, 48, 80)}] * 3)
    assert without_padding.image_sizes == [(48, 80)] * 3
    assert without_padding.memory.padding_mask is None
    best = captured.outputs["pred_logits"].sigmoid().flatten(1).max(1).values
    assert_close(best, torch.stack([d["instances"].scores[0] for d in detections]))
    head = model.head.train()
    features, mask = small_features()
    channels = [m[0].in_channels for m in head.input_proj][:3]
    features = [x[:, :1].repeat(1, c, 1, 1) for x, c in zip(features, channels)]
    with capture(head) as captured:
        outputs = head(features, mask)
        before = dict(captured.attention)
        outputs["pred_boxes"].sum().backward()
    assert captured.attention.keys() == before.keys()
    again = captured.attention["encoder", 0].sampling_locations
    assert_close(again, before["encoder", 0].sampling_locations)
