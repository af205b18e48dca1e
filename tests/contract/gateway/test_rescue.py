"""What decode is told of late blocks, and what the gateway does once decode has computed them itself."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.proto import prfaas_pb2 as pb
from shared.step_profile import StepProfile
from tests.support.events import report_steps
from tests.support.gateway import Call, ScriptedSuite, hangs, running_suite, says
from tests.support.waiting import LIMIT_S, until

PROMPT = "a prompt of several blocks, which goes to the prefill worker of the other datacenter"
PROFILE = StepProfile(base_s=0.01, token_s=0.01, num_steps=10)
"""Of workers that take a second for the prompt: by then nobody has lost patience."""


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        yield suite


def measure(suite: ScriptedSuite, *workers: str, profile: StepProfile = PROFILE) -> None:
    """Have workers report what their steps take."""
    report_steps(suite.parts.registry, *workers, profile=profile)


def rescues(text: str) -> Any:
    """A decode worker whose blocks do not come: it says so, and answers all the same."""

    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        yield pb.Tokens(rescued=True)
        async for message in says(text, computed=len(call.request.token_ids))(call):
            yield message

    return behave


async def test_decode_has_patience_once_and_prefill_ends_with_it(suite: ScriptedSuite) -> None:
    measure(suite, "decode-west", "prefill-east")
    suite.prefill.behave = hangs
    suite.decode.behave = rescues("alone")
    answer = await suite.complete(prompt=PROMPT, max_tokens=5)
    assert answer["choices"][0]["text"] == "alone"
    (call,) = suite.decode.calls
    assert 1000 < call.request.patience_ms < 5000
    assert call.updates == []
    await until(lambda: suite.prefill.calls[0].cancelled)
    assert suite.metric("rescues_total", kind="remote") == 1
    assert suite.metric("prefill_failures_total", code="cancelled") == 0
    assert suite.load("prefill-east") == 0


async def test_patience_does_not_end_before_workers_have_measured_themselves(suite: ScriptedSuite) -> None:
    for measured in ((), ("decode-west",)):
        measure(suite, *measured)
        await suite.complete(prompt=f"{measured}{PROMPT}", max_tokens=2)
        assert suite.decode.calls[-1].request.patience_ms == 0
    prior = StepProfile(base_s=0.01, token_s=0.01, num_steps=0)
    measure(suite, "decode-west", "prefill-east", profile=prior)
    await suite.complete(prompt=f"prior {PROMPT}", max_tokens=2)
    assert suite.decode.calls[-1].request.patience_ms == 0


async def test_routing_by_cost_has_patience_too(tmp_path: Path) -> None:
    async with running_suite(tmp_path, routing_policy="cost") as suite:
        measure(suite, "decode-west", "prefill-east")
        measure(suite, "prefill-east", profile=PROFILE._replace(token_s=1e-4))
        await suite.complete(prompt=PROMPT, max_tokens=2)
        assert len(suite.prefill.calls) == 1
        assert 500 < suite.decode.calls[0].request.patience_ms < 5000


async def test_a_stored_hand_off_ends_its_wait_and_decode_takes_what_is_there(tmp_path: Path) -> None:
    async with running_suite(tmp_path, hand_off="stored") as suite:
        fast = StepProfile(base_s=1e-4, token_s=1e-5, num_steps=10)
        measure(suite, "decode-west", "prefill-east", profile=fast)
        suite.prefill.behave = hangs
        suite.decode.behave = says("alone")
        started = time.monotonic()
        answer = await suite.complete(prompt=PROMPT, max_tokens=5)
        assert time.monotonic() - started < LIMIT_S
        assert answer["choices"][0]["text"] == "alone"
        request = suite.decode.calls[0].request
        assert (request.wait_ms, request.patience_ms, list(request.sources)) == (0, 0, [])
        assert suite.metric("rescues_total", kind="remote") == 1
