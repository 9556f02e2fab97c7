"""Exported files: each beside its model, its report, its class table, and what is refused."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detectron2_ddetr.engine.trained_model import TrainedModel
from detectron2_ddetr.errors import InputError, MissingFileError
from detectron2_ddetr.export import check, export_model, load_predictor
from detectron2_ddetr.export.formats import FORMATS
from detectron2_ddetr.toolbox import Boxes, Instances

from .conftest import DATA, FAMILY
from .test_export_graph import cfg_of, model_of

NAMES, IDS = ["red", "white", "platelet"], [3, 1, 7]
CELLS = sorted(map(str, (DATA / "val").glob("*.jpg")))[:2]
TABLE = [{"row": row, "id": i, "name": name} for row, (i, name) in enumerate(zip(IDS, NAMES))]


def export(variant, format, folder, **options):
    """The report, and the path of the file."""
    path = str(folder / f"model{FORMATS[format].SUFFIX}")
    trained = TrainedModel(model_of(variant), NAMES, IDS)
    samples = options.pop("samples", check.Samples(CELLS))
    return export_model(cfg_of(variant), trained, path, samples, format=format, **options), path


def needs(format):
    """Skips where the packages of a format are not there."""
    if format in ("onnx", "tensorrt"):
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason=f"an ONNX file needs {name}")


@pytest.mark.parametrize(
    ("variant", "format", "size"),
    [
        *((variant, "torchscript", None) for variant in [*FAMILY, "dcn"]),
        ("single_scale", "torch.export", None),
        ("lite", "torch.export", None),
        ("dat", "torch.export", (96, 128)),
        ("dat", "onnx", (96, 128)),
        ("h", "onnx", (96, 128)),
        ("detr", "onnx", None),
        ("dcn", "onnx", None),
    ],
)
def test_file(variant, format, size, tmp_path):
    """It is what the model is, and says so in its report."""
    needs(format)
    report, path = export(variant, format, tmp_path, size=size)
    found = report["check"]
    assert found["images"] == 2 and found["detections"] > 20
    assert found["share_within_tolerance"] == 1 and found["without_counterpart"] == 0
    assert found["largest_score_difference"] < 1e-4 and found["largest_box_difference_px"] < 0.01
    assert json.loads(Path(f"{path}.json").read_text()) == json.loads(json.dumps(report))
    assert report["classes"] == TABLE and report["bytes"] == Path(path).stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        Path(path).name,
        Path(path).name + ".json",
    ]


@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_predictor_of_a_file(format, tmp_path):
    """It predicts with the names of classes."""
    needs(format)
    _, path = export("single_scale", format, tmp_path)
    predictor = load_predictor(path, classes=["white"], score_threshold=0.0)
    assert (predictor.class_names, predictor.category_ids) == (NAMES, IDS)
    plain = predictor.plain(CELLS[0])
    assert (plain["width"], plain["height"]) == (640, 480)
    assert {row["class"] for row in plain["detections"]} <= {"white"}


@pytest.mark.parametrize("format", ["torchscript"])
def test_batches_of_a_program(format, tmp_path):
    """Two images in a batch are what they are one by one."""
    _, path = export("multi_scale", format, tmp_path)
    one, two = load_predictor(path), load_predictor(path, batch_size=2)
    for a, b in zip(one(CELLS), two(CELLS)):
        found = check.differences(a, b)
        assert len(found.boxes) > 5 and found.within(1e-4).all()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_precision(precision, tmp_path):
    """Weights are of 16 bits, boxes and scores are not."""
    report, path = export("multi_scale", "torchscript", tmp_path, precision=precision)
    whole, _ = export("multi_scale", "torchscript", _made(tmp_path / "whole"))
    assert report["bytes"] < 0.75 * whole["bytes"] and report["precision"] == precision
    assert report["check"]["largest_score_difference"] > 0
    instances = load_predictor(path)(CELLS[0])
    assert instances.scores.dtype == instances.pred_boxes.tensor.dtype == torch.float32


def _made(folder):
    folder.mkdir()
    return folder


def test_class_table_is_inside(tmp_path):
    """Also for those who open the file with nothing of this package."""
    _, path = export("single_scale", "torchscript", tmp_path)
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("extra/detectron2_ddetr")]
        assert json.loads(archive.read(name))["classes"] == TABLE


def test_onnx_metadata_and_names(tmp_path):
    """Inputs, outputs and their axes have names; no path of this machine is in the file."""
    needs("onnx")
    import onnx

    _, path = export("single_scale", "onnx", tmp_path)
    model = onnx.load(path)
    (entry,) = [p for p in model.metadata_props if p.key == "detectron2_ddetr"]
    assert json.loads(entry.value)["classes"] == TABLE
    axes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes["images"] == ["batch", 3, "height", "width"] and axes["sizes"] == ["batch", 2]
    assert axes["boxes"][0] == "batch" and axes["boxes"][2] == 4
    assert b"site-packages" not in Path(path).read_bytes()
    names = [x.name for x in model.graph.initializer]
    assert names and not any("label_enc" in name or "denoising" in name for name in names)


def test_tensorrt(tmp_path):
    """One node of the plugin for each layer, with the shapes that it asks for."""
    needs("tensorrt")
    import onnx

    report, path = export("two_stage", "tensorrt", tmp_path, size=(96, 128))
    nodes = report["check"]["shapes_of_attention"]
    cells = 12 * 16 + 6 * 8
    assert [node["value"][1:] for node in nodes] == [[cells, 4, 8]] * 3  # 1 + 2 layers
    queries = [cells, 12, 12]
    for node, number in zip(nodes, queries):
        assert node["spatial_shapes"] == [2, 2] and node["level_start_index"] == [2]
        assert node["sampling_locations"][1:] == [number, 4, 2, 4, 2]
        assert node["weights"][1:] == [number, 4, 2, 4]
    types = {node.op_type for node in onnx.load(path).graph.node}
    assert "MultiscaleDeformableAttnPlugin_TRT" in types and "GridSample" not in types
    with pytest.raises(InputError, match="onnxruntime cannot run it"):
        load_predictor(path)


def test_package_of_aot_inductor(tmp_path):
    """Of a small program: a detector takes minutes to compile."""
    form = FORMATS["aotinductor"]
    try:
        form.refuse(None, None, "float32")
    except InputError as error:
        pytest.skip(str(error))
    path = str(tmp_path / "model.pt2")
    form.write(torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),)), path, "said")
    run, text = form.load(path)
    assert text == "said" and run(torch.ones(1, 3)).shape == (1, 2)
    with pytest.raises(InputError, match="no description of its classes"):
        load_predictor(path)


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="ends in .onnx"):
        trained = TrainedModel(model_of("single_scale"), NAMES, IDS)
        export_model(
            cfg_of("single_scale"), trained, str(tmp_path / "x.pt"), check.Samples(CELLS),
            format="onnx",
        )  # fmt: skip
    with pytest.raises(InputError, match="2 to 10000 px, got"):
        export("single_scale", "torchscript", tmp_path, size=(0, 64))
    with pytest.raises(InputError, match="constants of the number of images and windows of DAT"):
        export("dat", "torchscript", tmp_path)
    with pytest.raises(InputError, match="no image to compare"):
        export("single_scale", "torchscript", tmp_path, samples=check.Samples([]))
    monkeypatch.setenv("CXX", "no_such_compiler")
    with pytest.raises(InputError, match="no no_such_compiler: install one"):
        export("single_scale", "aotinductor", tmp_path)
    with pytest.raises(MissingFileError, match="no such file"):
        load_predictor(tmp_path / "model.ts")
    (tmp_path / "text.pt2").write_text("text")
    with pytest.raises(InputError, match="no file of `ddetr export`"):
        load_predictor(tmp_path / "text.pt2")
    (tmp_path / "model.ts").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        export("single_scale", "torchscript", tmp_path)
    assert (tmp_path / "model.ts").read_text() == "mine"


def test_refusals_of_onnx(tmp_path):
    needs("onnx")
    with pytest.raises(InputError, match="no convolutions in bfloat16"):
        export("single_scale", "onnx", tmp_path, precision="bfloat16")
    with pytest.raises(InputError, match="windows of DAT.*--size"):
        export("dat", "onnx", tmp_path)
    with pytest.raises(InputError, match="TensorRT chooses its precision"):
        export("single_scale", "tensorrt", tmp_path, precision="float16")


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    """Such as one whose boxes are shifted."""
    form = FORMATS["torchscript"]

    def other(graph, size):
        graph.head.bbox_embed[-1].layers[-1].bias.add_(1)
        return trace(graph, size)

    trace = form.trace
    monkeypatch.setattr(form, "trace", other)
    with pytest.raises(InputError, match="was not kept.*Take another --format"):
        export("single_scale", "torchscript", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_too_large_are_refused(tmp_path):
    _, path = export("single_scale", "torchscript", tmp_path, size=(64, 96))
    predictor = load_predictor(path)
    with pytest.raises(InputError, match="it is 65x10 px.*at most 64x96 px"):
        predictor.model([{"image": torch.zeros(3, 65, 10, dtype=torch.uint8)}])
    # An upright image is fitted, as it is shaped.
    assert predictor(np.zeros((200, 100, 3), np.uint8)).image_size == (200, 100)


def instances_of(boxes, scores, labels):
    found = Instances((100, 200))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(labels)
    return found


A, B, C = [0, 0, 10, 10], [50, 50, 90, 80], [20, 20, 30, 40]


def test_differences():
    """By what is alike, not by rank."""
    reference = instances_of([A, B], [0.7001, 0.7], [0, 1])
    found = check.differences(reference, instances_of([B, A], [0.7002, 0.7], [1, 0]))
    np.testing.assert_allclose(found.boxes_px, [0, 0])
    np.testing.assert_allclose(found.scores, [0.0001, 0.0002], atol=1e-6)
    reference = instances_of([A, B, C], [0.8, 0.7, 0.6], [0, 1, 0])
    other = instances_of([A, [50, 50, 94, 80], C], [0.8, 0.7, 0.6], [0, 1, 0])
    moved = check.differences(reference, other)
    np.testing.assert_allclose(moved.boxes_px, [0, 4, 0])
    np.testing.assert_allclose(moved.boxes, [0, 4 / 200, 0])


def test_differences_of_what_is_not_found():
    """Another class is no counterpart; of the last ones either may be there."""
    reference = instances_of([A, B], [0.7, 0.6], [0, 1])
    found = check.differences(reference, instances_of([A, B], [0.7, 0.5], [0, 0]))
    assert np.isinf(found.boxes[1]) and found.scores[1] == pytest.approx(0.6)
    last = check.differences(reference, instances_of([A, C], [0.7, 0.600001], [0, 0]))
    assert len(last.boxes) == 1 and last.within(1e-6).all()
    nothing = check.differences(reference, instances_of([], [], []))
    assert len(nothing.boxes) == 2 and np.isinf(nothing.boxes).all()
