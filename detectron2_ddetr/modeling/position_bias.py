"""What is added to logits for where query and key are, for a few columns of queries at a time."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .bilinear import sample_table, table_taps


class RelativeBias(NamedTuple):
    """
    Read from tables at the distance of query and key.

    table: (G, M/G, A, B), of each head.
    rows, columns: what of it each key reads for each row and column of queries.
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
        table = table.unflatten(0, (positions.shape[1], -1))
        apart = (y - positions[..., :1]) / 2, (x - positions[..., 1:]) / 2
        return cls(table, *table_taps(table, *apart))

    def split(self, columns: int) -> list["RelativeBias"]:
        """Of as many columns of queries each."""
        parts = zip(*(t.split(columns, dim=3) for t in self.columns))
        return [self._replace(columns=part) for part in parts]

    def add_to(self, logits: Tensor) -> None:
        """In place, to (N, M, Ns, H * W)."""
        bias = sample_table(self.table, self.rows, self.columns).permute(0, 1, 4, 2, 3, 5)
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

    def split(self, columns: int) -> list["AbsoluteBias"]:
        return [AbsoluteBias(part) for part in self.table.split(columns, dim=3)]

    def add_to(self, logits: Tensor) -> None:
        logits.view(len(logits), *self.table.shape).add_(self.table)
