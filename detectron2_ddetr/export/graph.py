"""The detector as a function of tensors, for those who run it without this package."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.padding import padding_of
from ..errors import InputError
from ..meta_arch import SetDetector


class DetectorGraph(nn.Module):
    """
    From a batch of pixels to detections; what the model needs in training only is not in it.

    It computes what :class:`SetDetector` computes for images that are padded to one size, and has
    copies of its weights: the model stays as it is.
    """

    def __init__(self, model: SetDetector, channels: str = "RGB"):
        """
        Args:
            model: trained.
            channels: "RGB" or "BGR", the order that the model wants (INPUT.FORMAT).

        Raises:
            InputError: for a backbone that takes squares only.
        """
        super().__init__()
        padding = padding_of(model.backbone, model.size_divisibility)
        if any(padding["padding_constraints"].values()):
            raise InputError(
                f"the backbone {type(model.backbone).__name__} pads images to a square "
                f"({padding['padding_constraints']}), which an exported file does not: build it "
                "without square_pad"
            )
        self.backbone = copy.deepcopy(model.backbone)
        self.head = copy.deepcopy(model.head)
        self.head.drop_training_parts()
        self.in_features = model.in_features
        self.num_detections = model.num_detections
        self.select_detections = model.select_detections
        self.divisor = padding["size_divisibility"]
        self.bgr = channels == "BGR"
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: (N, 3, H, W) uint8, RGB, resized; padding on the right and at the bottom.
            sizes: (N, 2) int64, (height, width) of each image without its padding, px.

        Returns:
            boxes: (N, D, 4) float32, (x1, y1, x2, y2) in px of `images`, inside their sizes.
            scores: (N, D) float32, descending.
            labels: (N, D) int64, rows of the class table.
        """
        pixels = images.flip(1) if self.bgr else images
        pixels = (pixels.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        height, width = pixels.shape[2:]
        pixels = F.pad(pixels, (0, -width % self.divisor, 0, -height % self.divisor))
        padding = padding_of_sizes(sizes, pixels)
        # Zeros, which are the mean colour, whatever the padding was.
        features = self.backbone(pixels.masked_fill(padding[:, None], 0.0))
        outputs = self.head([features[name] for name in self.in_features], padding)
        scores, labels, boxes = self.select_detections(
            outputs["pred_logits"], outputs["pred_boxes"], self.num_detections
        )
        ends = sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)  # (width, height) twice
        return torch.minimum((boxes * ends).clamp(min=0), ends), scores, labels


def padding_of_sizes(sizes: Tensor, pixels: Tensor) -> Tensor:
    """(N, 2), (height, width), and (N, 3, H, W) -> (N, H, W) bool, True = padding."""
    rows = torch.arange(pixels.shape[2], device=sizes.device)
    columns = torch.arange(pixels.shape[3], device=sizes.device)
    below = rows[None, :, None] >= sizes[:, 0, None, None]
    beyond = columns[None, None] >= sizes[:, 1, None, None]
    return below | beyond
