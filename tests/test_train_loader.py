"""The order of training images, resuming, and the division among ranks."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2_ddetr.config import add_deformable_detr_config
from detectron2_ddetr.data import train_loader
from detectron2_ddetr.data.train_loader import EpochShuffle, PositionSampler, build_train_loader
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import BoxMode, DatasetCatalog, MetadataCatalog, get_cfg

NUM_IMAGES = 5
NAME = "train_loader_test"


@pytest.fixture
def cfg(tmp_path):
    """Five small non-square images, one without annotations, in batches of two."""
    dicts = []
    rng = np.random.default_rng(0)
    for image_id in range(NUM_IMAGES):
        path = tmp_path / f"{image_id}.png"
        Image.fromarray(rng.integers(0, 256, (24, 40 + image_id, 3), dtype=np.uint8)).save(path)
        box = {"bbox": [3, 4, 20, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        record = {"file_name": str(path), "height": 24, "width": 40 + image_id}
        annotations = [box] if image_id > 0 else []
        dicts.append({**record, "image_id": image_id, "annotations": annotations})
    DatasetCatalog.register(NAME, lambda: dicts)
    MetadataCatalog.get(NAME).set(thing_classes=["thing"])
    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    cfg.INPUT.CROP_RESIZE_SIZES = (30, 40)
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute_range"
    cfg.INPUT.CROP.SIZE = [20, 40]
    cfg.INPUT.MIN_SIZE_TRAIN = (16, 20, 24)
    cfg.INPUT.MAX_SIZE_TRAIN = 60
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    yield cfg
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


def batches(cfg, count, **options):
    return list(itertools.islice(build_train_loader(cfg, seed=7, **options), count))


def assert_same(ours, expected):
    assert [s["image_id"] for s in ours] == [s["image_id"] for s in expected]
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one["image"], other["image"])
        boxes = [s["instances"].gt_boxes.tensor for s in (one, other)]
        assert torch.equal(*boxes)


def test_each_epoch_is_a_permutation():
    dataset = EpochShuffle([{"image_id": i} for i in range(50)], seed=3)
    assert len(dataset) == 50
    epochs = [[dataset[e * 50 + i]["image_id"] for i in range(50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    # Asked for in another order, with the cache in another state.
    assert [dataset[p]["image_id"] for p in (120, 4, 149, 50)] == [
        epochs[2][20],
        epochs[0][4],
        epochs[2][49],
        epochs[1][0],
    ]
    assert dataset[120]["draw"] == (3, 120)
    other = EpochShuffle([{"image_id": i} for i in range(50)], seed=4)
    assert [other[i]["image_id"] for i in range(50)] != epochs[0]


def test_items_are_not_changed_by_reading():
    dataset = EpochShuffle([{"image_id": 0}], seed=0)
    dataset[0]["image_id"] = 9
    assert dataset[1] == {"image_id": 0, "draw": (0, 1)}


def test_positions_of_ranks():
    take = [list(itertools.islice(PositionSampler(12, rank, 3), 4)) for rank in range(3)]
    assert take == [[12, 15, 18, 21], [13, 16, 19, 22], [14, 17, 20, 23]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_equals_uninterrupted(cfg, num_workers):
    expected = batches(cfg, 8)  # 16 positions: three epochs
    cfg.DATALOADER.NUM_WORKERS = num_workers
    np.random.seed(11)  # not what decides
    for start_iter in (0, 2, 5):  # the batch at iteration 2 spans two epochs
        resumed = batches(cfg, 8 - start_iter, first_image=2 * start_iter)
        assert len(resumed) == 8 - start_iter
        for ours, theirs in zip(resumed, expected[start_iter:]):
            assert_same(ours, theirs)


def test_every_image_once_per_epoch_also_without_annotations(cfg):
    samples = list(itertools.chain.from_iterable(batches(cfg, NUM_IMAGES)))  # two epochs
    ids = [s["image_id"] for s in samples]
    assert sorted(ids[:NUM_IMAGES]) == sorted(ids[NUM_IMAGES:]) == list(range(NUM_IMAGES))
    assert all(len(s["instances"]) == 0 for s in samples if s["image_id"] == 0)
    images = [s["image"] for s in samples if s["image_id"] == 3]
    assert images[0].shape != images[1].shape or not torch.equal(*images)  # augmented anew

    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    samples = itertools.chain.from_iterable(batches(cfg, 4))
    assert {s["image_id"] for s in samples} == {1, 2, 3, 4}


def test_two_ranks_together_are_one(cfg, monkeypatch):
    cfg.SOLVER.IMS_PER_BATCH = 4
    expected = batches(cfg, 4, first_image=4)
    monkeypatch.setattr(train_loader.comm, "get_world_size", lambda: 2)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(train_loader.comm, "get_rank", lambda rank=rank: rank)
        ranks.append(batches(cfg, 4, first_image=4))
    for whole, first, second in zip(expected, *ranks, strict=True):
        assert len(first) == len(second) == 2
        assert_same(first, whole[0::2])
        assert_same(second, whole[1::2])

    cfg.SOLVER.IMS_PER_BATCH = 3
    with pytest.raises(InputError, match=r"IMS_PER_BATCH \(3\) must be .* processes \(2\)"):
        build_train_loader(cfg, seed=0)


def test_rejected_configs(cfg):
    for seed in (-1, 1.5):
        with pytest.raises(InputError, match=f"seed must be an integer from 0 on, got {seed}"):
            build_train_loader(cfg, seed=seed)
    with pytest.raises(InputError, match="first_image must be at least 0, got -3"):
        build_train_loader(cfg, seed=0, first_image=-3)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    with pytest.raises(InputError, match="ASPECT_RATIO_GROUPING must be False"):
        build_train_loader(cfg, seed=0)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(InputError, match="must be 'TrainingSampler', got 'RepeatFactor"):
        build_train_loader(cfg, seed=0)
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(InputError, match="DATASETS.TRAIN is empty"):
        build_train_loader(cfg, seed=0)


def test_broken_image_reaches_the_user_from_a_worker(cfg):
    path = DatasetCatalog.get(NAME)[2]["file_name"]
    with open(path, "wb") as file:
        file.write(b"not an image")
    cfg.DATALOADER.NUM_WORKERS = 1
    with pytest.raises(InputError, match="2.png.: the file cannot be decoded"):
        batches(cfg, NUM_IMAGES)
