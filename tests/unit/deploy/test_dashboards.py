"""Dashboards: each panel is explained, has a unit, asks for metrics that there are, and is in Grafana's files."""

import json
from pathlib import Path

import pytest

from deploy.dashboards.__main__ import DASHBOARDS, FOLDER, stale
from deploy.dashboards.panels import COLUMNS, Dashboard, Panel
from tests.support.prometheus import exported_names, metrics_in

PANELS = [(dashboard, panel) for dashboard in DASHBOARDS for panel in dashboard.panels]


def test_the_files_are_what_the_panels_say() -> None:
    assert not stale(FOLDER)


def test_a_file_that_is_missing_changed_or_left_over_is_stale(tmp_path: Path) -> None:
    first, *others = DASHBOARDS
    for dashboard in others:
        (tmp_path / f"{dashboard.uid}.json").write_text(dashboard.text())
    (tmp_path / f"{others[0].uid}.json").write_text("{}")
    (tmp_path / "left-over.json").write_text("{}")
    assert stale(tmp_path) == {
        tmp_path / "left-over.json": None,
        tmp_path / f"{first.uid}.json": first.text(),
        tmp_path / f"{others[0].uid}.json": others[0].text(),
    }


@pytest.mark.parametrize(("dashboard", "panel"), PANELS, ids=lambda value: getattr(value, "title", ""))
def test_each_panel_explains_itself(dashboard: Dashboard, panel: Panel) -> None:
    assert panel.title[0].isupper()
    assert len(panel.description) > 40
    assert panel.description.endswith(".")
    assert panel.unit
    for query in panel.queries:
        assert metrics_in(query.expr) <= exported_names(), query.expr
        assert query.legend
    assert [other.title for other in dashboard.panels].count(panel.title) == 1


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: str(dashboard.uid))
def test_panels_have_places_of_their_own(dashboard: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    numbers: set[int] = set()
    for panel in json.loads(dashboard.text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert all(x < COLUMNS for x, _ in cells)
        taken |= cells
        numbers.add(panel["id"])
    assert len(numbers) == len(json.loads(dashboard.text())["panels"])
