"""detectron2 and the embedded host: one checkpoint, one data set, the same numbers."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2_ddetr import Checkpointer
from detectron2_ddetr.toolbox import build_model

from .conftest import ROOT, VARIANTS, small_cfg

pytestmark = pytest.mark.skipif(
    not getattr(importlib.util.find_spec("detectron2"), "origin", None),
    reason="detectron2 is not installed",
)
NODE = "MODEL.DETR."
SIZES = [(97, 140), (120, 88), (101, 101)]  # (h, w)
CENTRES = [(0.2, 0.3), (0.7, 0.25), (0.45, 0.6), (0.8, 0.8)]  # of the objects in every image


def sizes_of_objects(i):
    """About the 0.12 of the image, wide and high, that a fresh head predicts."""
    return [(0.12 * (1 + 0.1 * (i + k)), 0.12 * (1 - 0.05 * k)) for k in range(len(CENTRES))]


def write_dataset(folder):
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i, (h, w) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": h, "width": w})
        for (cx, cy), (bw, bh) in zip(CENTRES, sizes_of_objects(i)):
            box = [w * (cx - bw / 2), h * (cy - bh / 2), w * bw, h * bh]
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "category_id": 2})
            annotations[-1] |= {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    categories = [{"id": k, "name": f"class {k}"} for k in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))


def aim(model):
    """Queries that look at the objects, and a head that prefers their class: an AP above zero."""
    head = model.head
    with torch.no_grad():
        embed, points = head.query_embed.weight, head.transformer.reference_points
        points.weight.zero_()
        points.weight[:, :2] = torch.eye(2)
        points.bias.zero_()
        embed[: len(CENTRES), :2] = torch.tensor(CENTRES).logit()
        head.class_embed[0].weight.normal_(std=0.3)
        head.class_embed[0].bias[1] += 2


SCRIPT = """
import json, sys
import torch
from detectron2_ddetr import Checkpointer, DeformableDETRDatasetMapper, build_optimizer
from detectron2_ddetr.engine.evaluator import BoxEvaluator
from detectron2_ddetr.toolbox import *
from tests.conftest import small_cfg


def run(folder, checkpoint, out, opts, config):
    cfg = small_cfg(*opts, config=config)
    cfg.merge_from_list(["DATASETS.TEST", ("cross",), "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 128, "INPUT.MAX_SIZE_TEST", 160])
    torch.manual_seed(99)
    model = build_model(cfg)
    checkpointer = Checkpointer(model, out, needs_head=True)
    checkpointer.load(checkpoint)
    checkpointer.save("again", epoch=3)
    result = {"toolbox": TOOLBOX}

    mapper = DeformableDETRDatasetMapper(cfg, is_train=False)
    loader = build_detection_test_loader(cfg, "cross", mapper=mapper)
    result["predictions"] = []
    model.eval()
    with torch.no_grad():
        for output in model([sample for batch in loader for sample in batch]):  # padded
            x = output["instances"]
            fields = (x.pred_boxes.tensor, x.scores, x.pred_classes)
            result["predictions"].append([list(x.image_size), *(f.tolist() for f in fields)])
    evaluator = BoxEvaluator("cross", out)
    result["AP"] = inference_on_dataset(model, loader, evaluator)["bbox"]

    batch = []
    for record in DatasetCatalog.get("cross"):
        sample = mapper(dict(record))
        objects = record["annotations"]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        h, w = sample["image"].shape[1:]
        sample["instances"] = Instances((h, w))
        sample["instances"].gt_boxes = Boxes(torch.tensor(boxes))
        sample["instances"].gt_boxes.scale(w / record["width"], h / record["height"])
        sample["instances"].gt_classes = torch.tensor([a["category_id"] for a in objects])
        batch.append(sample)
    optimizer = build_optimizer(cfg, model)
    names = {p: n for n, p in model.named_parameters()}
    result["optimizer"] = {
        names[p]: [g["lr"], g["weight_decay"]] for g in optimizer.param_groups for p in g["params"]
    }
    scheduler = build_lr_scheduler(cfg, optimizer)
    result["losses"], result["lr"] = [], []
    model.train()
    for step in range(3):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        result["losses"].append({k: v.item() for k, v in losses.items()})
    for last in (0, 147_838, 147_839, 184_798):
        scheduler.last_epoch = last
        scheduler.step()
        result["lr"].append(sorted({g["lr"] for g in optimizer.param_groups}))
    json.dump(result, open(f"{out}/result.json", "w"))


folder, variants = sys.argv[1], json.loads(sys.argv[2])
register_coco_instances("cross", {}, f"{folder}/a.json", folder)
for variant, (opts, config) in variants.items():
    run(folder, f"{folder}/{variant}.pth", f"{folder}/{variant}_{TOOLBOX}", opts, config)
"""


OPTS = [NODE + "HIDDEN_DIM", 64, NODE + "NUM_QUERIES", 16]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where both toolboxes left their results, from checkpoints that this process saved."""
    folder = tmp_path_factory.mktemp("cross")
    write_dataset(folder)
    variants = {name: (OPTS, VARIANTS[name]) for name in ("multi_scale", "two_stage")}
    for name, (opts, config) in variants.items():
        torch.manual_seed(0)
        model = build_model(small_cfg(*opts, config=config))
        if name == "multi_scale":
            aim(model)
        Checkpointer(model, str(folder)).save(name)
    processes = []
    for toolbox in ("host", "detectron2"):
        for name in variants:
            (folder / f"{name}_{toolbox}").mkdir()
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "DDETR_TOOLBOX": toolbox, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), json.dumps(variants)]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(subprocess.Popen(command, cwd=ROOT, env=env, **pipes))
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    return folder


@pytest.fixture(params=["multi_scale", "two_stage"])
def results(request, folder):
    """The variant, and the results of the host and of detectron2."""
    found = []
    for toolbox in ("host", "detectron2"):
        path = folder / f"{request.param}_{toolbox}" / "result.json"
        found.append(json.loads(path.read_text()))
        assert found[-1]["toolbox"] == toolbox
    return request.param, *found


def test_predictions_are_equal(results):
    _, ours, theirs = results
    assert len(ours["predictions"]) == len(theirs["predictions"]) == 3
    for a, b, size in zip(ours["predictions"], theirs["predictions"], SIZES):
        assert tuple(a[0]) == tuple(b[0]) == size
        assert len(a[1]) == len(b[1]) > 10
        np.testing.assert_allclose(a[1], b[1], rtol=0, atol=1e-3)  # pixels
        np.testing.assert_allclose(a[2], b[2], rtol=0, atol=1e-5)
        assert a[3] == b[3]


def test_losses_are_equal(results):
    """Over three updates, so that gradients and optimisers are compared too."""
    variant, ours, theirs = results
    assert len(ours["losses"]) == 3 and ours["losses"][0] != ours["losses"][2]
    for a, b in zip(ours["losses"], theirs["losses"]):
        assert set(a) == set(b) and ("loss_ce_enc" in a) == (variant == "two_stage")
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), name


def test_average_precision_is_equal(results):
    variant, ours, theirs = results
    assert set(ours["AP"]) == set(theirs["AP"])
    for name, value in theirs["AP"].items():
        assert ours["AP"][name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
    if variant == "multi_scale":
        assert ours["AP"]["AP50"] > 5


def test_optimisers_and_schedules_are_equal(results):
    _, ours, theirs = results
    assert ours["optimizer"] == theirs["optimizer"] and len(ours["optimizer"]) > 100
    assert ours["lr"] == theirs["lr"]
    assert ours["lr"][1] == pytest.approx([2e-5, 2e-4])
    assert ours["lr"][2] == pytest.approx([2e-6, 2e-5])


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_checkpoints_are_interchangeable(folder, variant):
    """What this toolbox saved, both loaded; what they saved again is equal, and loads here."""
    paths = [folder / f"{variant}_{toolbox}" / "again.pth" for toolbox in ("host", "detectron2")]
    first = torch.load(folder / f"{variant}.pth", weights_only=True)
    model = build_model(small_cfg(*OPTS, config=VARIANTS[variant]))
    for path in paths:
        other = torch.load(path, weights_only=True)
        assert list(other["model"]) == list(first["model"])
        assert all(torch.equal(v, first["model"][k]) for k, v in other["model"].items())
        assert other["epoch"] == 3 and set(other) == {*first, "epoch"}
        Checkpointer(model, needs_head=True).load(str(path))
