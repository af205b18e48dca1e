"""What Prometheus is told: whom it reads, which alerts there are, and when they fire."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.up.procfile import parse_procfile
from tests.support.prometheus import RULES, exported_names, metrics_in, needs_promtool, promtool
from tests.support.suite import ROOT

FOLDER = ROOT / "deploy/prometheus"
RUNBOOK = (ROOT / "docs/runbook.md").read_text()


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def alerts() -> list[dict[str, Any]]:
    return [rule for path in RULES.glob("*.yaml") for group in load(path)["groups"] for rule in group["rules"]]


def targets(config: str) -> Iterator[tuple[str, str, str]]:
    """Yield job, target and site of a scrape configuration."""
    for job in load(FOLDER / config)["scrape_configs"]:
        for group in job["static_configs"]:
            for target in group["targets"]:
                yield job["job_name"], target, group["labels"]["site"]


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_each_alert_says_what_it_means_and_what_to_do(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+m", alert["for"])
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    assert notes["summary"]
    assert len(notes["description"]) > 40
    assert notes["runbook"] == f"docs/runbook.md#{alert['alert'].lower()}"
    assert f"\n### {alert['alert']}\n" in RUNBOOK


def test_the_runbook_has_no_other_alert() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE) == names
    assert len(set(names)) == len(names)


def test_rules_name_metrics_that_there_are() -> None:
    named = {name for alert in alerts() for name in metrics_in(alert["expr"])}
    assert named <= exported_names()


def test_the_healthy_suite_of_the_tests_has_all_that_rules_read() -> None:
    healthy = (FOLDER / "tests/healthy.yaml").read_text()
    assert {name for alert in alerts() for name in metrics_in(alert["expr"])} <= metrics_in(healthy)


def test_each_alert_is_seen_to_be_silent_and_to_fire() -> None:
    seen: set[str] = set()
    for case in load(FOLDER / "tests/firing.yaml")["tests"]:
        silent, firing = case["promql_expr_test"]
        assert silent["exp_samples"] == []
        assert [sample["labels"] for sample in firing["exp_samples"]] == [f'{{alertname="{case["name"]}"}}']
        seen.add(case["name"])
    assert seen == {alert["alert"] for alert in alerts()}


@needs_promtool
@pytest.mark.parametrize("name", ["healthy", "firing"])
def test_alerts_fire_when_they_should_and_only_then(name: str) -> None:
    promtool("test", "rules", f"{name}.yaml", cwd=FOLDER / "tests")


@needs_promtool
def test_a_rule_that_is_wrong_fails_its_test(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "prometheus")
    rules = tmp_path / "prometheus/rules/prfaas.yaml"
    rules.write_text(rules.read_text().replace("prfaas:placement_stale) == 1", "prfaas:placement_stale) == 2"))
    with pytest.raises(AssertionError, match="PlacementUnknown"):
        promtool("test", "rules", "firing.yaml", cwd=tmp_path / "prometheus/tests")


@needs_promtool
@pytest.mark.parametrize("name", ["compose", "local"])
def test_configurations_are_valid(name: str) -> None:
    assert "SUCCESS" in promtool("check", "config", f"deploy/prometheus/{name}.yaml")


@needs_promtool
def test_rules_are_valid() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", "deploy/prometheus/rules/prfaas.yaml")


def test_in_compose_it_reads_every_process() -> None:
    services = load(ROOT / "compose.yaml")["services"]
    ours = {name for name, service in services.items() if "build" in service}
    static = list(targets("compose.yaml"))
    found = {name for job in load(FOLDER / "compose.yaml")["scrape_configs"] for name in _found_by_name(job)}
    assert {target.partition(":")[0] for _, target, _ in static} == {n for n in ours if "profiles" not in services[n]}
    assert found == {name for name in ours if "profiles" in services[name]}
    for job, target, site in static:
        name = target.partition(":")[0]
        assert name.partition("-")[0] == job
        assert services[name]["environment"]["PRFAAS_DC"] == site
        assert set(services[name]["networks"]) & set(services["prometheus"]["networks"])


def _found_by_name(job: dict[str, Any]) -> Iterator[str]:
    for group in job.get("dns_sd_configs", ()):
        yield from group["names"]


def test_beside_make_up_it_reads_every_process() -> None:
    processes = parse_procfile((ROOT / "Procfile").read_text())
    wanted = set()
    for name, command in processes.items():
        text = str(command)
        if name in ("broker", "ready"):
            continue
        port = re.search(r"PRFAAS_HTTP_PORT=(?:\$\{GATEWAY_PORT:-)?(\d+)", text)
        dc = re.search(r"PRFAAS_DC=(\w+)", text)
        assert port is not None
        assert dc is not None
        wanted.add((name.partition("-")[0], f"127.0.0.1:{port[1]}", dc[1]))
    assert set(targets("local.yaml")) == wanted
