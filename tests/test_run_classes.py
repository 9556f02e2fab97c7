"""A checkpoint knows its classes by name, and evaluation follows them."""

import json

import torch
import yaml

from .fork_server import python
from .test_training import last_checkpoint, run, shapes  # noqa: F401


def evaluate(output, json_file, images, expected=0):
    words = ["eval", output, "--dataset", "other", json_file, images]
    words += ["DATASETS.TRAIN", "()", "DATASETS.TEST", "('other',)"]
    status, log = python("-m", "detectron2_ddetr.cli", *words)
    assert status == expected, log[-6000:]
    if expected:
        return log
    return json.loads((output / "eval" / "coco_instances_results.json").read_text())


def test_evaluation_follows_the_names_in_the_checkpoint(shapes, tmp_path):  # noqa: F811
    """Whatever ids a test set gives to the classes, and without the training set."""
    output = tmp_path / "run"
    run(shapes, output, opts=["SOLVER.MAX_ITER", 1])
    assert last_checkpoint(output)["class_names"] == ["lying", "standing"]

    content = json.loads((shapes / "shapes.json").read_text())
    as_trained = evaluate(output, shapes / "shapes.json", shapes)
    for record in content["categories"]:
        record["id"] = 3 - record["id"]
    for annotation in content["annotations"]:
        annotation["category_id"] = 3 - annotation["category_id"]
    renumbered = tmp_path / "renumbered.json"
    renumbered.write_text(json.dumps(content))
    found = evaluate(output, renumbered, shapes)
    assert {r["category_id"] for r in as_trained} == {1, 2}
    assert [{**r, "category_id": 3 - r["category_id"]} for r in found] == as_trained

    # The config of the run knows them too, for a checkpoint of another program.
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["DATASETS"]["CLASS_NAMES"] == ["lying", "standing"]
    checkpoint = last_checkpoint(output)
    del checkpoint["class_names"]
    torch.save(checkpoint, output / (output / "last_checkpoint").read_text())
    assert evaluate(output, renumbered, shapes) == found

    for record in content["categories"]:
        record["name"] = f"no longer {record['name']}"
    renumbered.write_text(json.dumps(content))
    text = evaluate(output, renumbered, shapes, expected=1)
    assert "error: data set 'other'" in text
    assert "DATASETS.CLASS_NAMES has lying, standing" in text
    assert "Traceback" not in text
