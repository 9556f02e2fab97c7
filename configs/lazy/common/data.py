import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from omegaconf import OmegaConf

from detectron2_ddetr import DeformableDETRDatasetMapper
from detectron2_ddetr.data.augmentation import RandomResizedCrop, ResizeShortSide
from detectron2_ddetr.engine.evaluator import BoxEvaluator

# "${model...}" and "${train...}" are of the config that this becomes a part of.
dataloader = OmegaConf.create()

dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_train", filter_empty=False),
    mapper=L(DeformableDETRDatasetMapper)(
        is_train=True,
        augmentations=[
            L(T.RandomFlip)(horizontal=True),
            L(RandomResizedCrop)(short_sides=[400, 500, 600], crop_range=[384, 600]),
            L(ResizeShortSide)(
                short_sides=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800], max_size=1333
            ),
        ],
        image_format="RGB",
        num_classes="${model.head.num_classes}",
    ),
    total_batch_size=32,
    aspect_ratio_grouping=False,
    num_workers=4,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(DeformableDETRDatasetMapper)(
        is_train=False,
        augmentations=[L(ResizeShortSide)(short_sides=[800], max_size=1333)],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(BoxEvaluator)(
    dataset_name="${..test.dataset.names}",
    output_dir="${train.output_dir}",
    max_dets_per_image="${model.num_detections}",
)
