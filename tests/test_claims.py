"""docs/claims.md names tests that there are."""

import re

from .conftest import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("|\n").split(" | ")]
    for line in (ROOT / "docs" / "claims.md").open(encoding="utf-8")
    if line.startswith("| ")
][1:]


def test_each_verdict_is_shown():
    assert len(ROWS) >= 17
    for claim, verdict, *shown in ROWS:
        assert shown or verdict.startswith("not provided"), claim
        for name, path in re.findall(r"\[(\w+)\]\(\.\./(tests/\w+\.py)\)", "".join(shown)):
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), name
        assert verdict.startswith("not provided") or "[test_" in shown[0], claim
