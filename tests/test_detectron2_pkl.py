"""Pickles of numpy arrays are read as data: nothing in them is run, whatever they ask for."""

import collections
import io
import os
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch

from detectron2_ddetr.checkpoint.files import load_checkpoint_file, model_state_dict
from detectron2_ddetr.errors import InputError

DTYPES = ["<f4", ">f4", "f8", "f2", "i1", "i2", "<i4", ">i8", "u1", "?"]


def arrays():
    rng = np.random.default_rng(0)
    content = {f"of_{t}": (100 * rng.random((2, 3, 4))).astype(t) for t in DTYPES}
    content["fortran"] = np.asfortranarray(rng.random((3, 5)))
    content["sliced"] = rng.random((6, 6))[::2, 1:4]
    content["empty"] = np.zeros((0, 3), np.float32)
    content["zero_dimensions"] = np.array(7)
    content["scalar"] = np.float32(0.5)
    return content


def check_arrays(state, content):
    assert state.keys() == content.keys()
    for name, array in content.items():
        assert isinstance(state[name], torch.Tensor), name
        assert state[name].shape == array.shape
        np.testing.assert_array_equal(state[name].numpy(), array, strict=False)
        assert state[name].numpy().dtype == array.dtype.newbyteorder("=")
        state[name].clone().zero_()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("container", [dict, collections.OrderedDict])
def test_arrays_come_back(tmp_path, protocol, container):
    """Every protocol, byte order and memory order; the outer entries too."""
    content = arrays()
    file = {"model": container(content), "__author__": "me", "matching_heuristics": True, "n": 3}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(file, protocol))
    checkpoint = load_checkpoint_file(str(tmp_path / "a.pkl"))
    check_arrays(model_state_dict(checkpoint, "a.pkl"), content)
    assert {k: v for k, v in checkpoint.items() if k != "model"} == {
        k: v for k, v in file.items() if k != "model"
    }


def test_numpy_1_and_python_2(tmp_path):
    """Module names of numpy 1, and byte strings of Python 2 in place of bytes."""
    content = {"x": np.arange(6, dtype="<f4").reshape(2, 3), "y": np.float64(-1.5)}
    data = pickle.dumps({"model": content}, 2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in data
    (tmp_path / "numpy1.pkl").write_bytes(data)
    raw = content["x"].tobytes()
    python2 = (
        b"\x80\x02}U\x05modelU\x01xcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"U\x01b\x87R(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ"
        b"\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(raw)]) + raw + b"tb"
    )
    python2 = python2.replace(b"U\x05modelU\x01x", b"U\x05model}U\x01x") + b"ss."
    np.testing.assert_array_equal(
        pickle.loads(python2, encoding="latin1")["model"]["x"], content["x"]
    )
    (tmp_path / "python2.pkl").write_bytes(python2)
    check_arrays(load_checkpoint_file(str(tmp_path / "numpy1.pkl"))["model"], content)
    check_arrays(load_checkpoint_file(str(tmp_path / "python2.pkl"))["model"], {"x": content["x"]})


class Calls:
    """Pickled, it calls `function` with `arguments`; then `state` is set."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = function, arguments, *([state] if state is not None else [])

    def __reduce__(self):
        return self.reduced


def reconstruct():
    return np.zeros(1).__reduce__()[0]


def opcode_file(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


def called(module, name):
    return f"c{module}\n{name}\n".encode()


HOSTILE = {
    "os.system": lambda marker: Calls(os.system, f"touch {marker}"),
    "eval": lambda marker: Calls(eval, f"open({marker!r}, 'w')"),
    "exec": lambda marker: Calls(exec, f"open({marker!r}, 'w')"),
    "open": lambda marker: Calls(open, marker, "w"),
    "getattr": lambda marker: Calls(getattr, Calls(__import__, "os"), "system"),
    "numpy.load": lambda marker: Calls(np.load, marker),
    "numpy.memmap": lambda marker: Calls(np.memmap, marker, "u1", "w+", 0, (4,)),
    "torch": lambda marker: torch.zeros(2),
    "objects": lambda marker: np.array([Calls(os.system, f"touch {marker}")], dtype=object),
    "records": lambda marker: np.zeros(2, dtype=[("a", "f4"), ("b", "O")]),
    "strings": lambda marker: np.array(["a", "b"]),
    "dates": lambda marker: np.array(["2020-01-01"], dtype="M8[D]"),
    "codec": lambda marker: Calls(__import__("_codecs").encode, "a" * 99, "zlib"),
    "bytes": lambda marker: Calls(bytes, 10**13),
    "subtype": lambda marker: Calls(reconstruct(), np.memmap, (2,), b"b"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_is_run(tmp_path, name, protocol):
    """The allowed names included, called with what they were not meant for."""
    marker, path = str(tmp_path / "marker"), tmp_path / "hostile.pkl"
    for content in (HOSTILE[name](marker), {"model": {"a": [HOSTILE[name](marker)]}}):
        try:
            path.write_bytes(pickle.dumps(content, protocol))
        except (TypeError, pickle.PicklingError):
            pytest.skip("cannot be pickled so")
        with pytest.raises(InputError, match="hostile.pkl"):
            model_state_dict(load_checkpoint_file(str(path)), str(path))
        assert not os.path.exists(marker)


ARRAY = called("numpy.core.multiarray", "_reconstruct")
BY_HAND = {
    "dotted": called("numpy.core.multiarray", "_reconstruct.__globals__"),
    "state of a function": ARRAY + b"}X\x08\x00\x00\x00functionK\x01sb",
    "slots of a function": ARRAY + b"N}X\x08\x00\x00\x00functionK\x01s\x86b",
    "a class is made": called("collections", "OrderedDict") + b")\x81",
    "no type": ARRAY + b")R(K\x01K\x02\x85NNC\x08aaaaaaaatb",
    "negative": called("numpy", "dtype") + b"X\x02\x00\x00\x00f4\x85R0"
    + called("numpy.core.multiarray", "_reconstruct") + b")R(K\x01J\xff\xff\xff\xff\x85"
    + called("numpy", "dtype") + b"X\x02\x00\x00\x00f4\x85R\x89C\x00tb",
    "an enormous shape": ARRAY + b")R(K\x01\x8a\x06\x00\x00\x00\x00\x00\x01\x85"
    + called("numpy", "dtype") + b"X\x02\x00\x00\x00f4\x85R\x89C\x04aaaatb",
    "an enormous dtype": called("numpy", "dtype") + b"X\x0b\x00\x00\x00V1000000000\x85R",
    "an enormous memo": b"K\x01r\xff\xff\xff\xfe",
    "an enormous buffer": b"\x96" + struct.pack("<Q", 2**44),
    "an enormous text": b"\x8d" + struct.pack("<Q", 2**44),
    "a persistent id": b"X\x01\x00\x00\x00aQ",
    "an extension": b"\x82\x01",
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_pickles_made_by_hand(tmp_path, name):
    """Refused without making room for what is not in the file: 2 GiB are all there is."""
    path = tmp_path / "hand.pkl"
    path.write_bytes(opcode_file(BY_HAND[name]))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, limits[1]))
    try:
        with pytest.raises(InputError, match="hand.pkl"):
            load_checkpoint_file(str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_damaged_pickles_are_called_damaged(tmp_path):
    data = pickle.dumps({"model": arrays()}, 4)
    for content in (data[:-1], data[: len(data) // 2], data[:5], data[:300] + data[301:]):
        (tmp_path / "cut.pkl").write_bytes(content)
        with pytest.raises(InputError, match="damaged or incomplete"):
            load_checkpoint_file(str(tmp_path / "cut.pkl"))


def archive(names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        for name in names:
            z.writestr(name, b"x" * 9)
    return file.getvalue()


def script():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    return file.getvalue()


OTHERS = {
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), "convert"),
    "web page": (lambda: b"<!DOCTYPE html><html>", "download"),
    "Git LFS": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
        "git lfs pull",
    ),
    "compressed": (lambda: b"\x1f\x8b\x08" + bytes(50), "unpack"),
    "archive of 2": (lambda: archive(["a.npy", "b.npy"]), "unpack"),
    "TorchScript": (script, "torch.jit.load"),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.filterwarnings("ignore")
def test_sound_files_of_other_kinds_are_named(tmp_path, what):
    """What it is and the way out; "damaged" is for what is damaged."""
    make, remedy = OTHERS[what]
    (tmp_path / "other.pth").write_bytes(make())
    with pytest.raises(InputError, match=f"other.pth.*{what}.*{remedy}") as error:
        load_checkpoint_file(str(tmp_path / "other.pth"))
    assert "damaged" not in str(error.value)


def test_a_dict_in_itself(tmp_path):
    content = {"model": {}}
    content["model"]["model"] = content
    for write in (lambda f: pickle.dump(content, f), lambda f: torch.save(content, f)):
        with open(tmp_path / "loop.pkl", "wb") as f:
            write(f)
        with pytest.raises(InputError, match="tensors only"):
            model_state_dict(load_checkpoint_file(str(tmp_path / "loop.pkl")), "loop.pkl")
