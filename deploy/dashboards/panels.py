"""What dashboards are made of, and the JSON that Grafana reads."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

COLUMNS, PANELS_IN_ROW, PANEL_HEIGHT = 24, 3, 8
RATE = "[$__rate_interval]"
"""Grafana makes it long enough for four scrapes."""

Unit = Literal["short", "s", "bytes", "Bps", "reqps", "ops", "percentunit", "tokens/s", "none"]

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_UNITS = {"tokens/s": "suffix: tokens/s"}


@dataclass(frozen=True)
class Query:
    """One line of a panel, or one for each series that it comes to."""

    expr: str  # PromQL
    legend: str
    absent: str = ""  # why a healthy suite may have no data for it; empty: there always is some


@dataclass(frozen=True)
class Panel:
    """A chart over time."""

    title: str
    description: str  # what it says, and what to make of it
    unit: Unit
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class PanelGroup:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """One page of Grafana's."""

    uid: str  # in its address, and the name of its file
    title: str
    description: str
    sections: tuple[PanelGroup, ...]

    @property
    def panels(self) -> Iterator[Panel]:
        for section in self.sections:
            yield from section.panels

    def text(self) -> str:
        """Return the file's content."""
        return json.dumps(self._model(), indent=1) + "\n"

    def _model(self) -> dict[str, Any]:
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["prfaas"],
            "editable": False,
            "schemaVersion": 39,
            "refresh": "10s",
            "time": {"from": "now-30m", "to": "now"},
            "graphTooltip": 1,  # one cross-hair for all panels
            "links": [{"type": "dashboards", "tags": ["prfaas"], "title": "PrfaaS", "asDropdown": False}],
            "templating": {
                "list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}]
            },
            "panels": list(self._placed()),
        }

    def _placed(self) -> Iterator[dict[str, Any]]:
        number, top = 0, 0
        for section in self.sections:
            number += 1
            place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
            yield {"id": number, "type": "row", "title": section.title, "collapsed": False, "gridPos": place}
            top += 1
            for index, panel in enumerate(section.panels):
                number += 1
                row, column = divmod(index, PANELS_IN_ROW)
                width = COLUMNS // PANELS_IN_ROW
                place = {"x": column * width, "y": top + row * PANEL_HEIGHT, "w": width, "h": PANEL_HEIGHT}
                yield {"id": number, "gridPos": place, **_chart(panel)}
            top += -(-len(section.panels) // PANELS_IN_ROW) * PANEL_HEIGHT


def _chart(panel: Panel) -> dict[str, Any]:
    limits = {"min": 0, **({"max": 1} if panel.unit == "percentunit" else {})}
    custom = {"fillOpacity": 8, "showPoints": "never", "spanNulls": False}
    unit = _UNITS.get(panel.unit, panel.unit)
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom, **limits}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query.expr, "legendFormat": query.legend, "datasource": _SOURCE}
            for index, query in enumerate(panel.queries)
        ],
    }


def rate(metric: str, by: str = "", labels: str = "") -> str:
    """Return the rate of a counter, summed: over everything, or for each value of the labels `by`."""
    selected = f"prfaas:{metric}{{{labels}}}" if labels else f"prfaas:{metric}"
    return f"sum{f' by ({by})' if by else ''} (rate({selected}{RATE}))"


def gauge(metric: str, by: str = "", labels: str = "") -> str:
    """Return a gauge, summed as `rate` is."""
    selected = f"prfaas:{metric}{{{labels}}}" if labels else f"prfaas:{metric}"
    return f"sum{f' by ({by})' if by else ''} ({selected})"


def quotient(part: str, whole: str) -> str:
    """Return a share or a mean; nothing where there is nothing to divide by."""
    return f"{part} / ({whole} > 0)"


def quantiles(
    metric: str, shares: Sequence[float] = (0.5, 0.95, 0.99), by: str = "", labels: str = "", absent: str = ""
) -> tuple[Query, ...]:
    """Return a histogram's quantiles, estimated from its buckets."""
    labelled = "".join(f"{{{{{label}}}}} " for label in by.split(", ") if label)
    buckets = rate(f"{metric}_bucket", f"le, {by}" if by else "le", labels)
    return tuple(
        Query(f"histogram_quantile({share:g}, {buckets})", f"{labelled}p{share * 100:g}", absent) for share in shares
    )


def mean(metric: str, by: str = "", labels: str = "") -> str:
    """Return a histogram's mean."""
    return quotient(rate(f"{metric}_sum", by, labels), rate(f"{metric}_count", by, labels))
