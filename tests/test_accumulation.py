"""SOLVER.ACCUMULATION_STEPS: a batch in several passes is the same update as in one."""

import copy
import shutil

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.config_rules import check_trainer_config
from detectron2_ddetr.engine.train_step import LastBatch, TrainStep
from detectron2_ddetr.errors import InputError

from .conftest import FAMILY, small_cfg
from .fork_server import two_processes
from .test_meta_arch import build, sample
from .test_training import assert_same_run, last_checkpoint, run, shapes  # noqa: F401

BOX, OTHER = (3.0, 5.0, 20.0, 11.0), (30.0, 8.0, 60.0, 50.0)


def batch():
    """Images of one size, so that no pass pads in another way; boxes: 3, none, 1, 2, 1."""
    boxes = [[BOX, OTHER, BOX], [], [OTHER], [BOX, OTHER], [BOX]]
    return [sample(64, 96, b, seed=i) for i, b in enumerate(boxes)]


def step(model, parts):
    """Losses and gradients of one step that moves nothing."""
    model = copy.deepcopy(model)
    seen = {}
    trainer = TrainStep(
        model, LastBatch(lambda: [batch()]), torch.optim.SGD(model.parameters(), 0.0), parts=parts
    )
    trainer._write_metrics = lambda losses, data_time: seen.update(losses)
    trainer.run_step()
    return seen, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


#: Noise is drawn pass by pass, and how many denoising groups and empty queries there are depends
#: on the images of a pass: so without noise, and as many boxes in each image.
SAME_QUERIES = ["MODEL.DETR.DENOISING.NUM_GROUPS", 2, "MODEL.DETR.DENOISING.LABEL_NOISE", 0.0,
                "MODEL.DETR.DENOISING.BOX_NOISE", 0.0]  # fmt: skip


@pytest.mark.parametrize("variant", FAMILY)
def test_equal_to_the_whole_batch(variant, monkeypatch):
    """In float64, to 1e-9: in float32, sums in another order differ by more than 1e-5."""
    opts = ["MODEL.RESNETS.NORM", "FrozenBN"]
    if variant in ("dn", "dino"):
        opts += SAME_QUERIES
        images = [sample(64, 96, [BOX, OTHER], [i % 3, 1], seed=i) for i in range(5)]
        monkeypatch.setitem(globals(), "batch", lambda: images)
    model = build(*opts, config=FAMILY[variant]).double()
    whole, gradients = step(model, 1)
    assert whole == pytest.approx({name: x.item() for name, x in model(batch()).items()})
    for parts in (2, 3, 5):
        losses, found = step(model, parts)
        assert_close(losses, whole, rtol=1e-9, atol=1e-9)
        scale = max(x.norm().item() for x in gradients.values())
        for name, expected in gradients.items():
            assert_close(found[name], expected, rtol=1e-7, atol=1e-9 * scale, msg=name)
    assert model.criterion.batch_boxes is None


def test_each_image_is_in_one_pass(monkeypatch):
    model, passes = build(), []
    trainer = TrainStep(
        model, LastBatch(lambda: [batch()]), torch.optim.SGD(model.parameters(), 0.0), parts=3
    )
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda part: passes.append(part) or forward(part))
    monkeypatch.setattr(trainer, "_write_metrics", lambda losses, data_time: None)
    trainer.run_step()
    assert [len(part) for part in passes] == [1, 2, 2]
    assert_close([x["image"] for part in passes for x in part], [x["image"] for x in batch()])


def test_more_passes_than_images():
    cfg = small_cfg("SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION_STEPS", 5)
    with pytest.raises(InputError, match=r"ACCUMULATION_STEPS is 5.*only 4 images.*IMS_PER_BATCH"):
        check_trainer_config(cfg)
    cfg.SOLVER.ACCUMULATION_STEPS = 4
    check_trainer_config(cfg)


#: Without the noise of a model in training, so that all processes and passes compute the same.
CALM = {
    "two_stage": ["MODEL.RESNETS.NORM", "FrozenBN"],
    "detr": ["MODEL.RESNETS.NORM", "FrozenBN"],
    "dcn": ["MODEL.RESNETS.NORM", "FrozenBN",
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, True, True],
            "MODEL.RESNETS.DEFORM_MODULATED", True],
    "dat": ["MODEL.BACKBONE.NAME", "build_dat_backbone", "MODEL.DAT.NAME", "DAT-XS",
            "MODEL.DAT.DROP_PATH_RATE", 0.0,
            "MODEL.DETR.IN_FEATURES", ["stride8", "stride16", "stride32"]],
}  # fmt: skip


def calm_model(variant):
    """In float64; dcn and dat are backbones of two_stage."""
    return build(*CALM[variant], config=FAMILY.get(variant, FAMILY["two_stage"])).double()


def _process(rank, path, variant):
    """A rank of two: images 0, 1, 2 in two passes, or 3, 4; the gradients go to a file."""
    torch.distributed.init_process_group("gloo", f"file://{path}", rank=rank, world_size=2)
    model = calm_model(variant)
    images = batch()[:3] if rank == 0 else batch()[3:]
    distributed = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    trainer = TrainStep(distributed, LastBatch(lambda: [images]), optimizer, parts=2)
    trainer._write_metrics = lambda losses, data_time: None
    trainer.run_step()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    torch.save(gradients, f"{path}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("variant", CALM)
def test_two_processes_and_two_passes_equal_one(variant, tmp_path, monkeypatch):
    """
    Five images in four places of one or two: the gradient is that of one pass over all. In DETR it
    is the mean of those of the processes, whose class losses are means over their own queries.
    """
    path = tmp_path / "rendezvous"
    two_processes(_process, str(path), variant)
    model = calm_model(variant)
    if variant == "detr":
        boxes = sum(len(image["instances"]) for image in batch()) / 2
        mean = "detectron2_ddetr.modeling.criterion.mean_num_boxes"
        monkeypatch.setattr(mean, lambda _, device: torch.tensor(boxes))
        for images in (batch()[:3], batch()[3:]):
            (sum(model(images).values()) / 2).backward()
        expected = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    else:
        _, expected = step(model, 1)
    scale = max(x.norm().item() for x in expected.values())
    for rank in range(2):
        found = torch.load(f"{path}.{rank}", weights_only=True)
        assert found.keys() == expected.keys()
        for name in expected:
            assert_close(found[name], expected[name], rtol=1e-7, atol=1e-9 * scale, msg=name)


def resumed_and_whole(shapes, folder, opts):  # noqa: F811
    """The last checkpoints of a training that goes on from its fourth iteration, and of the one."""
    run(shapes, folder / "whole", opts=opts)
    (folder / "again").mkdir()
    shutil.copy(folder / "whole" / "model_0000003.pth", folder / "again")
    (folder / "again" / "last_checkpoint").write_text("model_0000003.pth")
    log = run(shapes, folder / "again", "--resume", opts=opts)
    assert "Starting training from iteration 4" in log
    return [last_checkpoint(folder / name) for name in ("again", "whole")]


def test_resumed_equals_uninterrupted(shapes, tmp_path):  # noqa: F811
    opts = ["SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.CHECKPOINT_PERIOD", 4,
            "MODEL.RESNETS.NORM", "FrozenBN"]  # fmt: skip
    assert_same_run(*resumed_and_whole(shapes, tmp_path, opts))
