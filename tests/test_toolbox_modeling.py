"""Images, boxes and the ResNet: detectron2 and the embedded host compute the same."""

import numpy as np
import pytest
import torch

from detectron2_ddetr.host import config as host_config
from detectron2_ddetr.host import modeling, structures

from .test_toolbox import needs_detectron2


@needs_detectron2
@pytest.mark.parametrize("sizes", [[(7, 12)], [(7, 12), (10, 5)]])
@pytest.mark.parametrize("divisibility", [0, 4])
def test_image_list(sizes, divisibility):
    from detectron2.structures import ImageList

    images = [torch.rand(3, h, w) for h, w in sizes]
    ours = structures.ImageList.from_tensors(images, divisibility, pad_value=0.5)
    theirs = ImageList.from_tensors(images, divisibility, pad_value=0.5)
    assert torch.equal(ours.tensor, theirs.tensor)
    assert ours.image_sizes == theirs.image_sizes
    with pytest.raises(NotImplementedError, match="detectron2"):
        structures.ImageList.from_tensors(images, padding_constraints={"square_size": 20})


@needs_detectron2
def test_boxes_and_instances():
    import detectron2.structures as d2

    raw = torch.tensor([[1.0, 2.0, 30.0, 9.0], [-4.0, 3.0, 5.5, 40.0], [2.0, 2.0, 2.0, 8.0]])
    results = []
    for module in (structures, d2):
        boxes = module.Boxes(raw.clone())
        nonempty = boxes.nonempty(2.0)
        boxes.clip((10, 20))
        boxes.scale(2.0, 3.0)
        assert [len(box) for box in boxes] == [4, 4, 4]
        parts = [boxes[0], boxes[-2:], boxes[torch.tensor([True, False, True])]]
        instances = module.Instances((10, 20), pred_boxes=boxes, scores=torch.arange(3.0))
        instances.pred_classes = [1, 2, 3]
        some = instances[1:].to("cpu")
        assert len(module.Boxes([])) == 0 and len(instances[-1]) == 1
        results.append(
            [nonempty, some.pred_boxes.tensor, some.scores, some.pred_classes, some.image_size]
            + [part.tensor for part in parts]
            + [list(some.get_fields()), len(some), instances[-1].pred_classes]
        )
    for ours, theirs in zip(*results):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


@needs_detectron2
@pytest.mark.parametrize(
    "box", [[1, 2, 3, 4], (1.1, 2.2, 3.3, 4.4), np.array([[0.1, 2.0, 3.3, 4.0]])]
)
@pytest.mark.parametrize("modes", [(0, 1), (1, 0), (0, 0)])
def test_box_mode(box, modes):
    import detectron2.structures as d2

    ours, theirs = (
        module.BoxMode.convert(box, *map(module.BoxMode, modes)) for module in (structures, d2)
    )
    assert type(ours) is type(theirs) and np.array_equal(np.array(ours), np.array(theirs))
    assert all(mode.value == d2.BoxMode[mode.name].value for mode in structures.BoxMode)


RESNETS = [
    {"DEPTH": 50},
    {"DEPTH": 50, "RES5_DILATION": 2, "STRIDE_IN_1X1": False, "OUT_FEATURES": ["res3", "res5"]},
    {"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "NORM": "BN", "OUT_FEATURES": ["stem", "res4"]},
]


@needs_detectron2
@pytest.mark.parametrize("options", RESNETS)
@pytest.mark.parametrize("freeze_at", [0, 2])
def test_resnet(options, freeze_at):
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    models = []
    for make, build in ((host_config.get_cfg, modeling.build_backbone), (get_cfg, build_backbone)):
        cfg = make()
        cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
        for key, value in options.items():
            cfg.MODEL.RESNETS[key] = value
        torch.manual_seed(0)
        models.append(build(cfg))
    ours, theirs = models
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in ours.state_dict().items()), "another init"
    assert [(n, p.requires_grad) for n, p in ours.named_parameters()] == [
        (n, p.requires_grad) for n, p in theirs.named_parameters()
    ]
    assert {k: vars(v) for k, v in ours.output_shape().items()} == {
        k: vars(v) for k, v in theirs.output_shape().items()
    }
    x = torch.rand(1, 3, 65, 97)
    generator = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if "running" in name or name.endswith(("norm.weight", "norm.bias")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    ours.load_state_dict(state, strict=False)  # of a frozen norm, num_batches_tracked
    outputs = ours.eval()(x), theirs.eval()(x)
    assert list(outputs[0]) == list(outputs[1])
    for name, feature in outputs[1].items():
        assert torch.equal(outputs[0][name], feature), name


@needs_detectron2
def test_detector_postprocess():
    import detectron2.structures as d2
    from detectron2.modeling import detector_postprocess

    raw = torch.tensor([[1.0, 2.0, 9.0, 7.0], [-3.0, 1.0, 50.0, 60.0], [21.0, 1.0, 30.0, 5.0]])
    results = []
    for module, function in (
        (structures, modeling.detector_postprocess),
        (d2, detector_postprocess),
    ):
        instances = module.Instances((10, 20), pred_boxes=module.Boxes(raw.clone()))
        instances.scores = torch.arange(3.0)
        results.append(function(instances, 30, 47))
    assert results[0].image_size == results[1].image_size
    assert torch.equal(results[0].pred_boxes.tensor, results[1].pred_boxes.tensor)
    assert torch.equal(results[0].scores, results[1].scores)


@needs_detectron2
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_batch_norm(requires_grad, dtype):
    from detectron2.layers import FrozenBatchNorm2d

    norms = modeling.FrozenBatchNorm2d(4), FrozenBatchNorm2d(4)
    state = {name: torch.rand(4) + 0.5 for name in norms[0].state_dict()}
    x = torch.rand(2, 4, 5, 3, dtype=dtype, requires_grad=requires_grad)
    for norm in norms:
        norm.load_state_dict(state)
    ours, theirs = (norm(x.clone()) for norm in norms)
    assert torch.equal(ours, theirs) and ours.dtype == dtype
