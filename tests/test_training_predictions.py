"""The detections of each evaluation of a training, beside the ground truth."""

import importlib.util
import io
import json
from types import SimpleNamespace

import numpy as np
from PIL import Image

from detectron2_ddetr import register_coco_json
from detectron2_ddetr.toolbox import TOOLBOX, DatasetCatalog, MetadataCatalog
from detectron2_ddetr.visualization import training_predictions

from .test_training import run, shapes  # noqa: F401


def test_the_detections_of_the_file(shapes, tmp_path, monkeypatch):  # noqa: F811
    """Written as COCO has it, (x, y, width, height) and the ids of the json: 1 is class 0."""
    register_coco_json("seen", str(shapes / "shapes.json"), str(shapes))
    rows = [
        {"image_id": 1, "category_id": 2, "bbox": [10, 20, 30, 5], "score": 0.75},
        {"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5},
        {"image_id": 1, "category_id": 1, "bbox": [7, 0, 2, 60], "score": 0.25},
    ]
    (tmp_path / "coco_instances_results.json").write_text(json.dumps(rows))
    drawn, put = {}, []

    def draw(images_with_results, class_names, path, *, score_threshold):
        assert list(class_names) == ["lying", "standing"]
        for image, found in images_with_results:
            assert found.image_size == ((0, 0) if image["image_id"] == 2 else (64, 96))
            drawn[image["image_id"]] = list(
                zip(found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), found.scores)
            )
        Image.new("RGB", (30, 20), (255, 0, 0)).save(path)

    monkeypatch.setattr(training_predictions, "predictions_beside_ground_truth", draw)
    test = SimpleNamespace(OUTPUT_DIR=str(tmp_path), DATASETS=SimpleNamespace(TEST=("seen",)))
    trainer = SimpleNamespace(cfg=test, put_image=lambda *args: put.append(args))
    catalog = DatasetCatalog.get("seen")
    unsized = {k: v for k, v in catalog[2].items() if k not in ("height", "width")}
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [*catalog[:2], unsized, *catalog[3:]])
    try:
        training_predictions.draw_predictions(trainer)
    finally:
        DatasetCatalog.remove("seen")
        MetadataCatalog.pop("seen")
    assert len(drawn) == training_predictions.NUM_IMAGES
    assert drawn[1] == [([10, 20, 40, 25], 1, 0.75), ([7, 0, 9, 60], 0, 0.25)]
    assert drawn[0] == [([1, 2, 4, 6], 0, 0.5)]
    assert drawn[2] == []
    [(name, shown)] = put
    assert name == "predictions" and shown.shape == (20, 30, 3)
    assert (shown == (255, 0, 0)).all()


def test_pictures_of_a_training(shapes, tmp_path):  # noqa: F811
    """predictions.png is of the last evaluation; TensorBoard has that of each, under its step."""
    run(shapes, tmp_path, opts=["TEST.EVAL_PERIOD", 4])
    pictures = {name: pixels(tmp_path / name) for name in ("predictions.png", "train_images.jpg")}
    assert pictures["predictions.png"].std() > 5
    if TOOLBOX != "detectron2" or importlib.util.find_spec("tensorboard") is None:
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    images = {tag: events.Images(tag) for tag in events.Tags()["images"]}
    assert {tag: [image.step for image in found] for tag, found in images.items()} == {
        "predictions": [3, 8],
        "training images": [0],
    }
    for tag, name in (("predictions", "predictions.png"), ("training images", "train_images.jpg")):
        last = pixels(io.BytesIO(images[tag][-1].encoded_image_string))
        np.testing.assert_array_equal(last, pictures[name])


def pixels(file):
    """(H, W, 3)"""
    return np.asarray(Image.open(file).convert("RGB"))
