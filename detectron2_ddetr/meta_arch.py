"""What the meta-architectures of the family share: images in, losses or Instances out."""

import contextlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .backbones.channels import channels_of
from .backbones.padding import padding_of
from .backbones.unread import freeze_unread
from .build import build_criterion, build_head, registered
from .checkpoint.frozen import check_frozen_layers, watch_loading
from .checkpoint.reading import read_alike
from .config_rules import check_config
from .errors import InputError
from .inference_form import inference_form
from .inputs import check_detections, check_ground_truth, check_images, check_instances
from .modeling import SetCriterion, box_xyxy_to_cxcywh, sigmoid_topk
from .modeling.activation_checkpointing import blocks_of, checkpoint_activations
from .narrow_maps import widen_narrow_maps
from .stock_trainer import refuse_stock_optimizer
from .toolbox import (
    BACKBONE_REGISTRY,
    Backbone,
    Boxes,
    CfgNode,
    ImageList,
    Instances,
    build_backbone,
    configurable,
    detector_postprocess,
)
from .weight_gradients import quicken_weight_gradients


class SetDetector(nn.Module):
    """
    A backbone, a head that predicts a set of boxes, and the criterion of that set.

    A system of the family is a subclass under its own name whose body says no more than which
    parts it has (:meth:`from_config`). The coordinate frames meet here: pixels of the network's
    input on one side, [0, 1] of the valid (unpadded) image on the other.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        criterion: SetCriterion,
        in_features: list[str],
        pixel_mean: list[float],
        pixel_std: list[float],
        num_detections: int = 100,
        size_divisibility: int = 1,
        precision: torch.dtype | None = None,
        activation_checkpointing: Sequence[str] = (),
    ):
        """
        Args:
            backbone: any detectron2 backbone.
            head: maps of the backbone, padding mask, targets or None -> the dict of
                :meth:`network_outputs`. Its `num_classes` is K.
            criterion: outputs of the head, targets -> dict of weighted losses.
            in_features: names of the maps to read, from high to low resolution.
            pixel_mean, pixel_std: per channel, for the channel order of the input images.
            num_detections: at most this many per image.
            size_divisibility: batches are padded to multiples of so many pixels, and of what the
                backbone needs.
            precision: torch.bfloat16 or torch.float16 for matrix products and convolutions of the
                network (torch.autocast); None for that of the weights. Coordinates, scores that
                rank proposals, and losses are float32 in any case.
            activation_checkpointing: of "backbone", "encoder" and "decoder" those whose
                activations are computed again in the backward pass, see
                :func:`checkpoint_activations`.

        Raises:
            InputError: for maps that the backbone does not give, and numbers that cannot be.
        """
        super().__init__()
        channels_of(backbone, in_features, type(backbone).__name__)
        if len(pixel_mean) != len(pixel_std) or not all(0 < std < math.inf for std in pixel_std):
            raise InputError(
                "pixel_mean and pixel_std (MODEL.PIXEL_MEAN, MODEL.PIXEL_STD) must have a number "
                f"for each channel, those of pixel_std above 0, got {pixel_mean} and {pixel_std}"
            )
        if num_detections < 1:
            raise InputError(
                "num_detections (TEST.DETECTIONS_PER_IMAGE) must be at least 1, got "
                f"{num_detections}"
            )
        if size_divisibility < 1:
            raise InputError(
                "size_divisibility (MODEL.DETR.SIZE_DIVISIBILITY) must be at least 1, got "
                f"{size_divisibility}"
            )
        self.backbone = backbone
        self.head = head
        self.criterion = criterion
        self.in_features = list(in_features)
        self.num_detections = num_detections
        self.size_divisibility = size_divisibility
        self.precision = precision
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        with torch.device("cpu"):  # detectron2 computes sizes with tensors, also of a meta image
            images = self.pad([torch.empty(len(pixel_mean), 128, 128, device="meta")])
        freeze_unread(backbone, self.in_features, images.tensor)
        quicken_weight_gradients(self)
        widen_narrow_maps(self)
        for part in activation_checkpointing:
            checkpoint_activations(self._layers_of(part))
        # So that weights are read alike whoever loads them, detectron2's checkpointer included.
        read_alike(self)
        watch_loading(self)
        self._frozen_layers_are_checked = False

    def _layers_of(self, part: str) -> list[nn.Module]:
        """What of "backbone", "encoder" or "decoder" follows one after the other."""
        if part in ("encoder", "decoder"):
            return list(getattr(self.head.transformer, part).layers)
        if part != "backbone":
            raise InputError(
                "activation_checkpointing must name some of 'backbone', 'encoder' and 'decoder', "
                f"got {part!r}"
            )
        layers = list(blocks_of(self.backbone))
        if not layers:
            raise InputError(
                "activation_checkpointing of the backbone (MODEL.DETR.ACTIVATION_CHECKPOINTING."
                f"BACKBONE): {type(self.backbone).__name__} is no sequence of blocks; set it to "
                "False"
            )
        return layers

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        check_config(cfg)
        refuse_stock_optimizer(cfg)
        registered(BACKBONE_REGISTRY, "MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME)
        backbone = build_backbone(cfg)
        in_features, amp = cfg.MODEL.DETR.IN_FEATURES, cfg.SOLVER.AMP
        node = cfg.MODEL.DETR.ACTIVATION_CHECKPOINTING
        recomputed = {"backbone": node.BACKBONE, "encoder": node.ENCODER, "decoder": node.DECODER}
        return {
            "backbone": backbone,
            "head": cls.build_head(
                cfg, channels_of(backbone, in_features, cfg.MODEL.BACKBONE.NAME)
            ),
            "criterion": build_criterion(cfg),
            "in_features": in_features,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "num_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "size_divisibility": cfg.MODEL.DETR.SIZE_DIVISIBILITY,
            "precision": getattr(torch, amp.PRECISION) if amp.ENABLED else None,
            "activation_checkpointing": [part for part, on in recomputed.items() if on],
        }

    #: (cfg, channels of the maps that it reads) -> the head of the system.
    build_head: Callable[[CfgNode, Sequence[int]], nn.Module] = staticmethod(build_head)

    #: ("pred_logits", "pred_boxes", at most so many) -> scores, labels, boxes; see
    #: :func:`sigmoid_topk`.
    select_detections: Callable[..., tuple[Tensor, Tensor, Tensor]] = staticmethod(sigmoid_topk)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    #: Whether it is what :meth:`for_inference` gives.
    only_detects = False

    def for_inference(self, *, int8: bool = False) -> "SetDetector":
        """A copy that only detects, and faster; see :func:`.inference_form.inference_form`."""
        return inference_form(self, int8=int8)

    def train(self, mode: bool = True) -> "SetDetector":
        """As ever; an InputError if the model only detects."""
        if mode and self.only_detects:
            raise InputError(
                "the inference form of a model cannot be trained: train the model that it was "
                "made of, and call its for_inference() afterwards"
            )
        return super().train(mode)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: one dict per image:

                * "image": (3, h, w), any dtype, 0 to 255, in the channel order of `pixel_mean`.
                * "instances": (training) `gt_boxes` in pixels of "image", `gt_classes`.
                * "height", "width": size wanted for the detections; that of "image" by default.

        Returns:
            In training the weighted losses of the criterion, and nothing else: detectron2's
            trainer sums them. Otherwise one {"instances": Instances} per image with `pred_boxes`,
            `scores`, `pred_classes`, clipped to the image, best first.

        Raises:
            InputError: names the image, by its "file_name" where it has one, and what of it is
                missing or cannot be.
            NonFiniteError: names the image whose detections are NaN or infinite.
        """
        if self.training and torch.is_grad_enabled() and not self._frozen_layers_are_checked:
            check_frozen_layers(self)
            self._frozen_layers_are_checked = True
        images = self.preprocess_image(batched_inputs)
        if self.training:
            check_instances(batched_inputs)
            # Made and checked where the mapper left them, on the CPU: numbers that lie on a GPU
            # cannot be looked at without waiting for it.
            targets = self.prepare_targets([x["instances"] for x in batched_inputs])
            check_ground_truth(batched_inputs, targets, self.head.num_classes)
            targets = [{key: x.to(self.device) for key, x in t.items()} for t in targets]
            return self.criterion(self.network_outputs(images, targets), targets)
        outputs = self.network_outputs(images)

        # Differs from the official code: detector_postprocess clips boxes to the image and drops
        # empty ones, because that is what users of detectron2 rely on.
        results = self.inference(outputs, images.image_sizes)
        if not torch.jit.is_tracing():
            check_detections(batched_inputs, results)
        return [
            {
                "instances": detector_postprocess(
                    result,
                    x.get("height", result.image_size[0]),
                    x.get("width", result.image_size[1]),
                )
            }
            for result, x in zip(results, batched_inputs)
        ]

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """
        Normalise, then pad right and bottom with zeros, the mean colour; in the type of the
        weights, which `pixel_mean` follows.

        Raises:
            InputError: see :func:`check_images`.
        """
        if not torch.jit.is_tracing():  # which would take the sizes for constants
            check_images(batched_inputs, len(self.pixel_mean))
        images = [x["image"].to(self.pixel_mean) for x in batched_inputs]
        return self.pad([(image - self.pixel_mean) / self.pixel_std for image in images])

    def pad(self, images: list[Tensor]) -> ImageList:
        """(3, h_i, w_i) each -> one tensor of a size that the backbone takes."""
        padding = padding_of(self.backbone, self.size_divisibility)
        return ImageList.from_tensors(images, **padding)

    def network_outputs(
        self, images: ImageList, targets: list[dict[str, Tensor]] | None = None
    ) -> dict:
        """
        The raw predictions, for distillation and inspection. The same path in training and
        evaluation: padding is masked in both.

        Args:
            images: normalised and padded, as :meth:`preprocess_image` returns them.
            targets: in training, of :meth:`prepare_targets`, on the device of the model; a
                denoising model trains without denoising where they are not given.

        Returns:
            dict: The keys are:

            * "pred_logits": (N, Q, K), logits of the last layer; in DETR K + 1, the last of no
              object.
            * "pred_boxes": (N, Q, 4), (cx, cy, w, h) in [0, 1] of the valid image.
            * "aux_outputs": one dict with these two keys for each earlier decoder layer.
            * further keys of the encoder and of queries that only train, see
              :meth:`DeformableDETRHead.forward`.
        """
        pixels = images.tensor
        if pixels.device.type == "cpu":  # its convolutions are faster channels last: BENCHMARKS.md
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            features = self.backbone(pixels)
            maps = [features[name] for name in self.in_features]
            return self.head(maps, padding_mask(images), targets)

    def _autocast(self) -> contextlib.AbstractContextManager:
        """An autocast around the caller's stays, if the model asks for none."""
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def prepare_targets(self, gt_instances: list[Instances]) -> list[dict[str, Tensor]]:
        """Pixels (x0, y0, x1, y1) -> "boxes" (T_i, 4), (cx, cy, w, h) in [0, 1], and "labels"."""
        targets = []
        for instances in gt_instances:
            height, width = instances.image_size
            size = instances.gt_boxes.tensor.new_tensor((width, height, width, height))
            boxes = box_xyxy_to_cxcywh(instances.gt_boxes.tensor) / size
            targets.append({"labels": instances.gt_classes, "boxes": boxes})
        return targets

    def inference(self, outputs: dict, image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """
        Args:
            outputs: of :meth:`network_outputs`.
            image_sizes: (h, w) of each image before padding.

        Returns:
            One Instances per image, boxes in pixels of that size, not clipped, best first.
        """
        results = []
        selected = self.select_detections(
            outputs["pred_logits"], outputs["pred_boxes"], self.num_detections
        )
        for scores, labels, boxes, size in zip(*(x.unbind() for x in selected), image_sizes):
            height, width = size[0], size[1]  # a tensor under torch.jit.trace
            x0, y0, x1, y1 = boxes.unbind(-1)
            result = Instances((height, width))
            result.pred_boxes = Boxes(
                torch.stack((x0 * width, y0 * height, x1 * width, y1 * height), dim=-1)
            )
            result.scores = scores
            result.pred_classes = labels
            results.append(result)
        return results


def padding_mask(images: ImageList) -> Tensor | None:
    """(N, H, W) bool, True = padding; None where no image has any, which saves masking."""
    height, width = images.tensor.shape[-2:]
    # To torch.jit.trace, these sizes are tensors: a file is for images with padding and without.
    traced = torch.jit.is_tracing() or torch.compiler.is_exporting()
    if not traced and all((h, w) == (height, width) for h, w in images.image_sizes):
        return None
    mask = torch.ones_like(images.tensor[:, 0], dtype=torch.bool)
    for i, size in enumerate(images.image_sizes):
        mask[i, : size[0], : size[1]] = False
    return mask
