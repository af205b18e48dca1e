"""A prefill worker fails: another takes over, or decode is told and computes what is missing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.errors import BadRequest, WorkerLost
from shared.proto import prfaas_pb2 as pb
from tests.support.gateway import Behaviour, Call, ScriptedSuite, announce, prefills, raises, running_suite, says

LONG = "x" * 100  # 6 prefix blocks of 16, 4 in the tail: above the offload threshold of 32 tokens


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        yield suite


def once_updated(behave: Behaviour) -> Behaviour:
    """A decode worker that waits until the gateway tells it how prefill went."""

    async def waits(call: Call) -> AsyncIterator[pb.Tokens]:
        await call.updated.wait()
        async for message in behave(call):
            yield message

    return waits


async def test_a_failed_prefill_is_reported_to_decode_and_counted(suite: ScriptedSuite) -> None:
    suite.prefill.behave = raises(WorkerLost("gone"))
    suite.decode.behave = once_updated(says("late", computed=100))
    answer = await suite.complete(prompt=LONG, max_tokens=4)
    assert answer["choices"][0]["text"] == "late"
    assert [update.prefill_failed for update in suite.decode.calls[0].updates] == [True]
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert suite.metric("prefill_failures_total", code="worker_lost") == 1
    assert len(suite.parts.promises) == 0


async def test_another_prefill_worker_of_the_datacenter_takes_over(suite: ScriptedSuite) -> None:
    async def dies(_call: Call) -> AsyncIterator[pb.Progress]:
        yield pb.Progress(num_blocks_done=2, computed_tokens=32)
        raise WorkerLost("gone")

    async def taken_over() -> None:
        await spare.called.wait()
        await spare.calls[0].over.wait()

    spare = await suite.join("prefill-east-2", "prefill", "east", prefills(64))
    away = await suite.join("prefill-west", "prefill", "west", prefills(96))
    suite.prefill.behave = dies
    suite.decode.behave = says("ok", computed=4, after=taken_over)
    answer = await suite.complete(prompt=LONG, max_tokens=2)
    assert (len(suite.prefill.calls), len(spare.calls), len(away.calls)) == (1, 1, 0)
    assert spare.calls[0].request == suite.prefill.calls[0].request
    assert suite.decode.calls[0].updates == []
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": len(LONG) - 32 - 64 - 4}
    assert suite.metric("prefill_failures_total", code="worker_lost") == 1
    assert len(suite.parts.promises) == 0
    announce(suite.parts, "prefill-east", "prefill", "east", suite.prefill.address)  # it gives a sign of life
    assert suite.load("prefill-east") == suite.load("prefill-east-2") == 0


async def test_a_prefill_that_would_fail_anywhere_is_not_tried_again(suite: ScriptedSuite) -> None:
    spare = await suite.join("prefill-east-2", "prefill", "east", prefills(96))
    suite.prefill.behave = raises(BadRequest("this prompt is wrong"))
    suite.decode.behave = once_updated(says("late", computed=100))
    await suite.complete(prompt=LONG, max_tokens=2)
    assert spare.calls == []
    assert suite.decode.calls[0].updates[0].prefill_failed


async def test_a_prefill_that_ends_early_without_finishing_counts_as_failed(suite: ScriptedSuite) -> None:
    async def ends_early(_call: Call) -> AsyncIterator[pb.Progress]:
        yield pb.Progress(num_blocks_done=1, computed_tokens=16)

    suite.prefill.behave = ends_early
    suite.decode.behave = once_updated(says("late", computed=84))
    answer = await suite.complete(prompt=LONG, max_tokens=4)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
