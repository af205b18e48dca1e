"""docs/roads.md: its stops exist (`deploy.documents` checks any path), are numbered, and are few enough to follow."""

import re

import pytest

from deploy.documents.references import source_exists
from tests.support.suite import ROOT

PAGE = (ROOT / "docs/roads.md").read_text()
ROADS = dict(re.findall(r"^## (A \w+).*?\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
MAX_FILES = 15
"""Files that a prompt passes between route and sampler: more is a sign of too many layers."""


def stops(road: str) -> list[tuple[int, str]]:
    return [(int(number), stop) for number, stop in re.findall(r"^(\d+)\. `([^`]+)`: ", road, re.MULTILINE)]


def test_there_are_three_roads() -> None:
    assert list(ROADS) == ["A prompt", "A frame", "A placement"]


@pytest.mark.parametrize("title", ROADS)
def test_stops_are_numbered_and_lead_to_a_definition(title: str) -> None:
    found = stops(ROADS[title])
    assert len(found) > 10
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    for _, stop in found:
        assert re.fullmatch(r"[\w/]+\.py:[\w.]+", stop), stop
        assert source_exists(ROOT, stop), stop


def test_a_prompt_passes_few_files() -> None:
    files = {stop.partition(":")[0] for _, stop in stops(ROADS["A prompt"])}
    assert len(files) <= MAX_FILES
