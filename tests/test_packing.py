"""A batch as one tensor, and few open files."""

import re
import resource

import numpy as np
import pytest
import torch

from detectron2_ddetr.data import packing
from detectron2_ddetr.data.packing import pack, require_open_files, unpack
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import Boxes, Instances

from .fork_server import python


def sample(i):
    instances = Instances((4 + i, 6))
    instances.gt_boxes = Boxes(torch.rand(i, 4))
    instances.gt_classes = torch.arange(i)
    return {"image": torch.randint(256, (3, 4 + i, 6), dtype=torch.uint8), "instances": instances}


def test_everything_comes_back():
    tensor = torch.rand(4, 5)
    odd = {
        "shared": [tensor, tensor],
        "strided": tensor.t()[::2],
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4, dtype=torch.bool),
        "half": torch.rand(3).half(),
        "complex": torch.rand(3, dtype=torch.complex128),
        "parameter": torch.nn.Parameter(torch.rand(2)),
        "sparse": torch.eye(3).to_sparse(),
        "array": np.arange(3),
        "text": "a",
    }
    batch = [sample(i) for i in (0, 1, 3)] + [odd]
    packed = pack(batch)
    assert packed[1].dtype == torch.uint8 and packed[1].dim() == 1
    *samples, other = unpack(packed)
    for ours, expected in zip(samples, batch[:3], strict=True):
        assert torch.equal(ours["image"], expected["image"])
        assert ours["instances"].image_size == expected["instances"].image_size
        boxes = [s["instances"].gt_boxes.tensor for s in (ours, expected)]
        assert torch.equal(*boxes)
        classes = [s["instances"].gt_classes for s in (ours, expected)]
        assert torch.equal(*classes) and classes[0].dtype == torch.int64
    assert set(other) == set(odd)
    for name, value in odd.items():
        if isinstance(value, torch.Tensor):
            assert type(other[name]) is type(value) and other[name].dtype == value.dtype
            assert torch.equal(other[name].to_dense(), value.to_dense()), name
    assert torch.equal(other["shared"][0], tensor) and other["text"] == "a"
    assert other["array"].tolist() == [0, 1, 2]


def test_an_empty_batch():
    assert unpack(pack([])) == [] and unpack(pack([{"file_name": "a"}])) == [{"file_name": "a"}]


LOADER = """
import itertools, os, resource, sys
import torch
from torch.utils.data import Dataset
from detectron2_ddetr.data.packing import require_open_files
from detectron2_ddetr.data.train_loader import PackedLoader

class Images(Dataset):
    def __len__(self):
        return 10**6
    def __getitem__(self, i):
        return {name: torch.full((2, 3), i % 99) for name in ("image", "boxes", "classes")}

workers, batch_size, limit = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
require_open_files(workers)
loader = PackedLoader(Images(), batch_size=batch_size, num_workers=workers)
held, most = [], 0
for i, batch in enumerate(itertools.islice(loader, 12)):
    assert [int(s["boxes"][0, 0]) for s in batch] == [
        (i * batch_size + k) % 99 for k in range(batch_size)
    ]
    held = [*held[-1:], batch]
    most = max(most, len(os.listdir("/dev/fd")))
print("open files:", most)
"""


def load(folder, *arguments, script=LOADER, expected=0):
    """What a process prints that reads with (workers, images of a batch, limit of open files)."""
    path = folder / "load.py"
    path.write_text(script)
    status, log = python(path, *arguments, timeout=60)
    assert status == expected, log
    return log


def test_large_batches_need_few_open_files(tmp_path):
    """Without packing, 8 workers and batches of 64 hold about 3 000 descriptors."""
    log = load(tmp_path, 8, 64, 256)
    assert int(log.split("open files:")[1]) < 8 * 8 + 32


def test_too_low_a_limit_is_said_before_the_start(tmp_path):
    message = load(tmp_path, 4, 8, 40, expected=1).splitlines()[-1]
    assert "NUM_WORKERS 4 needs about" in message and "is 40: raise it" in message
    assert "ulimit -n" in message
    load(tmp_path, 0, 8, 40)


EVALUATION = LOADER.replace("require_open_files(workers)", "require_open_files(workers, loaders=2)")
EVALUATION += """
require_open_files(workers)
second = PackedLoader(Images(), batch_size=1, num_workers=workers)
assert len(list(itertools.islice(second, 12))) == 12
"""


def test_what_a_training_asks_for_is_enough_for_its_evaluations(tmp_path):
    """Else a training that was let begin would end where it first evaluates."""
    refused = load(tmp_path, 4, 8, 64, script=EVALUATION, expected=1)
    needed = int(re.search(r"ulimit -n (\d+)", refused)[1])
    load(tmp_path, 4, 8, needed - 1, script=EVALUATION, expected=1)
    load(tmp_path, 4, 8, needed, script=EVALUATION)


def test_soft_limit_is_raised_when_it_may_be(monkeypatch):
    limits = {"now": (40, 4096)}
    monkeypatch.setattr(packing.resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(packing.resource, "setrlimit", lambda _, new: limits.update(now=new))
    require_open_files(0)
    assert limits["now"] == (40, 4096)
    require_open_files(4)
    soft, hard = limits["now"]
    assert 40 < soft < 200 and hard == 4096
    require_open_files(4)
    assert limits["now"] == (soft, hard)
    with pytest.raises(InputError, match="NUM_WORKERS 900 needs about .* is 4096"):
        require_open_files(900)
    limits["now"] = (64, resource.RLIM_INFINITY)
    require_open_files(900)
    assert limits["now"][0] > 900 * 8
