"""Writing checkpoints: a file is complete or not there, whatever ends the process."""

import os

import pytest
import torch

from detectron2_ddetr import Checkpointer
from detectron2_ddetr.checkpoint.files import load_checkpoint_file, save_atomically

from .fork_server import python
from .test_checkpoint import build, same, snapshot


def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    """The file, the tag and the folder are as before."""
    model = build(seed=1)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("a")
    before, save = snapshot(model), torch.save

    def half(data, f):
        save(data, f)
        f.truncate(f.tell() // 2)
        raise OSError("no space left on device")

    torch.nn.init.ones_(model.head.query_embed.weight)
    for name in ("a", "b"):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", half)
            with pytest.raises(OSError, match="no space"):
                checkpointer.save(name)
        assert sorted(os.listdir(tmp_path)) == ["a.pth", "last_checkpoint"]
        assert checkpointer.get_checkpoint_file() == str(tmp_path / "a.pth")
    checkpointer.load(checkpointer.get_checkpoint_file())
    assert same(before, model)


def test_a_crash_while_tagging_leaves_the_old_tag(tmp_path, monkeypatch):
    checkpointer = Checkpointer(build(), str(tmp_path))
    checkpointer.save("a")
    replace = os.replace

    def fail_on_tag(source, target):
        if target.endswith("last_checkpoint"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_on_tag)
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save("b")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "a.pth")
    checkpointer.save("c")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "c.pth")


KILLED = """
import os, random, signal, sys, time
import torch
from detectron2_ddetr.checkpoint.files import load_checkpoint_file, save_atomically
path, rng = sys.argv[1], random.Random(0)
save_atomically({"i": 0, "x": torch.full((50_000,), 0)}, path)
found = []
for _ in range(6):
    child = os.fork()
    if child == 0:
        while True:
            i = load_checkpoint_file(path)["i"] + 1
            save_atomically({"i": i, "x": torch.full((50_000,), i)}, path)
    time.sleep(rng.uniform(0.02, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    data = load_checkpoint_file(path)
    assert data["x"].shape == (50_000,) and (data["x"] == data["i"]).all()
    found.append(data["i"])
assert found == sorted(found) and found[-1] > 2, found
"""


def test_a_killed_process_leaves_a_loadable_file(tmp_path):
    """SIGKILL at any moment of a loop of saves."""
    status, log = python("-c", KILLED, tmp_path / "model.pth")
    assert status == 0, log


def test_only_processes_that_may_write_do(tmp_path):
    Checkpointer(build(), str(tmp_path), save_to_disk=False).save("a")
    Checkpointer(build(), "").save("a")
    assert os.listdir(tmp_path) == []


def test_a_plain_dict_is_read_back(tmp_path):
    data = {"a": torch.arange(3), "b": [1, ("x", 2.5, None)]}
    save_atomically(data, str(tmp_path / "data.pth"))
    loaded = load_checkpoint_file(str(tmp_path / "data.pth"))
    assert torch.equal(loaded["a"], data["a"]) and loaded["b"] == data["b"]
