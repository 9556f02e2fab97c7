"""Flattened multi-scale maps together with the geometry needed to read them."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Memory:
    """
    Feature maps of all levels, flattened and concatenated, from high to low resolution.

    Attributes:
        tokens: (N, S, C), S = sum_l H_l * W_l, row by row.
        padding_mask: (N, S) bool, True = padding; None where no image has any.
        spatial_shapes: list of (H_l, W_l) ints: no device is synchronised to know them.
        valid_ratios: (N, L, 2), (w, h) in (0, 1]: how much of the padded level is image.
        pos_embed: (N, S, C), positions of the tokens, where the decoder looks for tokens by them.
    """

    tokens: Tensor
    padding_mask: Tensor | None
    spatial_shapes: list[tuple[int, int]]
    valid_ratios: Tensor
    pos_embed: Tensor | None = None

    @classmethod
    def from_maps(cls, maps: list[Tensor], padding_masks: list[Tensor] | None) -> "Memory":
        """
        Args:
            maps: one (N, C, H_l, W_l) per level.
            padding_masks: one (N, H_l, W_l) bool per level, True = padding; None for none.
        """
        tokens = flatten_maps(maps)
        spatial_shapes = [(m.shape[2], m.shape[3]) for m in maps]
        if padding_masks is None:
            ones = torch.ones(tokens.shape[0], len(maps), 2, device=tokens.device)
            return cls(tokens, None, spatial_shapes, valid_ratios=ones)
        return cls(
            tokens,
            padding_mask=torch.cat([m.flatten(1) for m in padding_masks], dim=1),
            spatial_shapes=spatial_shapes,
            valid_ratios=torch.stack([valid_ratio(m) for m in padding_masks], dim=1),
        )

    def with_tokens(self, tokens: Tensor) -> "Memory":
        """The same geometry around other tokens, (N, S, C)."""
        return dataclasses.replace(self, tokens=tokens)

    def unflatten(self) -> list[Tensor]:
        """One (N, C, H_l, W_l) per level: for dense heads, mask heads and pictures."""
        levels = self.tokens.split([h * w for h, w in self.spatial_shapes], dim=1)
        return [
            level.transpose(1, 2).unflatten(2, shape)
            for level, shape in zip(levels, self.spatial_shapes)
        ]


def flatten_maps(maps: list[Tensor]) -> Tensor:
    """One (N, C, H_l, W_l) per level -> (N, S, C)."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)


def valid_ratio(padding_mask: Tensor) -> Tensor:
    """(N, H, W) bool, True = padding -> (N, 2), (w, h): valid share of the first row and column."""
    height, width = padding_mask.shape[1:]
    valid = ~padding_mask
    return torch.stack((valid[:, 0, :].sum(1) / width, valid[:, :, 0].sum(1) / height), dim=-1)


def cell_centres(spatial_shapes: list[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """
    Centres of all cells, as a fraction of the valid part of their level.

    Args:
        spatial_shapes: (H_l, W_l) of each level.
        valid_ratios: (N, L, 2), (w, h).

    Returns:
        (N, S, 2), (x, y) in [0, 1] of the valid image; above 1 in the padding.
    """
    centres = []
    for level, (height, width) in enumerate(spatial_shapes):
        y = torch.arange(height, dtype=torch.float32, device=valid_ratios.device) + 0.5
        x = torch.arange(width, dtype=torch.float32, device=valid_ratios.device) + 0.5
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        grid = torch.stack((grid_x.flatten(), grid_y.flatten()), dim=-1)  # (H_l * W_l, 2)
        # Divided by the exact number of valid cells: proposals compare the quotient with 0.01 and
        # 0.99, which 0.5 / 50 and 49.5 / 50 (an 800 px image at stride 16) hit exactly.
        valid_width, valid_height = valid_ratios[:, level, None].unbind(-1)
        valid = torch.stack((valid_width * width, valid_height * height), dim=-1)
        centres.append(grid / valid.round())
    return torch.cat(centres, dim=1)


def to_levels(reference_points: Tensor, valid_ratios: Tensor) -> Tensor:
    """
    References in the frame of the image -> in the frame of each padded level.

    Args:
        reference_points: (N, Q, 2), (x, y), or (N, Q, 4), (cx, cy, w, h), in the valid image.
        valid_ratios: (N, L, 2), (w, h).

    Returns:
        (N, Q, L, 2 or 4).
    """
    scale = valid_ratios.repeat(1, 1, reference_points.shape[-1] // 2)
    return reference_points[:, :, None] * scale[:, None]
