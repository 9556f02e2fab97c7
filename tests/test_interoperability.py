"""What detectron2 has works with our models; what a project needs is the plugin alone."""

import ast
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr import Predictor, load_config, model_zoo
from detectron2_ddetr.checkpoint.files import load_checkpoint_file
from detectron2_ddetr.toolbox import TOOLBOX

from .conftest import ROOT
from .test_cross_toolbox import write_dataset
from .test_gradients import BATCHES, without_gradient
from .test_predictor import CELLS, NAMES, assert_same, run  # noqa: F401  (a fixture)
from .test_readme import THIN, run_script

needs_detectron2 = pytest.mark.skipif(TOOLBOX != "detectron2", reason="it is about detectron2")


def repository():
    """That of detectron2, with its tools and configs."""
    import detectron2

    root = Path(detectron2.__file__).parents[1]
    if not (root / "tools" / "deploy").is_dir():
        pytest.skip(f"this detectron2 is installed without its repository: no {root}/tools")
    return root


@needs_detectron2
def test_predictor_and_visualizer_of_detectron2(run):  # noqa: F811
    """The same detections as those of our predictor, and drawn with their names and frames."""
    from detectron2.data import MetadataCatalog
    from detectron2.engine import DefaultPredictor
    from detectron2.utils.visualizer import Visualizer

    model = ["MODEL.WEIGHTS", str(run / "model_final.pth")]
    cfg = load_config(str(run / "config.yaml"), model)
    image = cv2.imread(CELLS[0])
    assert image.shape[:2] == (480, 640)  # 96 x 128 by all rules
    found = DefaultPredictor(cfg)(image)["instances"]
    # The predictor has the form for inference of the model.
    assert_same(found, Predictor(cfg)(image), boxes=1e-3, scores=1e-5)
    best = found[:2]
    np.random.seed(0)  # of which it draws its colours; some are black, as the picture is here
    metadata = MetadataCatalog.get("interoperability").set(thing_classes=NAMES)
    drawing = Visualizer(np.zeros_like(image), metadata).draw_instance_predictions(best)
    pixels = drawing.get_image()
    assert pixels.shape == image.shape
    said = {text.get_text().split()[0] for text in drawing.ax.texts}
    assert said == {NAMES[label] for label in best.pred_classes.tolist()}
    for box in best.pred_boxes.tensor.tolist():
        x0, y0, x1, y1 = (int(min(max(v, 2), most)) for v, most in zip(box, (637, 477) * 2))
        for x, y in (((x0 + x1) // 2, y1), (x0, (y0 + y1) // 2), (x1, (y0 + y1) // 2)):
            assert pixels[y - 2 : y + 3, x - 2 : x + 3].any()


@needs_detectron2
@pytest.mark.filterwarnings("ignore")
def test_deployment_script_of_detectron2(run, tmp_path):  # noqa: F811
    """As it stands, but for the keys of this package in its config."""
    script = (repository() / "tools" / "deploy" / "export_model.py").read_text()
    line = "    add_pointrend_config(cfg)\n"
    assert line in script
    script = script.replace(line, f"{line}    add_deformable_detr_config(cfg)\n")
    mine = "from detectron2_ddetr import add_deformable_detr_config\n"
    (tmp_path / "export_model.py").write_text(mine + script)
    weights = ["MODEL.WEIGHTS", str(run / "model_final.pth")]
    arguments = ["--config-file", str(run / "config.yaml"), "--sample-image", CELLS[0]]
    run_script(
        "export_model.py", tmp_path, *arguments, "--output", "out", *weights, "MODEL.DEVICE", "cpu"
    )
    program = torch.jit.load(tmp_path / "out" / "model.ts")
    predictor = Predictor.from_run(run)
    image = cv2.imread(CELLS[1])[:400]
    resized, _ = predictor.mapper.augmented(image, "an image")
    with torch.no_grad():
        (eager,) = predictor.model([{"image": resized}])
        boxes, labels, scores, size = program(resized.float())
    eager = eager["instances"]
    assert tuple(size.tolist()) == eager.image_size
    assert_close(boxes, eager.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
    assert_close(scores, eager.scores)
    assert_close(labels, eager.pred_classes)


def swin(backbone):
    """That of a pyramid, on a small Swin transformer."""
    from detectron2.config import LazyCall
    from detectron2.modeling import SwinTransformer

    sizes = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}
    backbone.bottom_up = LazyCall(SwinTransformer)(**sizes, drop_path_rate=0.0)
    backbone.in_features = ["p0", "p1", "p2", "p3"]


#: A LazyConfig of detectron2, what makes its backbone small, and what it is made into.
LAZY = {
    "pyramid on ResNet": ("mask_rcnn_fpn.py", ["out_channels=16"], None),
    "pyramid on Swin": ("mask_rcnn_fpn.py", ["out_channels=16"], swin),
    "ViT": (
        "mask_rcnn_vitdet.py",
        ["net.img_size=160", "net.embed_dim=24", "net.depth=2", "net.num_heads=2", "square_pad=0"]
        + ["net.window_size=4", "net.window_block_indexes=[0]", "net.drop_path_rate=0.0"]
        + ["out_channels=16"],
        None,
    ),
}


@needs_detectron2
@pytest.mark.parametrize("name", LAZY)
def test_backbones_of_its_lazy_configs(name):
    """Taken from its own files into one of ours; all that is trained has a gradient."""
    from detectron2.config import LazyConfig, instantiate

    if name == "ViT":
        pytest.importorskip("timm", reason="detectron2's ViT needs timm")
    file, thin, change = LAZY[name]
    theirs = LazyConfig.load(str(repository() / "configs" / "common" / "models" / file))
    thin = [f"model.backbone.{override}" for override in thin]
    backbone = LazyConfig.apply_overrides(theirs, thin).model.backbone
    if change is not None:
        change(backbone)
    ours = LazyConfig.load(model_zoo.get_config_file("quick_start.py"))
    ours.model.backbone, ours.model.in_features = backbone, ["p3", "p4", "p5"]
    ours.model.head.input_proj.in_channels = [16] * 3
    model = instantiate(ours.model).train()
    for batch in BATCHES.values():
        assert without_gradient(model, batch()) == []
    with torch.no_grad():
        (result,) = model.eval()(BATCHES["boxes"]()[:1])
    assert len(result["instances"]) > 0


def test_a_project_that_knows_the_plugin_alone(tmp_path):
    """Own data, own criterion by name; trains, evaluates and predicts, on either toolbox."""
    source = (ROOT / "tests" / "downstream_project.py").read_text()
    modules = {n.module for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)}
    assert modules == {"detectron2_ddetr"} and len(source.splitlines()) <= 40
    write_dataset(tmp_path)
    files = [str(tmp_path / "a.json"), str(tmp_path), str(tmp_path / "out")]
    script = str(ROOT / "tests" / "downstream_project.py")
    opts = ["MODEL.DETR.NUM_CLASSES", "3", "SEED", "1", *THIN, "TEST.EVAL_PERIOD", "2"]
    said = run_script(script, tmp_path, *files, str(tmp_path / "0.png"), *opts)
    (row,) = (ast.literal_eval(line) for line in said.splitlines() if line.startswith("{'image'"))
    assert row["image"].endswith("0.png") and row["detections"]
    assert {d["class"] for d in row["detections"]} <= {"class 1", "class 2", "class 3"}
    checkpoint = load_checkpoint_file(str(tmp_path / "out" / "model_final.pth"))
    assert "CRITERION: build_gentle_criterion" in checkpoint["trainer"]["config"]
