"""The embedded host against closed forms, on images that are not square."""

import numpy as np
import pytest
import torch

from detectron2_ddetr.host import comm, data, modeling, structures, transforms
from detectron2_ddetr.host.config import CfgNode, configurable, get_cfg


def test_config_is_strict_and_safe(tmp_path):
    cfg = get_cfg()
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 7, STEPS: [3, 5]}\n")
    (tmp_path / "a.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}\n")
    cfg.merge_from_file(str(tmp_path / "a.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (8, (3, 5))
    assert get_cfg().SOLVER.MAX_ITER == 40000
    (tmp_path / "b.yaml").write_text("SOLVER: {NO_SUCH_KEY: 8}\n")
    with pytest.raises(KeyError, match="NO_SUCH_KEY"):
        cfg.merge_from_file(str(tmp_path / "b.yaml"))
    (tmp_path / "c.yaml").write_text("OUTPUT_DIR: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(Exception, match="could not determine a constructor"):
        cfg.merge_from_file(str(tmp_path / "c.yaml"))


OUT_OF_SCOPE = {"MODEL.MASK_ON": True, "VERSION": 1, "SOLVER.WARMUP_METHOD": "constant"}


@pytest.mark.parametrize("key, value", OUT_OF_SCOPE.items())
def test_what_is_out_of_scope_raises(key, value):
    cfg = get_cfg()
    cfg.merge_from_list([key, value])
    with pytest.raises(NotImplementedError, match=f"{key} {value} needs detectron2"):
        modeling.build_model(cfg)


class _Configurable:
    @configurable
    def __init__(self, a, b=2, *, c=3):
        self.values = (a, b, c)

    @classmethod
    def from_config(cls, cfg, scale=1):
        return {"a": cfg.A * scale, "c": 5}


def test_configurable():
    cfg = CfgNode({"A": 10})
    assert _Configurable(1).values == (1, 2, 3)
    assert _Configurable(cfg).values == _Configurable(cfg=cfg).values == (10, 2, 5)
    assert _Configurable(cfg, scale=2, b=7).values == (20, 7, 5)


def test_clip_is_height_first():
    boxes = structures.Boxes(torch.tensor([[-1.0, -2.0, 100.0, 100.0]]))
    boxes.clip((10, 30))
    assert boxes.tensor.tolist() == [[0, 0, 30, 10]]
    boxes.scale(2, 0.5)
    assert boxes.tensor.tolist() == [[0, 0, 60, 5]]


def test_image_list_pads_right_and_bottom():
    images = structures.ImageList.from_tensors([torch.ones(1, 3, 5), torch.ones(1, 4, 2)], 2)
    assert images.tensor.shape == (2, 1, 4, 6) and images.image_sizes == [(3, 5), (4, 2)]
    assert images.tensor[0].sum() == 15


def test_instances_are_checked():
    instances = structures.Instances((3, 5), scores=torch.zeros(2))
    with pytest.raises(AssertionError, match=r"labels: length 3, not \{2\}"):
        instances.labels = [1, 2, 3]
    with pytest.raises(AttributeError, match="labels"):
        instances.labels
    with pytest.raises(IndexError):
        instances[2]


def test_postprocess_scales_width_by_width():
    instances = structures.Instances((10, 20), scores=torch.ones(2))
    instances.pred_boxes = structures.Boxes([[2.0, 1.0, 30.0, 5.0], [25.0, 1.0, 30.0, 5.0]])
    out = modeling.detector_postprocess(instances, 100, 60)
    assert out.pred_boxes.tensor.tolist() == [[6, 10, 60, 50]] and out.image_size == (100, 60)


def test_frozen_norm_is_the_affine_map():
    norm = modeling.FrozenBatchNorm2d(2)
    norm.weight.copy_(torch.tensor([2.0, 3.0]))
    norm.bias.copy_(torch.tensor([1.0, -1.0]))
    norm.running_mean.copy_(torch.tensor([0.5, 0.25]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0]) - norm.eps)
    expected = torch.tensor([1.5, -0.25]).view(1, 2, 1, 1).expand(1, 2, 3, 5)
    for requires_grad in (False, True):
        x = torch.ones(1, 2, 3, 5, requires_grad=requires_grad)
        torch.testing.assert_close(norm(x.clone()), expected)
    assert not list(norm.parameters())


def test_resnet_strides():
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    backbone = modeling.build_backbone(cfg)
    shapes = {k: (v.channels, v.stride) for k, v in backbone.output_shape().items()}
    assert shapes == {"res3": (512, 8), "res4": (1024, 16), "res5": (2048, 32)}
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape[-2:]) for f in features.values()] == [(8, 12), (4, 6), (2, 3)]
    trainable = {n.split(".")[0] for n, p in backbone.named_parameters() if p.requires_grad}
    assert trainable == {"res3", "res4", "res5"}


def test_resize_and_flip_boxes():
    boxes = np.array([[2.0, 1.0, 6.0, 5.0]])
    resize, flip = transforms.ResizeTransform(10, 20, 30, 40), transforms.HFlipTransform(40)
    np.testing.assert_allclose(resize.apply_box(boxes), [[4, 3, 12, 15]])
    both = transforms.TransformList([resize, flip])
    np.testing.assert_allclose(both.apply_box(boxes), [[28, 3, 36, 15]])
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, 10:] = 90
    assert resize.apply_image(image).shape == (30, 40, 3)
    assert resize.apply_image(image)[:, 25:].min() == 90


def test_catalogs():
    assert {"coco_2017_train", "coco_2017_val"} <= set(data.DatasetCatalog.list())
    metadata = data.MetadataCatalog.get("coco_2017_val")
    assert metadata.json_file.endswith("coco/annotations/instances_val2017.json")
    with pytest.raises(AssertionError, match="cannot be changed"):
        metadata.set(image_root="elsewhere")
    with pytest.raises(AssertionError, match="already registered"):
        data.register_coco_instances("coco_2017_val", {}, "a.json", "images")


def test_items_are_fresh_copies():
    dataset = data.DatasetFromList([{"a": [1]}])
    dataset[0]["a"].append(2)
    assert dataset[0] == {"a": [1]}


def _identity(item: dict) -> dict:
    return item


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_loads_everything_once(monkeypatch, world):
    monkeypatch.setitem(data.DatasetCatalog.data, "seven", lambda: [{"x": x} for x in range(7)])
    cfg, seen = get_cfg(), []
    cfg.DATALOADER.NUM_WORKERS = 0
    monkeypatch.setattr(comm, "get_world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        batches = list(data.build_detection_test_loader(cfg, "seven", mapper=_identity))
        assert all(len(batch) == 1 for batch in batches) and 0 <= len(batches) - 7 // world <= 1
        seen += [item["x"] for batch in batches for item in batch]
    assert sorted(seen) == list(range(7))
