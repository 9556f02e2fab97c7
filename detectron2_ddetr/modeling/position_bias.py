"""What is added to logits for where query and key are, for a few columns of queries at a time."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .bilinear import cells, sample_table, taps


class RelativeBias(NamedTuple):
    """
    Read from tables at the distance of query and key.

    table: (G, M/G, A, B), of each head.
    rows, columns: what of the table each key and row, or column, of queries reads, see
        :func:`sample_table`.
    """

    table: Tensor
    rows: tuple[Tensor, Tensor]
    columns: tuple[Tensor, Tensor]

    @classmethod
    def at(cls, table: Tensor, positions: Tensor, y: Tensor, x: Tensor) -> "RelativeBias":
        """
        Args:
            table: (M, A, B), from a distance of -2 to 2 along both axes.
            positions: (N, G, Ns, 2), (y, x) of the keys in [-1, 1].
            y, x: (H,) and (W,), of the rows and columns of queries.
        """
        _, a, b = table.shape
        return cls(
            table.unflatten(0, (positions.shape[1], -1)),
            taps(cells((y - positions[..., :1]) / 2, a), a),
            taps(cells((x - positions[..., 1:]) / 2, b), b),
        )

    def add_to(self, logits: Tensor, columns: slice) -> None:
        """In place, to (N, M, Ns, H * W'), of the queries of some columns of the map."""
        some = self.columns[0][..., columns, :], self.columns[1][..., columns, :]
        bias = sample_table(self.table, self.rows, some).permute(0, 1, 4, 2, 3, 5)
        logits.view(bias.shape).add_(bias)


class AbsoluteBias(NamedTuple):
    """table: (M, Ns, H, W), of each key and query."""

    table: Tensor

    @classmethod
    def of(cls, table: Tensor, height: int, width: int, keys: int) -> "AbsoluteBias":
        """From (M, H*W, Ns), stretched to other numbers as the authors do for detection."""
        stretched = F.interpolate(
            table[None], (height * width, keys), mode="bilinear", align_corners=True
        )
        return cls(stretched[0].transpose(1, 2).unflatten(2, (height, width)))

    def add_to(self, logits: Tensor, columns: slice) -> None:
        some = self.table[..., columns]
        logits.view(len(logits), *some.shape).add_(some)
