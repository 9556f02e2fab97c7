"""The page of `ddetr inspect`: what it holds, and what it shows under the mouse in a browser."""

import base64
import json
import re

import numpy as np
import pytest

from detectron2_ddetr.visualization.inspection import page
from detectron2_ddetr.visualization.inspection.ink import level_color

from .browser import browser_command, open_page
from .test_inspection import view_of

#: px; a 16-bit step of the page is less.
CLOSE = 0.02
#: JavaScript: "r,g,b" of everything on the canvas.
ALL_COLORS = """(() => {
    const all = pen.getImageData(0, 0, canvas.width, canvas.height).data, found = new Set();
    for (let i = 0; i < all.length; i += 4) found.add(all.slice(i, i + 3).join(","));
    return [...found];
})()"""
BOX = "(b => [b.left, b.top, b.width, b.height])(canvas.getBoundingClientRect())"


def read_data(path):
    """What the script of a page reads, from the file."""
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL
    )
    return json.loads(text)


def points_in(data, number, layer, column, row):
    """(K, 2) px and (K,) sizes, of a cell of the level of queries `number`."""
    cells = data["queries"][number]
    layer = cells["layers"][layer]
    shape = (cells["rows"], cells["columns"], len(data["pointLevels"]))
    xy = np.frombuffer(base64.b64decode(layer["xy"]), "<u2").reshape(*shape, 2)[row, column]
    sizes = np.frombuffer(base64.b64decode(layer["sizes"]), np.uint8).reshape(shape)[row, column]
    share = data["low"] + xy / 65535 * (data["high"] - data["low"])
    return share * (data["width"], data["height"]), sizes


@pytest.mark.parametrize("index", [0, 1])
def test_the_page_holds_what_was_recorded(tmp_path, index):
    view = view_of(index=index)
    page.write_page(view, [0, 1], "a </script> name.jpg", str(tmp_path / "a.html"))
    data = read_data(tmp_path / "a.html")
    assert data["name"] == "a </script> name.jpg"
    assert (data["height"], data["width"]) == view.image.shape[:2]
    assert [q["level"] for q in data["queries"]] == [3, 2, 1, 0]
    size = np.array(view.image.shape[1::-1])
    for number, cells in enumerate(data["queries"]):
        assert (cells["columns"], cells["rows"]) == view.valid_cells(cells["level"])
        for layer in (0, 1):
            for column, row in ((0, 0), (cells["columns"] - 1, 0), (0, cells["rows"] - 1)):
                xy, sizes = points_in(data, number, f"layer {layer}", column, row)
                x, y = (np.array((column, row)) + 0.5) / view.valid_cells(cells["level"]) * size
                points = view.points("encoder", layer, view.cell_at(x, y, cells["level"]))
                near = (points.xy > -size).all(1) & (points.xy < 2 * size).all(1)
                np.testing.assert_allclose(xy[near], points.xy[near], atol=CLOSE)
                assert near.mean() > 0.5
                np.testing.assert_array_equal(data["pointLevels"], points.levels)
                expected = np.sqrt(points.weights / points.weights.max())
                np.testing.assert_allclose(sizes / 255, expected, atol=0.003)


def test_what_does_not_fit_is_left_out(tmp_path, monkeypatch):
    view = view_of()
    monkeypatch.setattr(page, "MAX_BYTES", 4000)
    page.write_page(view, [1], "a", str(tmp_path / "a.html"))
    assert [q["level"] for q in read_data(tmp_path / "a.html")["queries"]] == [3, 2]
    monkeypatch.setattr(page, "MAX_BYTES", 1)
    page.write_page(view, [1], "a", str(tmp_path / "a.html"))
    assert [q["level"] for q in read_data(tmp_path / "a.html")["queries"]] == [3]


def test_the_page_needs_no_network(tmp_path):
    page.write_page(view_of(), [1], "a", str(tmp_path / "a.html"))
    text = (tmp_path / "a.html").read_text()
    assert not re.search(r"https?:|src=|@import|fetch\(|XMLHttpRequest", text)
    assert page.PLACE not in text


@pytest.mark.skipif(
    browser_command() is None, reason="needs a headless browser: Chromium, or DDETR_BROWSER"
)
def test_hovering(tmp_path):
    """A real mouse over a padded image: the text, the points, and their colours on the canvas."""
    view = view_of(index=1)
    view.image[:] = 128
    page.write_page(view, [0, 1], "a.jpg", str(tmp_path / "a.html"))
    height, width = view.image.shape[:2]
    with open_page(tmp_path / "a.html", tmp_path / "browser") as tab:
        tab.value_of("photo.decode().then(() => new Promise(requestAnimationFrame))")
        box = tab.value_of(BOX)
        assert box[2] / box[3] == pytest.approx(width / height, rel=0.01)
        for layer, level, x, y in ((1, 0, 150, 21), (1, 0, 9, 100), (0, 1, 150, 60), (1, 3, 9, 9)):
            tab.value_of(f"find('layer').selectedIndex = {layer}")
            tab.value_of(f"find('level').selectedIndex = {3 - level}")
            left, top = (x + 0.5) / width * box[2], (y + 0.5) / height * box[3]
            tab.move_mouse(box[0] + left, box[1] + top)
            said = tab.value_of("find('said').textContent")
            columns, rows = view.valid_cells(level)
            column, row = int(x / width * columns), int(y / height * rows)
            assert f"pixel ({x}, {y}): column {column}, row {row} of level {level};" in said
            points = view.points("encoder", layer, view.cell_at(x, y, level))
            outside = ((points.xy < 0) | (points.xy > (width, height))).any(1).sum()
            assert f"{len(points.xy)} points, {outside} outside" in said
            shown = tab.value_of(f"pointsOf({column}, {row})")
            found = np.array([(p["x"], p["y"]) for p in shown])
            near = (np.abs(points.xy / (width, height) - 0.5) < 1.5).all(1)
            np.testing.assert_allclose(found[near], points.xy[near], atol=CLOSE)
            assert [p["level"] for p in shown] == points.levels.tolist()
            inside = (points.xy > 1).all(1) & (points.xy < (width - 1, height - 1)).all(1)
            colors = tab.value_of(ALL_COLORS)
            for seen in set(points.levels[inside]):
                assert ",".join(map(str, level_color(int(seen)))) in colors
        assert tab.errors == []
