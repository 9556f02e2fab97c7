"""
What the operator must give, by a reference that is dense.

A cell at distance (dx, dy) from a sample has the share max(0, 1 - |dx|) * max(0, 1 - |dy|) of it,
and all cells of all levels are summed. Nothing is gathered, rounded down or compared with a
border, and its gradients are those of autograd.
"""

import torch


def dense_reference(value, sizes, level_points, pixels, attention):
    """(N, S, M, D), (H_l, W_l), P_l, (N, Q, M, K, 2) in cells, (N, Q, M, K) -> (N, Q, M * D)."""
    out = value.new_zeros(*pixels.shape[:3], value.shape[3])
    levels = zip(
        value.split([h * w for h, w in sizes], dim=1),
        sizes,
        pixels.split(level_points, dim=3),
        attention.split(level_points, dim=3),
    )
    for cells, (height, width), pixel, weight in levels:
        share_x, share_y = (
            (1 - (pixel[..., axis, None] - torch.arange(count)).abs()).clamp(min=0)
            for axis, count in ((0, width), (1, height))
        )
        share = torch.einsum("nqmk,nqmki,nqmkj->nqmij", weight, share_y, share_x)
        out = out + torch.einsum("nqmij,nijmd->nqmd", share, cells.unflatten(1, (height, width)))
    return out.flatten(2)


def fused_pixels(references, offsets, sizes, level_points):
    """Eq. (3) and Sec. A.4 in cells, one level after another: (N, Q, M, K, 2)."""
    pixels = []
    for level, ((height, width), part) in enumerate(zip(sizes, offsets.split(level_points, 3))):
        reference = references[:, :, None, None, level]  # (N, Q, 1, 1, R)
        x, y = part.unbind(-1)
        if references.shape[-1] == 4:
            x = x * reference[..., 2] / 2 / level_points[level] * width
            y = y * reference[..., 3] / 2 / level_points[level] * height
        x, y = x + reference[..., 0] * width, y + reference[..., 1] * height
        pixels.append(torch.stack((x - 0.5, y - 0.5), dim=-1))
    return torch.cat(pixels, dim=3)
