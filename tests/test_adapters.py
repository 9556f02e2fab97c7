"""Adapters to other libraries, by these themselves, where they are installed."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import detectron2_ddetr
from detectron2_ddetr import DeformableDETRDatasetMapper, Predictor
from detectron2_ddetr.toolbox import Boxes, Instances

from .conftest import small_cfg
from .test_predictor import CELLS, NAMES, run  # noqa: F401  (a fixture)
from .test_test_time_augmentation import White

FILES = sorted((Path(detectron2_ddetr.__file__).parent / "adapters").glob("*.py"))


def installed(name):
    return pytest.importorskip(name, reason=f"{name} is not installed (pip install {name})")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_are_small_and_nobody_imports_them(path):
    """What needs another library is imported by who has it."""
    assert len(path.read_text().splitlines()) <= 60
    for source in FILES[0].parent.parent.rglob("*.py"):
        if source.parent != FILES[0].parent:
            for node in ast.walk(ast.parse(source.read_text())):
                if isinstance(node, ast.ImportFrom):
                    assert "adapters" not in (node.module or ""), source


def some_instances():
    found = Instances((80, 100))
    found.pred_boxes = Boxes(torch.tensor([[1.0, 2, 30, 40], [5, 6, 70, 60]]))
    found.scores, found.pred_classes = torch.tensor([0.9, 0.4]), torch.tensor([2, 0])
    return found


def test_detections_of_supervision():
    """The same as its own connector of detectron2, and the names, which its annotators write."""
    supervision = installed("supervision")
    from detectron2_ddetr.adapters.supervision import to_detections

    found = some_instances()
    detections = to_detections(found, NAMES)
    theirs = supervision.Detections.from_detectron2({"instances": found})
    for name in ("xyxy", "confidence", "class_id"):
        ours, other = getattr(detections, name), getattr(theirs, name)
        np.testing.assert_array_equal(ours, other)
        assert ours.dtype == other.dtype
    assert detections["class_name"].tolist() == ["platelet", "red"]
    best = detections[detections.confidence > 0.5]
    assert best["class_name"].tolist() == ["platelet"] and best.xyxy.tolist() == [[1, 2, 30, 40]]
    assert to_detections(found).data == {}
    assert len(to_detections(found[:0], NAMES)) == 0
    scene = supervision.LabelAnnotator().annotate(np.zeros((80, 100, 3), np.uint8), detections)
    assert scene.any()


def white_predictor():
    """Finds what is white, wherever the slice lies."""
    cfg = small_cfg("INPUT.MIN_SIZE_TEST", 100, "INPUT.MAX_SIZE_TEST", 400)
    mapper = DeformableDETRDatasetMapper(cfg, is_train=False)
    return Predictor(model=White(), mapper=mapper, class_names=NAMES)


def test_sliced_prediction_of_sahi():
    """What a slice shows lies in the whole image where it is."""
    installed("sahi")
    from sahi.predict import get_sliced_prediction

    from detectron2_ddetr.adapters.sahi import PredictorForSahi

    model = PredictorForSahi(model=white_predictor())
    image = np.zeros((160, 300, 3), np.uint8)
    image[110:140, 220:280] = 255  # in the last of the slices alone
    sizes = {"slice_height": 100, "slice_width": 100, "overlap_height_ratio": 0.0}
    result = get_sliced_prediction(
        image, model, **sizes, overlap_width_ratio=0.0, perform_standard_pred=False, verbose=0
    )
    (found,) = result.object_prediction_list
    assert found.bbox.to_xyxy() == pytest.approx([220, 110, 280, 140], abs=1)
    assert (found.category.id, found.category.name) == (2, "platelet")
    assert found.score.value == 0.75


def test_prediction_of_sahi_is_that_of_the_predictor(run):  # noqa: F811
    """From files, and with its threshold."""
    installed("sahi")
    from sahi.predict import get_prediction

    from detectron2_ddetr.adapters.sahi import PredictorForSahi

    files = {"config_path": f"{run}/config.yaml", "model_path": f"{run}/model_final.pth"}
    predictor = Predictor.from_run(run)
    plain = predictor.plain(CELLS[0])["detections"]
    threshold = plain[4]["score"]
    model = PredictorForSahi(**files, device="cpu", confidence_threshold=threshold - 1e-6)
    assert model.category_mapping == {"0": "red", "1": "white", "2": "platelet"}
    found = get_prediction(CELLS[0], model).object_prediction_list
    assert len(found) == sum(d["score"] >= threshold - 1e-6 for d in plain) >= 5
    for ours, expected in zip(found, plain):
        assert ours.bbox.to_xyxy() == pytest.approx(expected["box"], abs=1e-3)
        assert ours.category.name == expected["class"]
        assert ours.score.value == pytest.approx(expected["score"])
