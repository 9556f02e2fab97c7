"""What of an image is looked at: a pixel, a query and layers, chosen or by default."""

from collections.abc import Sequence
from typing import NamedTuple

from ...errors import InputError
from .view import View


class Choice(NamedTuple):
    """
    Attributes:
        pixel: (x, y), px of the image.
        level: of the encoder's cell there.
        query: of the decoder.
        encoder_layers, decoder_layers: those of each that are drawn; empty where it has none.
        detected: queries that reach the score, best first; at least the best of all.
    """

    pixel: tuple[float, float]
    level: int
    query: int
    encoder_layers: list[int]
    decoder_layers: list[int]
    detected: list[int]


def choose(
    view: View,
    *,
    pixel: Sequence[float] | None,
    level: int,
    query: int | None,
    layers: Sequence[int] | None,
    score_threshold: float,
) -> Choice:
    """
    Args:
        pixel: None for the middle of the query's box, in the image.
        query: None for that of the best detection.
        layers: None for the last of the encoder and of the decoder.

    Raises:
        InputError: for what the image or the model does not have.
    """
    height, width = view.image.shape[:2]
    counts = [view.captured.num_layers(kind) for kind in ("encoder", "decoder")]
    num_queries = view.captured.outputs["pred_logits"].shape[1]
    if query is not None and not 0 <= query < num_queries:
        raise InputError(f"--query is {query}, but queries are from 0 to {num_queries - 1}")
    if not 0 <= level < len(view.shapes):
        raise InputError(f"--level is {level}, but levels are from 0 to {len(view.shapes) - 1}")
    for layer in layers or ():
        if not 0 <= layer < max(counts):
            raise InputError(f"--layer is {layer}, but layers are from 0 to {max(counts) - 1}")
    if pixel is not None and not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise InputError(
            f"--pixel is ({pixel[0]:g}, {pixel[1]:g}), but the image is {width} x {height} px"
        )
    detected = [d.query for d in view.detections(score_threshold) or view.detections()[:1]]
    if query is None:
        query = detected[0]
    if pixel is None:
        x1, y1, x2, y2 = view.boxes(counts[1] - 1)[query]
        pixel = (min(max((x1 + x2) / 2, 0), width - 1), min(max((y1 + y2) / 2, 0), height - 1))
    wanted = [sorted({n for n in layers or [count - 1] if 0 <= n < count}) for count in counts]
    others = [other for other in detected if other != query]
    return Choice(tuple(pixel), level, query, *wanted, [query, *others])
