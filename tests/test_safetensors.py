"""The .safetensors format by its description: every byte is accounted for, or it is refused."""

import json
import struct

import pytest
import torch

from detectron2_ddetr.checkpoint.files import load_checkpoint_file
from detectron2_ddetr.checkpoint.safetensors import load_safetensors, save_safetensors
from detectron2_ddetr.checkpoint.shards import shards_of
from detectron2_ddetr.errors import InputError


def file_of(header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype, shape, *offsets):
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def test_a_file_written_by_hand(tmp_path):
    """Little-endian numbers in C order, whatever the order of the header; an empty tensor."""
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("BF16", [2], 24, 28),
        "a": entry("F32", [2, 3], 0, 24),
        "none": entry("I64", [0, 5], 28, 28),
        "one": entry("F64", [], 28, 36),
    }
    data = struct.pack("<6f", 1, 2, 3, 4, 5, 6) + b"\x80\x3f\x00\xc0" + struct.pack("<d", 0.5)
    (tmp_path / "x.safetensors").write_bytes(file_of(header, data))
    tensors, metadata = load_safetensors(str(tmp_path / "x.safetensors"))
    assert metadata == {"format": "pt"} and list(tensors) == ["b", "a", "none", "one"]
    assert tensors["a"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert tensors["b"].dtype == torch.bfloat16 and tensors["b"].tolist() == [1.0, -2.0]
    assert tensors["none"].shape == (0, 5) and tensors["none"].dtype == torch.int64
    assert tensors["one"].shape == () and tensors["one"].item() == 0.5
    loaded = load_checkpoint_file(str(tmp_path / "x.safetensors"))
    assert loaded.keys() == {"model"} and torch.equal(loaded["model"]["a"], tensors["a"])


def test_round_trip(tmp_path):
    """Also of NaN, of what is not contiguous, and of names that are not ASCII."""
    tensors = {
        "é.weight": torch.randn(3, 4).t(),
        "half": torch.tensor([1.0, float("nan"), -float("inf")], dtype=torch.float16),
        "count": torch.tensor(3),
        "empty": torch.zeros(2, 0),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }
    path = str(tmp_path / "x.safetensors")
    save_safetensors(tensors, path, {"licence": "MIT"})
    found, metadata = load_safetensors(path)
    assert metadata == {"licence": "MIT"} and found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)
    begin = 8 + struct.unpack("<Q", (tmp_path / "x.safetensors").read_bytes()[:8])[0]
    assert begin % 8 == 0
    with pytest.raises(InputError, match="flags is of type torch.bool"):
        save_safetensors({"flags": torch.tensor([True])}, path, {})


A = {"a": entry("F32", [2], 0, 8)}
NUMBERS = struct.pack("<2f", 1, 2)
DAMAGED = {
    "more bytes": file_of(A, NUMBERS + b"\0"),
    "fewer bytes": file_of(A, NUMBERS[:-1]),
    "a gap": file_of({**A, "b": entry("F32", [1], 12, 16)}, NUMBERS + bytes(8)),
    "an overlap": file_of({**A, "b": entry("F32", [2], 4, 12)}, NUMBERS + bytes(4)),
    "the same bytes twice": file_of({**A, "b": entry("F32", [2], 0, 8)}, NUMBERS),
    "not from the first byte": file_of({"a": entry("F32", [1], 4, 8)}, NUMBERS),
    "another shape": file_of({"a": entry("F32", [3], 0, 8)}, NUMBERS),
    "backwards": file_of({"a": entry("F32", [2], 8, 0)}, NUMBERS),
    "a negative size": file_of({"a": entry("F32", [-2], 0, 8)}, NUMBERS),
    "two negative sizes": file_of({"a": entry("F32", [-1, -2], 0, 8)}, NUMBERS),
    "a size that is true": file_of({"a": entry("F32", [True, 2], 0, 8)}, NUMBERS),
    "a size that is no int": file_of({"a": entry("F32", [2.0], 0, 8)}, NUMBERS),
    "three offsets": file_of({"a": entry("F32", [2], 0, 8, 8)}, NUMBERS),
    "no offsets": file_of({"a": {"dtype": "F32", "shape": [2]}}, NUMBERS),
    "an enormous shape": file_of({"a": entry("F32", [2**47, 2**47], 0, 8)}, NUMBERS),
    "a name twice": file_of(b'{"a":{},"a":{}}', b""),
    "no JSON": file_of(b'{"a":', b""),
    "not of UTF-8": file_of(b'{"\xff":1}', b""),
    "deep": file_of(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b""),
    "metadata": file_of({"__metadata__": [1]}, b""),
    "a longer header": file_of(A, NUMBERS, length=10_000),
    "an enormous header": file_of(A, NUMBERS, length=2**39),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_refused(tmp_path, what):
    (tmp_path / "x.safetensors").write_bytes(DAMAGED[what])
    with pytest.raises(InputError, match="x.safetensors: .*damaged or incomplete"):
        load_checkpoint_file(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "C64", None, ["F32"]])
def test_other_types_are_named(tmp_path, dtype):
    (tmp_path / "x.safetensors").write_bytes(file_of({"a": entry(dtype, [2], 0, 8)}, NUMBERS))
    with pytest.raises(InputError, match="x.safetensors: a is of type .*known are F64"):
        load_checkpoint_file(str(tmp_path / "x.safetensors"))


# Weights in several files, as `save_pretrained(..., max_shard_size=...)` of transformers writes.


def shards(folder, weight_map):
    """Tensors a and b in one file, c in the other; the path of the index."""
    save_safetensors(
        {"a": torch.ones(2), "b": torch.zeros(3)}, str(folder / "model-1.safetensors"), {}
    )
    save_safetensors({"c": torch.arange(4)}, str(folder / "model-2.safetensors"), {})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 52}, "weight_map": weight_map}))
    return str(index)


FIRST, SECOND = "model-1.safetensors", "model-2.safetensors"


def test_shards_are_one_state_dict(tmp_path):
    """In the order of the index; a folder with it is that of the weights."""
    index = shards(tmp_path, {"a": FIRST, "c": SECOND, "b": FIRST})
    (tmp_path / "config.json").write_text("{}")
    for path in (index, str(tmp_path)):
        found = load_checkpoint_file(path)["model"]
        assert list(found) == ["a", "c", "b"]
        assert torch.equal(found["c"], torch.arange(4)) and torch.equal(found["b"], torch.zeros(3))


@pytest.mark.parametrize(
    "weight_map, words",
    [
        ({"a": FIRST, "b": FIRST}, None),
        ({"a": FIRST, "c": SECOND}, f"{FIRST} holds other tensors than it says, b is one of 1"),
        ({"a": FIRST, "b": SECOND}, "holds other tensors than it says"),
        ({"a": FIRST, "b": FIRST, "c": "model-3.safetensors"}, "1 of its 2 files .* first model-3"),
        ({"a": "../model-1.safetensors"}, "must say which file beside it"),
        ({"a": "model.safetensors.index.json"}, "must say which file beside it"),
        ({"a": 3}, "must say which file beside it"),
        ({}, "must say which file beside it"),
        ([FIRST], "must say which file beside it"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(weight_map, words, tmp_path):
    index = shards(tmp_path, weight_map)
    if words is None:
        assert list(load_checkpoint_file(index)["model"]) == ["a", "b"]
        return
    with pytest.raises(InputError, match=f"index.json: .*{words}"):
        load_checkpoint_file(index)


def test_an_index_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "x.index.json").write_text("{")
    with pytest.raises(InputError, match="x.index.json: is no JSON .* download it again"):
        load_checkpoint_file(str(tmp_path / "x.index.json"))


def test_files_of_an_index(tmp_path):
    """Whose digest is that of the weights."""
    index = shards(tmp_path, {"a": FIRST, "b": FIRST, "c": SECOND})
    assert shards_of(index) == [str(tmp_path / FIRST), str(tmp_path / SECOND)]
    assert shards_of(str(tmp_path / FIRST)) == [str(tmp_path / FIRST)]
