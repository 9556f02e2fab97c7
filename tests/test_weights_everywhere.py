"""Weights of every family reach the model alike, whoever loads them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from detectron2_ddetr import Checkpointer, convert_official_state_dict
from detectron2_ddetr.checkpoint.coco_classes import COCO_CATEGORY_IDS
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import TOOLBOX, DetectionCheckpointer, build_model

from . import golden_cases as golden
from .conftest import VARIANTS, small_cfg
from .test_building import batch

NODE = "MODEL.DETR."
#: A ResNet-50 whose convolutions are narrow, with the outer widths that torchvision fixes.
THIN = {"STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": 256, "WIDTH_PER_GROUP": 8}
THIN = [x for key, value in THIN.items() for x in (f"MODEL.RESNETS.{key}", value)]
needs_detectron2 = pytest.mark.skipif(TOOLBOX != "detectron2", reason="of detectron2")


def build(*opts, **kwargs):
    torch.manual_seed(0)
    return build_model(small_cfg(*THIN, *opts, **kwargs))


@pytest.fixture(scope="module")
def resnet():
    """torchvision's, with BatchNorms that do something."""
    torch.manual_seed(1)
    model = ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=8).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@torch.no_grad()
def check_features(backbone, resnet, names=("res3", "res4", "res5")):
    """The backbone computes what torchvision's model does."""
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    features = backbone.eval()(x)
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
    for i in range(1, 5):
        x = getattr(resnet, f"layer{i}")(x)
        if f"res{i + 1}" in names:
            # Folded statistics leave out the epsilon of the variance, as detectron2 does.
            assert (features[f"res{i + 1}"] - x).abs().max() < 2e-4 * x.abs().max()


def detectron2_names(resnet):
    """As detectron2's tools/convert-torchvision-to-d2.py writes them."""
    renamed = {}
    for name, value in resnet.state_dict().items():
        name = name if "layer" in name else f"stem.{name}"
        for i in (1, 2, 3, 4):
            name = name.replace(f"layer{i}", f"res{i + 1}").replace(f"bn{i}", f"conv{i}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[name] = value.numpy()
    return renamed


def caffe2_names(resnet, folded):
    """As Detectron's R-50.pkl has them; statistics may be folded into scale and bias."""
    renamed = {"fc1000_w": resnet.fc.weight.detach().numpy()}
    convs = [("conv1", "res_conv1", resnet.conv1, resnet.bn1)]
    for i in range(1, 5):
        for k, block in enumerate(getattr(resnet, f"layer{i}")):
            branches = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
            branches += [(block.conv3, block.bn3), *([block.downsample] if k == 0 else [])]
            for branch, (conv, bn) in zip(("2a", "2b", "2c", "1"), branches):
                convs.append((*[f"res{i + 1}_{k}_branch{branch}"] * 2, conv, bn))
    for name, norm, conv, bn in convs:
        values = {"s": bn.weight, "b": bn.bias, "rm": bn.running_mean, "riv": bn.running_var}
        if folded:
            scale = bn.weight / (bn.running_var + bn.eps).sqrt()
            values = {"s": scale, "b": bn.bias - bn.running_mean * scale}
        renamed[f"{name}_w"] = conv.weight.detach().numpy()
        renamed[f"{name}_w_momentum"] = conv.weight.detach().numpy()
        renamed |= {f"{norm}_bn_{k}": v.detach().numpy() for k, v in values.items()}
    return renamed


def backbone_file(family, resnet, folder):
    """The path of a file of one family with the weights of `resnet`."""
    state = resnet.state_dict()
    pickles = {
        "detectron2": lambda: {
            "model": detectron2_names(resnet),
            "__author__": "torchvision",
            "matching_heuristics": True,
        },
        "caffe2": lambda: caffe2_names(resnet, folded=False),
        "caffe2_folded": lambda: caffe2_names(resnet, folded=True),
        "caffe2_blobs": lambda: {"blobs": caffe2_names(resnet, folded=True), "cfg": "MODEL: 1"},
    }
    detector = {f"backbone.bottom_up.{k}": v for k, v in detectron2_names(resnet).items()}
    detector |= {"backbone.fpn_lateral3.weight": state["fc.weight"].numpy()}
    detector |= {"proposal_generator.rpn_head.conv.weight": state["fc.weight"].numpy()}
    body = {f"backbone.body.{k}": v for k, v in state.items() if not k.startswith("fc.")}
    pickles["detectron2_detector"] = lambda: {"model": detector, "__author__": "Detectron2"}
    if family in pickles:
        path = folder / f"{family}.pkl"
        path.write_bytes(pickle.dumps(pickles[family]()))
        return str(path)
    contents = {
        "torchvision": state,
        "state_dict": {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
        "model_state_dict": {"model_state_dict": state, "best": 0.5},
        "module": {"model": {f"module.{k}": v for k, v in state.items()}},
        "net": {"net": {f"module.encoder.{k}": v for k, v in state.items()}},
        "other_name": {"weights_of_mine": state, "epoch": 3, "args": {"lr": 0.1}},
        "lightning": {"state_dict": {f"model.{k}": v for k, v in state.items()}, "callbacks": {}},
        "torchvision_detector": {
            **body,
            "backbone.fpn.inner_blocks.0.0.weight": state["fc.weight"],
            "roi_heads.box_head.fc6.weight": state["fc.weight"],
        },
        "bare": {k: torch.from_numpy(v) for k, v in detectron2_names(resnet).items()},
    }
    torch.save(contents[family], folder / f"{family}.pth")
    return str(folder / f"{family}.pth")


FAMILIES = ["torchvision", "state_dict", "model_state_dict", "module", "net", "other_name"]
FAMILIES += ["lightning", "bare", "detectron2", "detectron2_detector", "torchvision_detector"]
FAMILIES += ["caffe2", "caffe2_folded", "caffe2_blobs"]


@pytest.mark.parametrize("family", FAMILIES)
def test_our_checkpointer(family, resnet, tmp_path, caplog):
    """All of the backbone, and nothing else; no weights for an evaluation."""
    path, model = backbone_file(family, resnet, tmp_path), build()
    head = copy.deepcopy(model.head.state_dict())
    with pytest.raises(InputError, match="of a backbone, not a trained detector"):
        Checkpointer(model, needs_head=True).load(path)
    extra = Checkpointer(model).load(path, checkpointables=[])
    assert not extra.keys() & {"model", *resnet.state_dict(), "fc1000_w", "blobs", "net"}
    assert extra.get("epoch", 3) == 3
    warned = "STRIDE_IN_1X1" in caplog.text  # they come from other pixels
    assert warned == (family.startswith("caffe2") or family == "detectron2_detector")
    check_features(model.backbone, resnet)
    assert all(torch.equal(v, head[k]) for k, v in model.head.state_dict().items())
    assert model.train()(batch())


@needs_detectron2
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["torchvision", "module", "bare", "detectron2", "caffe2_folded"])
def test_checkpointer_of_detectron2(family, resnet, tmp_path):
    model = build()
    DetectionCheckpointer(model).resume_or_load(backbone_file(family, resnet, tmp_path))
    check_features(model.backbone, resnet)
    assert model.train()(batch())


@needs_detectron2
@pytest.mark.parametrize("checkpointer", [Checkpointer, DetectionCheckpointer])
@pytest.mark.parametrize("family", ["torchvision", "bare", "detectron2", "caffe2_folded"])
def test_feature_pyramid(checkpointer, family, resnet, tmp_path):
    """The ResNet inside is filled, the pyramid on top is new."""
    opts = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 24]
    opts += ["MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]]
    model = build(*opts, NODE + "IN_FEATURES", ["p3", "p4", "p5"])
    pyramid = model.backbone.fpn_lateral3.weight.clone()
    checkpointer(model).load(backbone_file(family, resnet, tmp_path), checkpointables=[])
    check_features(model.backbone.bottom_up, resnet)
    assert torch.equal(pyramid, model.backbone.fpn_lateral3.weight)
    assert model.train()(batch())


def test_any_load_state_dict(resnet):
    """Strict or not, and inside another module."""
    model = build()
    wrapped = nn.ModuleDict({"detector": model})
    for target, state in (
        (model, resnet.state_dict()),
        (model, {f"module.{k}": v for k, v in resnet.state_dict().items()}),
        (wrapped, {f"detector.{k}": v for k, v in resnet.state_dict().items()}),
    ):
        nn.init.zeros_(model.backbone.res4[1].conv2.weight)
        keys = list(state)
        target.load_state_dict(state, strict=False)
        assert list(state) == keys
        check_features(model.backbone, resnet)
    own = {f"model.{k}": v for k, v in build().state_dict().items()}
    model.load_state_dict(own)
    assert all(torch.equal(v, own[f"model.{k}"]) for k, v in model.state_dict().items())


def test_a_batch_norm_that_counts(resnet):
    """Its counters start at zero; a stage that the model lacks stays away."""
    opts = ["MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"]]
    opts += ["MODEL.BACKBONE.FREEZE_AT", 0]
    model = build(*opts, NODE + "IN_FEATURES", ["res3", "res4"])
    incompatible = model.load_state_dict(resnet.state_dict(), strict=False)
    assert not incompatible.unexpected_keys
    assert not [key for key in incompatible.missing_keys if not key.startswith("head.")]
    check_features(model.backbone, resnet, ["res3", "res4"])


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
@pytest.mark.parametrize("num_classes", [80, 91])
def test_official_checkpoints(variant, num_classes, tmp_path):
    """Without converting first: all rows for 91 classes, those of COCO's classes for 80."""
    import argparse

    case = golden.load(f"model_{variant}")
    official = golden.official_state_dict(variant, case["config"]["seed"])
    path = str(tmp_path / "official.pth")
    torch.save({"model": official, "args": argparse.Namespace(lr=1.0), "epoch": 49}, path)
    cfg = golden.config(variant, case)
    cfg.MODEL.DETR.NUM_CLASSES = num_classes
    expected = convert_official_state_dict(
        official, class_ids=COCO_CATEGORY_IDS if num_classes == 80 else None
    )
    loaders = [Checkpointer(build_model(cfg), needs_head=True)]
    loaders += [DetectionCheckpointer(build_model(cfg))] * (variant == "multi_scale")
    for checkpointer in loaders:
        checkpointer.load(path, checkpointables=[])
        for name, value in checkpointer.model.state_dict().items():
            if "_embed.0." not in name or variant == "two_stage":  # shared heads: the last one
                assert torch.equal(value, expected[name]), name


def test_converted_weights_must_fit_completely(resnet):
    """Whoever loads them, strict or not."""
    state = resnet.state_dict()
    del state["layer3.1.conv2.weight"]
    with pytest.raises(InputError, match="torchvision.*missing.*res4.1.conv2.weight"):
        build().load_state_dict(state, strict=False)
    deeper = ResNet(Bottleneck, [3, 4, 23, 3], width_per_group=8).state_dict()
    with pytest.raises(InputError, match="torchvision.*has a ResNet-101, the config .*DEPTH 50"):
        build().load_state_dict(deeper, strict=False)
    with pytest.raises(InputError, match="another shape"):
        build("MODEL.RESNETS.WIDTH_PER_GROUP", 16).load_state_dict(resnet.state_dict(), False)


@pytest.mark.parametrize(
    "names, words",
    [
        (["features.0.weight", "features.3.weight"], "none of its 2 tensors.*features.0.weight"),
        (["bbox_head.fc_cls.weight", "neck.conv.weight"], "mmdetection"),
        (["backbone.stem.conv1.weight", "transformer.encoder.layers.0.attentions.0.x"], "detrex"),
        (["model.backbone.conv_encoder.model.x", "class_labels.weight"], "Hugging Face"),
        (["detr.class_embed.weight", "bbox_attention.q_linear.weight"], "of DETR with masks that"),
    ],
)
def test_weights_of_nothing_known_are_refused(names, words, tmp_path):
    """By whoever loads them, and named where they are known."""
    state, model = {name: torch.zeros(2) for name in names}, build()
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=words):
        model.load_state_dict(state, strict=False)
    with pytest.raises(InputError, match=f"other.pth.*{words}"):
        Checkpointer(model).load(str(tmp_path / "other.pth"))
    with pytest.raises(InputError, match=words):
        DetectionCheckpointer(model).load(str(tmp_path / "other.pth"))


def test_kinds_of_heads_are_told_apart(tmp_path):
    """Also by detectron2's checkpointer, which does not see the entries beside the weights."""
    Checkpointer(build(), str(tmp_path)).save("shared")
    refining = build(config=VARIANTS["refine"])
    with pytest.raises(InputError, match="WITH_BOX_REFINE False, the config has True"):
        DetectionCheckpointer(refining).load(str(tmp_path / "shared.pth"))
    model = build(NODE + "NUM_QUERIES", 12)
    DetectionCheckpointer(model).load(str(tmp_path / "shared.pth"))
    state = build().state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@needs_detectron2
@pytest.mark.filterwarnings("ignore")
def test_trainer_and_predictor_of_detectron2(resnet, tmp_path):
    """They know nothing of us; without weights the trainer stops before anything is updated."""
    from detectron2.engine import DefaultPredictor, DefaultTrainer

    class PlainTrainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return [batch()] * 3

    cfg = small_cfg(*THIN, "SOLVER.CLIP_GRADIENTS.ENABLED", False, "SOLVER.MAX_ITER", 1)
    cfg.merge_from_list(["DATASETS.TEST", (), "OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", 1e-4])
    trainer = PlainTrainer(cfg)
    trainer.resume_or_load(resume=False)
    with pytest.raises(InputError, match="stem.conv1.*FREEZE_AT 0"):
        trainer.train()
    assert not list(tmp_path.glob("*.pth"))
    cfg.MODEL.WEIGHTS = backbone_file("torchvision", resnet, tmp_path)
    trainer = PlainTrainer(cfg)
    trainer.resume_or_load(resume=False)
    check_features(trainer.model.backbone, resnet)
    trainer.model.train()
    trainer.train()
    frozen = trainer.model.backbone.stem.conv1
    assert torch.equal(frozen.weight, resnet.conv1.weight)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    predictor = DefaultPredictor(cfg)
    state = trainer.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in predictor.model.state_dict().items())
