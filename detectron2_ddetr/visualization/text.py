"""Text in pictures, in every script that a font of this machine has."""

import logging
import math
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, features

logger = logging.getLogger(__name__)

#: Path of the font that a character is drawn with; None where no font has it.
_FONT_OF: dict[str, str | None] = {}


@lru_cache(maxsize=None)
def readable_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """
    The names, but the number in place of one that no font of this machine can write.

    Args:
        names: by class number.
    """
    replaced = tuple(readable(name, str(number)) for number, name in enumerate(names))
    shown = [cleaned(name) for name in names]
    missing = [n for n, name in enumerate(shown) if name and replaced[n] != name]
    if missing:
        logger.warning(
            f"No font here can write {len(missing)} of {len(names)} class names, the first: "
            f"{names[missing[0]]!r}. Pictures show their numbers instead; install a font that has "
            "these characters, such as Noto Sans CJK"
        )
    return replaced


def readable(text: str, otherwise: str) -> str:
    """`text` in one line, or `otherwise` if it is empty or no font has all of its characters."""
    text = cleaned(text)
    shaped = any(
        unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c)[0] == "M"
        for c in text
    )
    # Without the library that joins letters and orders them, such words come out as other words.
    if not text or (shaped and not features.check("raqm")):
        return otherwise
    return text if None not in fonts_of(text).values() else otherwise


def cleaned(text: str) -> str:
    """Without line breaks, control characters and variation selectors; accents composed."""
    text = unicodedata.normalize("NFC", str(text))
    kept = (c for c in text if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    return " ".join("".join(c if c.isprintable() else " " for c in kept).split())


def fonts_of(text: str) -> dict[str, str | None]:
    """Path of the font of each character; None where no font has it."""
    wanted = {character for character in text if character not in _FONT_OF}
    for path in _font_files() if wanted else ():
        try:
            glyphs = font_manager.get_font(path)
            ImageFont.truetype(path, 16)
        except (OSError, RuntimeError):
            continue  # of a kind that cannot be scaled, or damaged
        found = {character for character in wanted if glyphs.get_char_index(ord(character))}
        _FONT_OF.update(dict.fromkeys(found, path))
        wanted -= found
        if not wanted:
            break
    _FONT_OF.update(dict.fromkeys(wanted))
    return {character: _FONT_OF[character] for character in text}


def font_families(text: str) -> list[str]:
    """Names, for matplotlib, of the fonts that together write a :func:`readable` text."""
    paths = dict.fromkeys(path for path in fonts_of(text).values() if path)
    for path in paths:
        font_manager.fontManager.addfont(path)
    return [font_manager.FontProperties(fname=path).get_name() for path in paths]


def _font_files() -> Iterator[str]:
    """That of matplotlib, which is always there (Latin, Cyrillic, Greek, ...), then all others."""
    yield font_manager.findfont("DejaVu Sans")
    others = font_manager.findSystemFonts()
    yield from sorted(others, key=lambda path: ("regular" not in path.lower(), path))


def text_width(text: str, size: int) -> int:
    """In px, of one line whose letters are `size` px high, accents and tails included."""
    return math.ceil(sum(_font(path, size).getlength(part) for path, part in _runs(text)))


def text_mask(text: str, size: int) -> np.ndarray:
    """(H, W) float32 in [0, 1], 1 where ink is; H is :func:`line_height`."""
    image = Image.new("L", (max(1, text_width(text, size)), line_height(size)))
    draw, x = ImageDraw.Draw(image), 0.0
    for path, part in _runs(text):
        font = _font(path, size)
        draw.text((x, round(size)), part, fill=255, font=font, anchor="ls")
        x += font.getlength(part)
    return np.asarray(image, dtype=np.float32) / 255


def line_height(size: int) -> int:
    """In px, of a line of text of that size."""
    return round(1.3 * size)


def write(
    canvas: np.ndarray, text: str, left: int, top: int, size: int, ink: Sequence[float]
) -> None:
    """
    Writes one line into `canvas`, (H, W, 3) uint8; what reaches beyond its edges is cut off.

    Args:
        left, top: of the line, px.
        size: of the font, px.
        ink: (r, g, b), 0-255.
    """
    patch = canvas[top : top + line_height(size), left:]
    mask = text_mask(text, size)[: patch.shape[0], : patch.shape[1], None]
    patch = patch[:, : mask.shape[1]]
    patch[:] = np.round((1 - mask) * patch + mask * np.asarray(ink, dtype=np.float32))


def shortened(text: str, size: int, width: float) -> str:
    """`text`, or as much of it as fits into `width` px with three dots behind it."""
    kept = text
    while kept and text_width(text, size) > width:
        kept = kept[:-1]
        text = kept.rstrip() + "..."
    return text


def wrapped(text: str, size: int, width: int) -> list[str]:
    """Lines of whole words that fit into `width` px; a longer word is shortened."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size) <= width:
            lines[-1] = joined
        else:
            lines.append(shortened(word, size, width))
    return lines


@lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _runs(text: str) -> list[tuple[str, str]]:
    """`text` in pieces of one font each, (path, piece)."""
    runs: list[tuple[str, str]] = []
    fonts = fonts_of(text)
    for character in text:
        # A space has no script of its own: it stays with the word before it.
        path = runs[-1][0] if character == " " and runs else fonts[character]
        if path is None:
            raise ValueError(f"{text!r}: no font has {character!r}; pass it through readable()")
        if runs and runs[-1][0] == path:
            runs[-1] = (path, runs[-1][1] + character)
        else:
            runs.append((path, character))
    return runs
