"""The files of examples/autoscaling and the page about the controller are true to the code."""

import re
from typing import Any

import pytest
import yaml

from deploy.reference import PLACES, instruments
from services.gateway.control.answer import answer_of
from services.gateway.control.believed import probes
from services.gateway.control.state import Looking, Snapshot, looked
from services.gateway.routing.policies.cost import ByCost
from services.gateway.routing.router import Router
from tests.support.control import LAYOUT, TERMS, WEST, cluster, requests
from tests.support.suite import ROOT

PAGE = (ROOT / "docs/routing/controller.md").read_text()
FILES = sorted((ROOT / "examples/autoscaling").iterdir())
LABELS = {"prfaas:" + one.name: set(one.labels) for one in instruments(PLACES["Gateway"])}


def loaded(name: str) -> Any:
    return yaml.safe_load((ROOT / "examples/autoscaling" / name).read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_is_yaml_is_listed_and_names_gauges_that_exist(path: Any) -> None:
    text = path.read_text()
    assert isinstance(yaml.safe_load(text), dict)
    name = f"`examples/autoscaling/{path.name}`"
    assert name in (ROOT / "examples/README.md").read_text()
    assert name in PAGE
    assert set(re.findall(r"prfaas:\w+", text)) <= LABELS.keys()


def test_the_autoscaler_asks_for_what_the_adapter_offers() -> None:
    (rule,) = loaded("prometheus-adapter.yaml")["rules"]["external"]
    (metric,) = loaded("hpa.yaml")["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    assert metric["external"]["metric"]["selector"]["matchLabels"].keys() == LABELS["prfaas:desired_replicas"]
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}


def test_the_scaler_selects_by_the_labels_of_the_gauge() -> None:
    (trigger,) = loaded("keda.yaml")["spec"]["triggers"]
    assert set(re.findall(r"(\w+)=", trigger["metadata"]["query"])) == LABELS["prfaas:desired_replicas"]
    assert (trigger["metricType"], trigger["metadata"]["threshold"]) == ("AverageValue", "1")


def test_the_page_names_the_fields_of_an_answer_and_the_gauges() -> None:
    looking = Looking(Router(WEST, LAYOUT, ByCost(), "raw").plan, probes(64, 4096), TERMS)
    answer = answer_of(looked(None, Snapshot.of(0, cluster(), requests(60)), looking), TERMS, 0)
    for key in answer.keys() - {"object", "home", "age_s"}:
        assert f"| `{key}` |" in PAGE
    for gauge in ("desired_replicas", "stage_utilisation", "offload_threshold_tokens", "link_scarce"):
        assert f"`prfaas:{gauge}{{{','.join(sorted(LABELS['prfaas:' + gauge], reverse=True))}}}`" in PAGE
