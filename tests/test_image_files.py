"""Image formats against what was written into them; their headers say the same size."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

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
