"""Faults of image files: found by a header check or while decoding, named, with a remedy."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from detectron2_ddetr.data.dataset_mapper import DeformableDETRDatasetMapper
from detectron2_ddetr.data.image_files import read_image
from detectron2_ddetr.errors import InputError

from .test_image_files import GREY, HEIGHT, RGB, WIDTH, check_images, grey3, save


def deep_files(tmp_path):
    """Images of which eight bits a channel would keep nothing: (path, mode in the message)."""
    sixteen = GREY.astype(np.uint16) * 257
    images = {
        "16.png": sixteen,
        "16.tif": sixteen,
        "12_of_16.png": GREY.astype(np.uint16) * 16,
        "12_of_16.tif": GREY.astype(np.uint16) * 16,
        "big_endian.tif": sixteen.astype(">u2"),
        "32.tif": GREY.astype(np.int32) * 1000,
        "float.tif": GREY.astype(np.float32) / 255,
        "16.pgm": sixteen,
    }
    for name, array in images.items():
        path = tmp_path / name
        if name == "16.pgm":
            path.write_bytes(b"P5 10 6 65535\n" + array.astype(">u2").tobytes())
        else:
            Image.fromarray(array).save(path)
        yield str(path)
    path = tmp_path / "packed_12.tif"
    path.write_bytes(tiff_12_bits())
    yield str(path)


def tiff_12_bits():
    """Grey of 12 bits a pixel, packed: two pixels in three bytes."""
    rows = GREY.reshape(-1, 2).astype(int) * 16
    data = bytes(
        byte for a, b in rows.tolist() for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255)
    )
    tags = [(256, WIDTH), (257, HEIGHT), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, HEIGHT), (279, len(data))]
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory + b"\0\0\0\0"


def test_pixels_of_more_than_eight_bits_are_refused_by_name(tmp_path):
    files = list(deep_files(tmp_path))
    for path in files:
        with pytest.raises(InputError, match=r"mode (I|I;16|I;16B|F)\).*np.clip") as caught:
            read_image(path)
        assert path in str(caught.value)
    dicts = [{"file_name": path, "image_id": i} for i, path in enumerate(files)]
    with pytest.raises(InputError, match=f"'xray': {len(files)} of {len(files)} images") as caught:
        check_images(dicts, "xray")
    assert all(path in str(caught.value) for path in files)
    assert str(caught.value).count("Remedy: ") == 1


def test_the_remedy_for_deep_pixels_works(tmp_path):
    path, *_ = deep_files(tmp_path)
    with pytest.raises(InputError) as caught:
        read_image(path)
    code = "a = " + str(caught.value).split("a = ")[1].replace("; Image", "\nImage")
    new = str(tmp_path / "new.png")
    exec(code, {"np": np, "Image": Image, "old": path, "new": new, "LOW": 0, "HIGH": 65535})
    assert np.abs(read_image(new).astype(int) - grey3(GREY)).max() <= 1


def test_sizes_that_differ_are_listed_together(tmp_path):
    """The json has the stored size, the file is turned by EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    dicts = []
    for i in range(14):
        path = save(
            Image.fromarray(RGB), tmp_path / f"{i}.jpg", **({"exif": exif} if i > 1 else {})
        )
        dicts.append({"file_name": path, "image_id": i, "width": WIDTH, "height": HEIGHT})
    with pytest.raises(InputError, match="'turned': 12 of 14 images cannot be used") as caught:
        check_images(dicts, "turned")
    lines = str(caught.value).splitlines()
    size = "json says width x height = 10 x 6 but the file has 6 x 10, turned upright as its EXIF"
    assert len([line for line in lines if size in line]) == 10
    assert "image 2 (" in lines[1] and lines[11] == "  ... and 2 more"
    assert lines[12].startswith("Remedy: if the boxes belong to the image as it is stored, take")
    with pytest.raises(InputError, match="Remedy: correct the json or the file") as caught:
        check_images([{**dicts[0], "width": 9}], "cut")
    assert "EXIF" not in str(caught.value)


def large_png(path, width, height):
    """A grey PNG of zeros, made row by row."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return str(path)


def test_faults_of_every_kind_in_one_message(tmp_path):
    sound = save(Image.fromarray(RGB), tmp_path / "sound.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    (tmp_path / "cut.png").write_bytes(open(sound, "rb").read()[:20])
    (tmp_path / "folder.png").mkdir()
    bomb = large_png(tmp_path / "large.png", 15000, 12000)
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "deep.png")
    names = [
        "sound",
        "empty.jpg",
        "page.jpg",
        "cut.jpg",
        "cut.png",
        "folder.png",
        "deep.png",
        "gone",
    ]
    dicts = [{"file_name": str(tmp_path / name), "image_id": name} for name in names[1:]]
    dicts += [
        {"image_id": "nameless"},
        {"file_name": bomb, "image_id": "bomb"},
        {"file_name": sound, "image_id": "sound"},
    ]
    with pytest.raises(InputError, match="9 of 10 images cannot be used") as caught:
        check_images(dicts, "faults")
    text = str(caught.value)
    assert "image sound (" not in text and text.count("cannot be decoded (") == 5
    for expected in (
        r"empty.jpg): the file cannot be decoded (it is empty)",
        r"gone): the file does not exist",
        r"large.png): too large to be decoded (Image size (180000000 pixels) exceeds limit",
        r"deep.png): its pixels are integers of more than 8 bits",
    ):
        assert expected in text
    assert text.count("Remedy: ") == 5
    for dataset_dict in dicts[:-1]:  # what the header shows, the mapper says too
        mapper = DeformableDETRDatasetMapper(False, augmentations=[], image_format="RGB")
        with pytest.raises(InputError, match=f"^image {dataset_dict['image_id']} \\("):
            mapper(dataset_dict)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_damage_ends_in_another_error(tmp_path):
    """Bytes changed, cut and repeated: sound pixels, or an InputError that names the file."""
    exif = Image.Exif()
    exif[0x0112] = 3
    rng = np.random.default_rng(0)
    outcomes = set()
    for ending in ("png", "jpg", "tif", "gif", "webp", "bmp", "pgm"):
        options = {} if ending in ("gif", "bmp", "pgm") else {"exif": exif}
        path = tmp_path / f"a.{ending}"
        Image.fromarray(GREY if ending == "pgm" else RGB).save(path, **options)
        content = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(content)
            for place in rng.integers(len(content), size=rng.integers(1, 6)):
                damaged[place] = rng.integers(256)
            path.write_bytes(
                damaged[: rng.integers(8, len(damaged) + 1)] if rng.random() < 0.3 else damaged
            )
            try:
                array = read_image(str(path))
                assert array.ndim == 3 and array.shape[2] == 3
                outcomes.add("read")
            except InputError as error:
                assert str(path) in str(error)
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(
    "error", [MemoryError(), struct.error("x"), zlib.error("y"), Image.DecompressionBombError("z")]
)
def test_exceptions_of_decoders_name_the_file(tmp_path, monkeypatch, error):
    path = save(Image.fromarray(RGB), tmp_path / "a.png")

    def fail(*_):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(InputError, match="a.png: .*decoded") as caught:
        read_image(path)
    assert caught.value.__cause__ is error
