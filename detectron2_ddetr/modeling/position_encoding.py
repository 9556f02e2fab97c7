"""Sine position encodings of the cells of a padded map and of boxes."""

import math

import torch
from torch import Tensor, nn


def sine_features(x: Tensor, num_feats: int, temperature: float = 10000.0) -> Tensor:
    """
    Encode numbers as interleaved sines and cosines of `num_feats / 2` frequencies.

    Args:
        x: (...), radians.

    Returns:
        (..., num_feats) float32: sin, cos, sin, cos, ... from the fastest to the slowest.
    """
    exponent = torch.arange(0, num_feats, 2, dtype=torch.float32, device=x.device) / num_feats
    phase = x.float()[..., None] / temperature**exponent
    return torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(-2)


class PositionEmbeddingSine(nn.Module):
    """
    Sine encoding of where a cell lies in the valid part of its map (DETR, Sec. A.4).

    Always float32: the value in fully padded rows and columns is about -3e6, too large for 16 bits.
    """

    def __init__(
        self,
        num_pos_feats: int = 128,
        temperature: float = 10000.0,
        scale: float = 2 * math.pi,
        offset: float = -0.5,
        eps: float = 1e-6,
    ):
        """
        Args:
            num_pos_feats: channels per axis; the encoding has twice as many.
            temperature: ratio of the slowest to the fastest period.
            scale: what the width and height of the valid part are scaled to.
            offset: added to the 1-based index of a cell; -0.5 encodes cell centres. DETR has 0.
            eps: guards the division where a whole row or column is padding.
        """
        super().__init__()
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature
        self.scale = scale
        self.offset = offset
        self.eps = eps

    def forward(self, padding_mask: Tensor) -> Tensor:
        """
        Args:
            padding_mask: (N, H, W) bool, True = padding. Of (N, 1, 1) expanded, the result takes
                a sine a row and a column, not one a cell.

        Returns:
            (N, 2 * num_pos_feats, H, W) float32, the channels of y before those of x.
        """
        valid = ~padding_mask
        column = row = valid
        if padding_mask.stride()[1:] == (0, 0):  # so that all columns are alike, and all rows
            column, row = valid[:, :, :1], valid[:, :1]
        y = column.cumsum(1, dtype=torch.float32)
        x = row.cumsum(2, dtype=torch.float32)
        y = (y + self.offset) / (y[:, -1:, :] + self.eps) * self.scale
        x = (x + self.offset) / (x[:, :, -1:] + self.eps) * self.scale
        encoded = [
            sine_features(v, self.num_pos_feats, self.temperature).expand(*valid.shape, -1)
            for v in (y, x)
        ]
        return torch.cat(encoded, dim=-1).permute(0, 3, 1, 2)


def box_position_encoding(boxes: Tensor, num_pos_feats: int = 128) -> Tensor:
    """
    Sine encoding of boxes, for queries that start from proposals (Sec. A.4).

    Args:
        boxes: (..., 4), (cx, cy, w, h) in [0, 1].

    Returns:
        (..., 4 * num_pos_feats) float32, in the order cx, cy, w, h.
    """
    return sine_features(boxes.float() * (2 * math.pi), num_pos_feats).flatten(-2)
