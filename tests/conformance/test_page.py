"""docs/HTTP.md and the raw requests say the same: each row names what holds it, and each request has its row.

| Request | Status | Why | Held by |            a table with the heading "Held by"
| …       | 400    | …   | `host-bad-*` |       a pattern of raw requests: all of them are refused with that status
| …       | 408    | …   | `file.py::test` |    a test, in a file of that name under tests/
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.conformance.driver import EXPECTED, NAMES

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "HTTP.md").read_text("utf-8")


@dataclass(frozen=True)
class Row:
    """One row of the page: the status with which its requests are answered, and what holds it."""

    text: str
    status: int
    patterns: tuple[str, ...]
    tests: tuple[str, ...]

    def holds(self, name: str) -> bool:
        """Is the raw request one of its files?"""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


def rows() -> list[Row]:
    """All rows of the tables whose last column is "Held by"."""
    found: list[Row] = []
    heading: list[str] = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells or heading == []:
            heading = cells if cells and cells[-1] == "Held by" else []
        elif set(line) - set("|-"):
            assert len(cells) == len(heading), line
            named = re.findall(r"`([^`]+)`", cells[-1])
            found.append(
                Row(
                    cells[0],
                    int(cells[heading.index("Status")]) if "Status" in heading else 200,
                    tuple(name for name in named if "::" not in name),
                    tuple(name for name in named if "::" in name),
                )
            )
    return found


ROWS = rows()


def test_the_page_has_both_tables() -> None:
    assert {row.status for row in ROWS} >= {200, 400, 408, 413, 414, 417, 431, 501, 505, 507}
    assert all(row.patterns or row.tests for row in ROWS)


@pytest.mark.parametrize("row", [row for row in ROWS if row.patterns], ids=lambda row: row.patterns[0])
def test_each_pattern_names_requests_that_are_answered_as_its_row_says(row: Row) -> None:
    for pattern in row.patterns:
        names = [name for name in NAMES if fnmatchcase(name, pattern)]
        assert names, f"no request is named {pattern}"
        assert {EXPECTED[name].get("status", 200) for name in names} == {row.status}, names


@pytest.mark.parametrize("name", NAMES)
def test_each_request_belongs_to_exactly_one_row(name: str) -> None:
    found = [row.text for row in ROWS if row.holds(name)]
    assert len(found) == 1, found


@pytest.mark.parametrize("test", sorted({test for row in ROWS for test in row.tests}))
def test_each_test_that_a_row_names_is_there(test: str) -> None:
    file, _, function = test.partition("::")
    assert any(f"def {function}(" in path.read_text("utf-8") for path in TESTS.rglob(file))
