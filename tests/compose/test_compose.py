"""compose.yaml for real: build, start, ask a long question, and see in the metrics that both datacenters took part."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(2400)]

ROOT = Path(__file__).resolve().parents[2]
# Neither the port of `make up` nor the project of `docker compose up`: either may be in use here.
# Where a prompt is computed shall not depend on the machine: the rule decides, not the cost.
ENVIRONMENT = {
    **os.environ,
    "GATEWAY_PORT": "18000",
    "COMPOSE_PROJECT_NAME": "prfaas-test",
    "PRFAAS_ROUTING_POLICY": "threshold",
}
GATEWAY = "http://127.0.0.1:18000"
LOGS = ["docker", "compose", "logs", "--no-color", "--tail", "25"]
# Beyond the router's thresholds for the other datacenter, below the context of the default model.
LONG_PROMPT = " ".join(f"On day {day} the harbour master wrote down {day * 7} ships." for day in range(200))


def compose(*arguments: str, timeout_s: float = 300, **environ: str) -> str:
    done = subprocess.run(
        ["docker", "compose", *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, **environ},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        logs = subprocess.run(LOGS, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False).stdout
        pytest.fail(f"docker compose {' '.join(arguments)}:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}\n{logs}")
    return done.stdout


@pytest.fixture(scope="module")
def suite() -> Iterator[None]:
    try:
        compose("build", timeout_s=1500)
        compose("up", "--detach", "--wait", "--wait-timeout", "420", timeout_s=480)
        yield
    finally:
        compose("down", "--volumes", "--timeout", "20")


def ask(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{GATEWAY}{path}", data, {"Content-Type": "application/json"})
    with urlopen(request, timeout=240) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def metric(service: str, name: str, lane: str = "") -> float:
    """The sum of a metric's samples, those of one lane if it is named. Status ports are not published: ask inside."""
    labels = rf'{{[^}}]*lane="{lane}"[^}}]*}}' if lane else "(?:{[^}]*})?"
    program = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:7200/metrics').read().decode())"
    text = compose("exec", "-T", service, "python", "-c", program)
    samples = re.findall(rf"^{re.escape(name)}{labels} (\S+)$", text, re.MULTILINE)
    assert samples, f"{service} has no metric {name}:\n{text}"
    return sum(map(float, samples))


def test_configuration_is_valid_in_all_profiles() -> None:
    compose("--profile", "*", "config", "--quiet")
    compose("-f", "compose.yaml", "-f", "deploy/compose.gpu.yaml", "--profile", "*", "config", "--quiet")


@pytest.mark.usefixtures("suite")
def test_a_long_prompt_is_computed_in_the_east_and_decoded_in_the_west() -> None:
    model = ask("/v1/models")["data"][0]["id"]
    body = {"model": model, "prompt": LONG_PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    first = ask("/v1/completions", body)
    assert first["usage"]["completion_tokens"] == 8
    assert first["usage"]["prompt_tokens"] > 2048
    assert first["choices"][0]["text"].strip()
    assert metric("prefill-east", "prfaas:prefill_computed_blocks_total") >= 2000 // 64
    assert metric("prefill-west", "prfaas:prefill_computed_blocks_total") == 0
    assert metric("cachepool-east", "prfaas:published_bytes_total") > 0
    assert metric("cachepool-west", "prfaas:pulled_bytes_total") > 0
    assert metric("decode-west", "prfaas:generation_tokens_total") == 8
    assert metric("decode-west", "prfaas:decode_computed_prompt_tokens_total") <= 64
    assert metric("cachepool-east", "prfaas:lane_sent_bytes_total", lane="socket") > 0
    assert metric("cachepool-west", "prfaas:lane_sent_bytes_total", lane="shared_memory") > 0

    again = ask("/v1/completions", body)
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= 64 * ((again["usage"]["prompt_tokens"] - 1) // 64)


@pytest.mark.usefixtures("suite")
def test_without_shared_memory_the_answer_is_the_same() -> None:
    model = ask("/v1/models")["data"][0]["id"]
    body = {"model": model, "prompt": LONG_PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    before = ask("/v1/completions", body)
    waiting = ("up", "--detach", "--wait", "--wait-timeout", "420")
    compose(*waiting, timeout_s=480, PRFAAS_LANES="socket")
    assert ask("/v1/completions", body)["choices"][0]["text"] == before["choices"][0]["text"]
    assert metric("cachepool-west", "prfaas:lane_sent_bytes_total", lane="socket") > 0


@pytest.mark.usefixtures("suite")
def test_services_obey_a_stop_within_their_grace_period() -> None:
    compose("stop", "--timeout", "20", "gateway", "decode-west", "prefill-east", "cachepool-west")
    states = compose(
        "ps",
        "--all",
        "--format",
        "{{.Service}} {{.ExitCode}}",
        "gateway",
        "decode-west",
        "prefill-east",
        "cachepool-west",
    )
    assert sorted(states.split("\n")[:-1]) == sorted(
        f"{name} 0" for name in ("gateway", "decode-west", "prefill-east", "cachepool-west")
    )
