"""Data sets and transforms: detectron2 and the embedded host make the same of them."""

import json
from pathlib import Path

import numpy as np

from detectron2_ddetr.host import data as host_data
from detectron2_ddetr.host import transforms

from .test_toolbox import needs_detectron2


def _coco_json(path: Path) -> str:
    rng = np.random.default_rng(0)
    images = [
        {"id": i, "file_name": f"{i}.png", "height": 60 + i, "width": 90 + 3 * i}
        for i in (7, 3, 5, 11)
    ]
    annotations = []
    for i in range(24):
        x, y, w, h = (rng.random(4) * [50, 30, 40, 30] + [0, 0, 2, 2]).round(2).tolist()
        annotation = {"id": i + 1, "image_id": (7, 3, 5)[i % 3], "category_id": (1, 4, 9)[i % 3]}
        annotation |= {"bbox": [x, y, w, h], "area": w * h, "iscrowd": int(i % 11 == 10)}
        if i % 4 == 0:
            annotation["segmentation"] = [[x, y, x + w, y, x, y + h], [1.0, 2.0]]
        if i % 8 == 5:
            annotation["segmentation"] = [[x, y, x + w, y]]  # too few points
        if i % 8 == 6:
            annotation["segmentation"] = {"counts": [0, 60 * 90], "size": [60, 90]}
        if i % 8 == 7:
            annotation["segmentation"] = []
        annotations.append(annotation)
    categories = [{"id": i, "name": n} for i, n in ((9, "c"), (1, "a"), (4, "b"))]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return str(path)


@needs_detectron2
def test_coco_json(tmp_path):
    """The host leaves out the masks, but the same annotations."""
    from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
    from detectron2.data.datasets import register_coco_instances

    path, name, results = _coco_json(tmp_path / "a.json"), f"parity_{tmp_path.name}", []
    for register, catalog, metadata, get_dicts in (
        (
            host_data.register_coco_instances,
            host_data.DatasetCatalog,
            host_data.MetadataCatalog,
            host_data.get_detection_dataset_dicts,
        ),
        (register_coco_instances, DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts),
    ):
        register(name, {"extra": 1}, path, "images")
        assert name in catalog.list()
        dicts = get_dicts(name) + get_dicts([name], filter_empty=False)
        for annotation in sum((d["annotations"] for d in dicts), []):
            annotation.pop("segmentation", None)
        results.append([dicts, vars(metadata.get(name))])
        catalog.remove(name)
        metadata.pop(name)
    assert results[0] == results[1] and len(results[0][0]) == 3 + 4


@needs_detectron2
def test_builtin_coco():
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for name in ("coco_2017_train", "coco_2017_val"):
        ours, theirs = host_data.MetadataCatalog.get(name), MetadataCatalog.get(name)
        assert name in DatasetCatalog and name in host_data.DatasetCatalog
        assert vars(ours).items() <= theirs.as_dict().items()


@needs_detectron2
def test_transforms():
    from detectron2.data import transforms as d2

    image = (np.random.default_rng(0).random((20, 33, 3)) * 255).astype(np.uint8)
    boxes = np.array([[1.0, 2.0, 20.0, 9.0], [3.5, 4.0, 32.0, 19.0]])
    results = []
    for module in (transforms, d2):

        class Fixed(module.Augmentation):
            def __init__(self, transform):
                self.transform = transform

            def get_transform(self, image):
                return self.transform

        np.random.seed(3)
        augmentations = module.AugmentationList(
            [
                module.RandomFlip(0.9),
                Fixed(module.ResizeTransform(20, 33, 41, 50)),
                Fixed(module.CropTransform(5, 6, 30, 20)),
                module.RandomFlip(0.7, horizontal=False, vertical=True),
            ]
        )
        aug_input = module.AugInput(image.copy())
        tfms = augmentations(aug_input)
        results.append([aug_input.image, tfms.apply_box(boxes), tfms.apply_image(image)])
    for ours, theirs in zip(*results):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
