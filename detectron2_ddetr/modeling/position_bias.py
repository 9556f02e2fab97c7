"""What is added to the logits of attention for where query and key are."""

from collections.abc import Iterator
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .bilinear import cells, interpolation, sample_table
from .precision import at_least_float32

#: Numbers that are computed at a time on CPUs: they stay in the cache of a core.
_AT_A_TIME = 2**16


class RelativeBias(NamedTuple):
    """
    Read bilinearly from a table of each head at the distance of query and key; zero outside.

    table: (M, A, B).
    rows, columns: (N, G, K, H) and (N, G, K, W), fractional indices along A and B of the rows and
        columns of queries, for each key of each group of heads.
    """

    table: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def at(cls, table: Tensor, positions: Tensor, y: Tensor, x: Tensor) -> "RelativeBias":
        """
        Args:
            table: (M, A, B), from a distance of -2 to 2 along both axes.
            positions: (N, G, K, 2), (y, x) of the keys in [-1, 1].
            y, x: (H,) and (W,), of the rows and columns of queries.
        """
        _, a, b = table.shape
        rows = cells((y - positions[..., :1]) / 2, a)
        return cls(table, rows, cells((x - positions[..., 1:]) / 2, b))

    def whole(self) -> Tensor:
        """(N, M, K, H * W)."""
        table = self.table.unflatten(0, (self.rows.shape[1], -1))
        found = sample_table(table, self.rows, self.columns)
        return found.permute(0, 1, 4, 2, 3, 5).flatten(4).flatten(1, 2)

    def by_head(self) -> "BiasProduct":
        """What is added to a head at a time, and has its gradients."""
        axes = zip((self.rows, self.columns), self.table.shape[1:])
        factors = (interpolation(index.transpose(0, 1).flatten(1, 2), size) for index, size in axes)
        return BiasProduct(at_least_float32(self.table), *factors)


class BiasProduct(NamedTuple):
    """
    :class:`RelativeBias` as rows @ table @ columns^T of each head and key.

    table: (M, A, B).
    rows, columns: (G, N * K, H, A) and (G, N * K, W, B), how much they read of those of the table.
    """

    table: Tensor
    rows: Tensor
    columns: Tensor

    def add_to(self, logits: Tensor, head: int) -> None:
        """In place, to (N, K, H * W) of one head."""
        for keys, rows, columns in self._parts(logits, head):
            keys.baddbmm_(rows, (columns @ self.table[head].T).transpose(1, 2))

    def add_gradients(self, grad: Tensor, head: int, gradients: "BiasProduct") -> None:
        """To `gradients`, in place, those that are due to `grad`, (N, K, H * W), of one head."""
        table = self.table[head]
        parts = zip(self._parts(grad, head), gradients._parts(grad, head))
        for (by, rows, columns), (_, of_rows, of_columns) in parts:
            of_rows.baddbmm_(by, columns @ table.T)
            of_lines = (by.transpose(1, 2) @ rows).flatten(0, 1)  # (keys * W, A)
            of_columns.flatten(0, 1).addmm_(of_lines, table)
            gradients.table[head].addmm_(of_lines.T, columns.flatten(0, 1))

    def _parts(self, logits: Tensor, head: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of a few keys at a time, of all images: logits (keys, H, W), rows and columns."""
        groups, keys, height, a = self.rows.shape
        width = self.columns.shape[2]
        group = head // (len(self.table) // groups)
        size = max(1, _AT_A_TIME // (width * a)) if logits.device.type == "cpu" else keys
        tensors = logits.view(keys, height, width), self.rows[group], self.columns[group]
        return zip(*(t.split(size) for t in tensors))


class AbsoluteBias(NamedTuple):
    """table: (M, K, H * W), of each key and query."""

    table: Tensor

    @classmethod
    def of(cls, table: Tensor, queries: int, keys: int) -> "AbsoluteBias":
        """From (M, H*W, K), stretched to other numbers as the authors do for detection."""
        stretched = F.interpolate(table[None], (queries, keys), mode="bilinear", align_corners=True)
        return cls(stretched[0].transpose(1, 2))

    def whole(self) -> Tensor:
        """(M, K, H * W)."""
        return self.table

    def by_head(self) -> "AbsoluteBias":
        """Itself."""
        return self

    def add_to(self, logits: Tensor, head: int) -> None:
        """In place, to (N, K, H * W) of one head."""
        logits.add_(self.table[head])

    def add_gradients(self, grad: Tensor, head: int, gradients: "AbsoluteBias") -> None:
        """To `gradients`, in place, those that are due to `grad`, (N, K, H * W), of one head."""
        gradients.table[head].add_(grad.sum(0))
