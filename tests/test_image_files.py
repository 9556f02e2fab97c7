"""Image formats against what was written into them, and what a header check finds."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from detectron2_ddetr.data.dataset_mapper import DeformableDETRDatasetMapper
from detectron2_ddetr.data.image_files import read_headers, read_image
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import TOOLBOX

HEIGHT, WIDTH = 6, 10
GREY = (np.arange(60) * 4).astype(np.uint8).reshape(HEIGHT, WIDTH)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
ALPHA = GREY[::-1].copy()


def check_images(dataset_dicts, name):
    complaint = read_headers(dataset_dicts, name).complaint()
    if complaint:
        raise InputError(complaint)


def grey3(array):
    return np.repeat(array[..., None], 3, axis=-1)


def png(path, bit_depth, colour_type, rows):
    """A PNG as the standard says, for depths that Pillow cannot write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bit_depth, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    content = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def save(image, path, **options):
    image.save(path, **options)
    return str(path)


def test_formats_of_eight_bits_keep_their_pixels(tmp_path):
    grey, colour = Image.fromarray(GREY), Image.fromarray(RGB)
    alpha = Image.fromarray(ALPHA)
    bits = np.where(GREY > 100, 255, 0).astype(np.uint8)
    palette = Image.fromarray(GREY // 64, "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    table = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]], np.uint8)
    cases = {
        "grey.png": (grey, grey3(GREY), {}),
        "grey.tif": (grey, grey3(GREY), {}),
        "grey.pgm": (grey, grey3(GREY), {}),
        "one_bit.png": (Image.fromarray(bits).convert("1"), grey3(bits), {}),
        "one_bit.tif": (Image.fromarray(bits).convert("1"), grey3(bits), {"compression": "group4"}),
        "la.png": (Image.merge("LA", [grey, alpha]), grey3(GREY), {}),
        "rgb.png": (colour, RGB, {}),
        "rgb.bmp": (colour, RGB, {}),
        "rgb.tif": (colour, RGB, {"compression": "tiff_lzw"}),
        "rgb.webp": (colour, RGB, {"lossless": True}),
        "rgba.png": (Image.merge("RGBA", [*colour.split(), alpha]), RGB, {}),
        "rgba.tif": (Image.merge("RGBA", [*colour.split(), alpha]), RGB, {}),
        "palette.png": (palette, table[GREY // 64], {}),
        "palette.gif": (palette, table[GREY // 64], {}),
        "palette.tif": (palette, table[GREY // 64], {}),
        "cmyk.tif": (colour.convert("CMYK"), RGB, {}),
        "animation.gif": (grey, grey3(GREY), {"save_all": True, "append_images": [alpha]}),
        "animation.png": (colour, RGB, {"save_all": True, "append_images": [colour.rotate(180)]}),
    }
    dicts = []
    for name, (image, expected, options) in cases.items():
        path = save(image, tmp_path / name, **options)
        array = read_image(path)
        assert array.shape == (HEIGHT, WIDTH, 3) and array.dtype == np.uint8, name
        np.testing.assert_array_equal(array, expected, err_msg=name)
        np.testing.assert_array_equal(read_image(path, "BGR"), expected[..., ::-1], err_msg=name)
        dicts.append({"file_name": path, "width": WIDTH, "height": HEIGHT, "image_id": name})
    check_images(dicts, "formats")


def test_lossy_formats_are_near(tmp_path):
    smooth = np.stack(np.broadcast_arrays(np.arange(64), np.arange(48)[:, None], 90), -1)
    smooth = smooth.astype(np.uint8)
    for name, mode in (("a.jpg", "RGB"), ("b.jpg", "CMYK"), ("c.jpg", "L"), ("d.webp", "RGB")):
        path = save(Image.fromarray(smooth).convert(mode), tmp_path / name, quality=95)
        expected = (
            grey3(np.asarray(Image.fromarray(smooth).convert("L"))) if mode == "L" else smooth
        )
        assert np.abs(read_image(path).astype(int) - expected).max() <= 6, name


def test_deep_pngs_that_pillow_scales(tmp_path):
    """16 bits a channel in colour or with alpha: the high byte. 2 and 4 bits: scaled to 8."""
    high, low = RGB, np.full_like(RGB, 77)
    png(tmp_path / "rgb16.png", 16, 2, np.stack([high, low], -1).reshape(HEIGHT, -1))
    np.testing.assert_array_equal(read_image(tmp_path / "rgb16.png"), RGB)
    la = np.stack([GREY, np.full_like(GREY, 9), ALPHA, ALPHA], -1)
    png(tmp_path / "la16.png", 16, 4, la.reshape(HEIGHT, -1))
    np.testing.assert_array_equal(read_image(tmp_path / "la16.png"), grey3(GREY))
    four = GREY // 16
    png(tmp_path / "grey4.png", 4, 0, four[:, ::2] * 16 + four[:, 1::2])
    np.testing.assert_array_equal(read_image(tmp_path / "grey4.png"), grey3(four * 17))
    dicts = [{"file_name": str(p), "width": WIDTH, "height": HEIGHT} for p in tmp_path.iterdir()]
    check_images(dicts, "deep")


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_orientation(tmp_path, orientation, ending):
    """The corner that EXIF calls the top left one gets there, and the header says the same size."""
    array = np.zeros((16, 32, 3), np.uint8)
    array[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(array), tmp_path / f"a.{ending}", exif=exif)
    upright = read_image(path)
    assert upright.shape[:2] == ((32, 16) if orientation >= 5 else (16, 32))
    # Where the stored first row and first column are seen, from the EXIF standard.
    row, column = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    bottom, right = "bottom" in (row, column), "right" in (row, column)
    corner = upright[-8:] if bottom else upright[:8]
    corner = corner[:, -8:] if right else corner[:, :8]
    assert corner[2:6, 2:6].mean() > 200 and upright.mean() < 60
    record = {"file_name": path, "width": upright.shape[1], "height": upright.shape[0]}
    check_images([record], "exif")
    headers = read_headers([record], "exif")
    assert headers.sizes.tolist() == [[upright.shape[1], upright.shape[0]]]
    assert headers.turned.tolist() == [orientation > 1]
    assert headers.num_bytes.tolist() == [len(open(path, "rb").read())]
    if TOOLBOX == "detectron2" and ending != "tif":  # which detectron2 turns twice
        from detectron2.data.detection_utils import read_image as theirs

        for image_format in ("RGB", "BGR"):
            np.testing.assert_array_equal(
                read_image(path, image_format), theirs(path, image_format)
            )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_around_sound_pixels(tmp_path):
    for i, exif in enumerate((b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0")):
        path = save(Image.fromarray(RGB), tmp_path / f"{i}.jpg", exif=exif)
        assert read_image(path).shape == (HEIGHT, WIDTH, 3)
        check_images([{"file_name": path, "width": WIDTH, "height": HEIGHT}], "exif")


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


def test_headers_only(tmp_path, monkeypatch):
    """Data sets of the size of COCO: no pixel is decoded, PNG's late EXIF included."""
    paths = [save(Image.fromarray(RGB), tmp_path / f"a.{e}") for e in ("png", "jpg", "tif", "gif")]
    dicts = [{"file_name": path, "width": WIDTH, "height": HEIGHT} for path in paths]

    def fail(*_):
        raise AssertionError("pixels were decoded")

    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    check_images(dicts, "headers")


def test_unknown_channel_order(tmp_path):
    with pytest.raises(ValueError, match="INPUT.FORMAT must be 'RGB' or 'BGR', got 'L'"):
        read_image(str(tmp_path / "a.png"), "L")
