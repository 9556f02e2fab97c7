"""docs/keys.md is complete, and true."""

import ast
import re

import pytest

from detectron2_ddetr.config import add_deformable_detr_config, leaves
from detectron2_ddetr.toolbox import get_cfg

from .conftest import ROOT

ROW = re.compile(r"^\| `([A-Z_.0-9]+)` \| `(.+?)` \| (.+?) \| (.+) \|$")
ROWS = [m.groups() for m in map(ROW.match, (ROOT / "docs" / "keys.md").open()) if m]


def test_every_key_with_its_default():
    theirs, cfg = dict(leaves(get_cfg())), get_cfg()
    add_deformable_detr_config(cfg)
    added = {key: value for key, value in leaves(cfg) if key not in theirs}
    assert {key: ast.literal_eval(default) for key, default, _, _ in ROWS} == added
    assert len(ROWS) == len(added)


@pytest.mark.parametrize("key, tests", [(row[0], row[3]) for row in ROWS])
def test_the_tests_use_the_key(key, tests):
    paths = re.findall(r"\(\.\./(tests/test_\w+\.py)\)", tests)
    words = f"{key.split('.')[-1]}|{key.split('.')[-1].lower()}"
    assert paths and all(re.search(words, (ROOT / path).read_text()) for path in paths)
