"""`GET /v1/plan` over HTTP: always an answer, and what it says is what requests were like."""

from pathlib import Path
from typing import Any

from tests.support.gateway import BLOCK_TOKENS, ScriptedSuite, prefills, running_suite, says

TEXT = "a prompt that is longer than the threshold of thirty-two tokens, and so prefilled in the east. " * 2


async def answer(suite: ScriptedSuite) -> dict[str, Any]:
    async with suite.client.get("/v1/plan") as response:
        assert response.status == 200
        found: dict[str, Any] = await response.json()
        return found


async def test_before_the_first_request_the_answer_says_what_is_missing(tmp_path: Path) -> None:
    async with running_suite(tmp_path, decode_threshold_tokens=32) as suite:
        found = await answer(suite)
    assert found["object"] == "plan"
    assert (found["current"], found["best"], found["is_decided"]) == (None, None, False)
    assert found["reasons"] == ["no request has been answered yet"]
    assert [(one["role"], one["dc"], one["replicas"]) for one in found["desired"]] == [
        ("decode", "west", 1),
        ("prefill", "west", 0),
        ("prefill", "east", 1),
    ]
    assert found["believed"]["offload_threshold_tokens"] == {"east": 33}
    assert found["measured"]["workers"][0]["num_measured"] == 0


async def test_requests_leave_their_lengths_and_their_forecasts(tmp_path: Path) -> None:
    async with running_suite(tmp_path, decode_threshold_tokens=32) as suite:
        suite.decode.behave, suite.prefill.behave = says("fine", computed=1), prefills(160)
        for _ in range(3):
            await suite.complete(prompt=TEXT, max_tokens=4)
        found = await answer(suite)
        assert suite.metrics.registry.get_sample_value("prfaas:desired_replicas", {"role": "decode", "dc": "west"}) == 1
        assert suite.metrics.registry.get_sample_value("prfaas:offload_threshold_tokens", {"dc": "east"}) == 33
    observed = found["observed"]
    assert observed["num_requests"] == 3
    assert observed["prompt_tokens"]["mean"] == len(TEXT)
    assert observed["uncached_tokens"]["mean"] == (len(TEXT) + 2 * (len(TEXT) % BLOCK_TOKENS)) / 3  # then cached
    assert observed["output_tokens"]["mean"] == 4
    assert (observed["plans"]["remote"], observed["plans"]["none"]) == (1, 2)
    forecasts = found["believed"]["forecasts"]
    assert {kind: ratios["num_requests"] for kind, ratios in forecasts.items()} == {"remote": 1, "none": 2}
    assert found["current"]["prefill_instances"] == 0
    assert "3 of the 50 requests that a decision takes were seen" in found["reasons"]
    assert "no decode worker in west has measured its steps" in found["reasons"]
