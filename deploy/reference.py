"""Writes the two pages of settings and the two of metrics from the code, or checks that they are current (`--check`).

Settings are read from the settings classes. Metrics are read from the source, at the places where they are made: many
are made only when a model is loaded or a peer has answered. A test compares them with what running processes export.
"""

import ast
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

from services.cachepool.settings import PoolSettings
from services.decode.settings import DecodeSettings
from services.gateway.settings import GatewaySettings
from services.prefill.settings import PrefillSettings
from shared.config import SecuritySettings, ServiceSettings
from shared.metrics import PREFIX

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 100
SERVICES: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "cachepool": PoolSettings,
    "prefill": PrefillSettings,
    "decode": DecodeSettings,
}
UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
KINDS = {
    "counter": "counter",
    "gauge": "gauge",
    "histogram": "histogram",
    "loop_histogram": "histogram",
    "CounterMetricFamily": "counter",
    "GaugeMetricFamily": "gauge",
}
PLACES = {
    "Every process": ("shared/metrics.py", "shared/bus", "shared/security", "shared/telemetry"),
    "Gateway": ("services/gateway",),
    "Cache pool": ("services/cachepool",),
    "Prefill and decode": ("shared/engine",),
    "Prefill": ("services/prefill",),
    "Decode": ("services/decode",),
}
"""Which files a section about metrics is about."""
ENGINES = ("Prefill and decode", "Prefill", "Decode")
"""The sections that make a page of their own, docs/engines/metrics.md."""


@dataclass(frozen=True, order=True)
class Instrument:
    """One metric as the source declares it."""

    name: str  # as Prometheus shows it
    kind: str
    labels: tuple[str, ...]
    meaning: str


def settings_page() -> str:
    """Return docs/settings.md: each setting once, under the services that read it, those of security apart."""
    apart = {item.metadata["env"] for item in fields(SecuritySettings)}
    read: dict[str, dict[str, Field[Any]]] = {}  # by variable and service
    for service, cls in SERVICES.items():
        for item in fields(cls):
            if item.metadata.get("env", "") not in {"", *apart}:
                read.setdefault(item.metadata["env"], {})[service] = item
    lines = [
        "# Settings",
        "",
        "Each process reads its settings from environment variables at its start. A bad value ends the",
        "process with exit code 2, after all problems are named. `make up` and `compose.yaml` hand the",
        "variables of their own environment on. Defaults stand in parentheses.",
        "[Settings of security](security/settings.md) have a page of their own.",
    ]
    for group in dict.fromkeys(tuple(by_service) for by_service in read.values()):
        lines += ["", f"## {_title(group)}"]
        for env, by_service in read.items():
            if tuple(by_service) == group:
                item = next(iter(by_service.values()))
                lines += _bullet(f"`{env}` ({_defaults(by_service)}): {item.metadata['help']}.")
    return _page(lines, "settings classes")


def security_settings_page() -> str:
    """Return docs/security/settings.md."""
    lines = [
        "# Settings of security",
        "",
        "Every process reads them. [Security](../security.md) says how they are used.",
        "",
    ]
    for item in fields(SecuritySettings):
        env = item.metadata["env"]
        lines += _bullet(f"`{env}` ({_defaults({'': item})}): {item.metadata['help']}.")
    return _page(lines, "settings classes")


def metrics_page() -> str:
    """Return docs/metrics.md: each metric under the processes that export it, those of engines apart."""
    lines = [
        "# Metrics",
        "",
        "Each process serves Prometheus metrics at `/metrics`. Names that vLLM has too mean the same here.",
        f"All names begin with `{PREFIX}`. Labels stand in braces. Counters end in `_total`.",
        "[Metrics of the engines](engines/metrics.md) have a page of their own.",
    ]
    return _metrics(lines, [title for title in PLACES if title not in ENGINES])


def engine_metrics_page() -> str:
    """Return docs/engines/metrics.md."""
    lines = ["# Metrics of the engines", "", "How names are formed is said on the page about [metrics](../metrics.md)."]
    return _metrics(lines, ENGINES)


def _metrics(lines: list[str], titles: Sequence[str]) -> str:
    for title in titles:
        lines += ["", f"## {title}"]
        for instrument in sorted(instruments(PLACES[title])):
            labels = f"{{{','.join(instrument.labels)}}}" if instrument.labels else ""
            kind = ", a histogram" * (instrument.kind == "histogram")
            lines += _bullet(f"`{instrument.name}{labels}`{kind}: {instrument.meaning.rstrip('.')}.")
    return _page(lines, "source")


def instruments(places: Sequence[str]) -> set[Instrument]:
    """Return the metrics that files, or the files of folders, make."""
    found: set[Instrument] = set()
    for place in places:
        path = ROOT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found |= set(_instruments_in(ast.parse(file.read_text())))
    return found


def _instruments_in(module: ast.Module) -> Iterator[Instrument]:
    values = {
        target.id: value
        for node in ast.walk(module)
        if isinstance(node, ast.Assign)
        for target, value in _assigned(node)
        if any(_flat(value, {}))
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            # A function of the module that names only the labels makes a metric for each of its calls.
            kind = KINDS.get(name) or ("gauge" if name == "_by_holder" else None)
            if kind is not None and len(texts := _texts(node.args[:2])) == 2:
                labels = ("holder",) if name == "_by_holder" else _labels(node, values)
                yield _instrument(texts[0], kind, labels, texts[1])
        elif isinstance(node, ast.FunctionDef) and node.name == "collect":
            for row in ast.walk(node):  # a table of gauges: name, meaning, value
                if isinstance(row, ast.Tuple) and len(row.elts) == 3 and len(texts := _texts(row.elts[:2])) == 2:
                    yield _instrument(texts[0], "gauge", (), texts[1])


def _instrument(name: str, kind: str, labels: tuple[str, ...], meaning: str) -> Instrument:
    return Instrument(name + "_total" * (kind == "counter"), kind, labels, meaning)


def _assigned(node: ast.Assign) -> Iterator[tuple[ast.Name, ast.expr]]:
    """Yield the names that an assignment gives values to, `a, b = 1, 2` included."""
    for target in node.targets:
        if isinstance(target, ast.Name):
            yield target, node.value
        elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            for name, value in zip(target.elts, node.value.elts, strict=True):
                if isinstance(name, ast.Name):
                    yield name, value


def _texts(nodes: Sequence[ast.expr]) -> list[str]:
    """Return the texts that expressions are: literals, or the prefix and a literal."""
    bare = [node.right if isinstance(node, ast.BinOp) else node for node in nodes]
    return [node.value for node in bare if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def _labels(call: ast.Call, values: dict[str, ast.expr]) -> tuple[str, ...]:
    """Return the label names of a call: its one argument that comes to a sequence of texts."""
    for argument in [*call.args[2:], *(keyword.value for keyword in call.keywords if keyword.arg == "labels")]:
        if labels := tuple(_flat(argument, values)):
            return labels
    return ()


def _flat(node: ast.expr, values: dict[str, ast.expr]) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, (ast.Tuple, ast.List)):
        for element in node.elts:
            yield from _flat(element, values)
    elif isinstance(node, ast.Starred):
        yield from _flat(node.value, values)
    elif isinstance(node, ast.Name) and node.id in values:
        yield from _flat(values[node.id], values)


def _title(services: Sequence[str]) -> str:
    if len(services) == len(SERVICES):
        return "Every process"
    *first, last = services
    return (f"{', '.join(first)} and {last}" if first else last).capitalize()


def _defaults(by_service: dict[str, Field[Any]]) -> str:
    """Return a setting's default, and those of services that have another."""
    defaults = {service: _default(item) for service, item in by_service.items()}
    usual = max(defaults.values(), key=list(defaults.values()).count)
    others = [f"{service}: {default}" for service, default in defaults.items() if default != usual]
    return "; ".join([usual, *others])


def _default(item: Field[Any]) -> str:
    if item.default is MISSING:
        return "required"
    if item.default in ("", None):
        return "empty"
    if isinstance(item.default, tuple):
        return f"`{','.join(item.default)}`"
    if isinstance(item.default, Path):  # in this machine's folder for temporary files, this user's
        return f"`{item.default.name.replace(str(os.getuid()), 'UID')}` in the temporary folder"
    for size, unit in UNITS:
        if item.metadata["parse"] is not None and item.default and item.default % size == 0:
            return f"`{item.default // size}{unit}`"
    return f"`{item.default}`"


def _bullet(text: str) -> list[str]:
    return textwrap.wrap(
        text, COLUMNS, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _page(lines: Sequence[str], source: str) -> str:
    notice = f"Generated from the {source} by `python -m deploy.reference`; `make test` checks it."
    return "\n".join([*lines, "", notice, ""])


def main() -> int:
    pages = {
        ROOT / "docs/settings.md": settings_page(),
        ROOT / "docs/security/settings.md": security_settings_page(),
        ROOT / "docs/metrics.md": metrics_page(),
        ROOT / "docs/engines/metrics.md": engine_metrics_page(),
    }
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is not what the code says: run `make reference`", file=sys.stderr)
        else:
            path.write_text(pages[path])
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
