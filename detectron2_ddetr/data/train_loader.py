"""Training data in an order that is a function of the seed and the iteration alone."""

import signal
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import InputError
from ..toolbox import CfgNode, DatasetFromList, comm, get_detection_dataset_dicts
from .dataset_mapper import DeformableDETRDatasetMapper
from .packing import pack, require_open_files, unpack


class EpochShuffle(Dataset):
    """
    An endless series of epochs over a list, each a permutation of its own.

    Item `position`, any integer from 0 on, is the dataset dict at that place of the series with the
    key "draw" = (seed, position) added; epoch e is the positions [e * len, (e + 1) * len).
    """

    def __init__(
        self,
        dataset_dicts: list[dict[str, Any]],
        seed: int,
        mapper: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ):
        """
        Args:
            dataset_dicts: one per image.
            seed: non-negative.
            mapper: applied to each item; None returns the dataset dicts themselves.
        """
        if not isinstance(seed, Integral) or seed < 0:
            raise InputError(f"seed must be an integer from 0 on, got {seed!r}; choose SEED >= 0")
        if not dataset_dicts:
            raise InputError("no image to train on; check DATASETS.TRAIN and its json")
        # Serialised into one tensor, which worker processes share instead of copying.
        self._dataset = DatasetFromList(dataset_dicts, copy=False)
        self.seed = seed
        self.mapper = mapper
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Images per epoch."""
        return len(self._dataset)

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, index = divmod(int(position), len(self))
        if epoch != self._epoch:
            self._permutation = self._permute(epoch)
            self._epoch = epoch
        item = self._dataset[int(self._permutation[index])]
        item = {**item, "draw": (self.seed, int(position))}
        return item if self.mapper is None else self.mapper(item)

    def _permute(self, epoch: int) -> torch.Tensor:
        """(len,) int64, a function of the seed and the epoch."""
        # SeedSequence mixes the pair, so that (0, 1) and (1, 0) differ.
        state = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        return torch.randperm(len(self), generator=generator)


class PositionSampler(Sampler):
    """Yields start + rank, then every `world_size`-th position after it, forever."""

    def __init__(self, start: int, rank: int, world_size: int):
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[int]:
        position = self.start + self.rank
        while True:
            yield position
            position += self.world_size


class PackedLoader(DataLoader):
    """A :class:`DataLoader` whose batches come as lists, and from workers as one tensor each."""

    def __init__(self, dataset: Dataset, **options: Any):
        super().__init__(dataset, collate_fn=pack, **options)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return map(unpack, super().__iter__())


def build_train_loader(cfg: CfgNode, *, seed: int, first_image: int = 0) -> DataLoader:
    """
    The training loader of `cfg`, from the position `first_image` on.

    With B = SOLVER.IMS_PER_BATCH, iteration i of all ranks together is the positions
    [i * B, (i + 1) * B) of :class:`EpochShuffle`; of these, rank r of R takes every R-th. So the
    images, their order and their augmentation depend neither on the number of ranks or workers nor
    on where the training was interrupted.

    Args:
        seed: non-negative, the same on all ranks.
        first_image: how many positions were trained on before.

    Returns:
        A loader that never ends; each batch is a list of B / R mapped dicts.

    Raises:
        InputError: naming the key, its value and the remedy.
    """
    # Differs from the official code: one permutation is dealt to the ranks in turn, and an epoch's
    # incomplete last batch is filled from the next epoch instead of being dropped.
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        raise InputError(
            "DATALOADER.ASPECT_RATIO_GROUPING must be False, got True: with grouping the order of "
            "the images depends on the history, and a training could not be resumed exactly"
        )
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise InputError(
            "DATALOADER.SAMPLER_TRAIN must be 'TrainingSampler', got "
            f"{cfg.DATALOADER.SAMPLER_TRAIN!r}; other samplers are not implemented"
        )
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty; name at least one registered data set")
    batch_size, world_size = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if batch_size < 1 or batch_size % world_size != 0:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH ({batch_size}) must be a positive multiple of the number of "
            f"processes ({world_size})"
        )
    if first_image < 0:
        raise InputError(f"first_image must be at least 0, got {first_image}")
    dataset_dicts = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    mapper = DeformableDETRDatasetMapper(cfg, is_train=True)
    require_open_files(cfg.DATALOADER.NUM_WORKERS, loaders=2)
    # Not detectron2's loader: its wrapper keeps a set of every index it has seen, and positions
    # never repeat.
    return PackedLoader(
        EpochShuffle(dataset_dicts, seed, mapper),
        batch_size=batch_size // world_size,
        sampler=PositionSampler(first_image, comm.get_rank(), world_size),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        worker_init_fn=_leave_ctrl_c_to_trainer,
        # Its own, since starting the loader draws a number: from the global generator it would
        # shift the dropout of the first iteration after a resume.
        generator=torch.Generator().manual_seed(seed),
    )


def _leave_ctrl_c_to_trainer(worker_id: int) -> None:
    """Ctrl-C reaches the workers too, but the trainer wants to finish its step, for which it
    needs them. It ends them itself, with SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
