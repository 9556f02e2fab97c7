"""A checkpoint knows its classes by name, and evaluation follows them."""

import json
import subprocess
import sys

import torch
import yaml

from .conftest import ROOT
from .test_training import command, last_checkpoint, run, shapes  # noqa: F401


def evaluate(output, json_file, images, expected=0):
    words = [sys.executable, "-m", "detectron2_ddetr.cli", "eval", str(output)]
    words += ["--dataset", "other", str(json_file), str(images)]
    words += ["DATASETS.TRAIN", "()", "DATASETS.TEST", "('other',)"]
    _, env = command(images, output)
    done = subprocess.run(words, env=env, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == expected, done.stdout[-3000:] + done.stderr[-3000:]
    if expected:
        return done.stdout + done.stderr
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
