"""One plan carried out against scripted clients: what each worker is told, and that both calls end with it."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from services.gateway.cluster.promises import PrefillPromises
from services.gateway.cluster.registry import Registry
from services.gateway.control.observed import Observations
from services.gateway.metrics import GatewayMetrics
from services.gateway.model import ServedModel
from services.gateway.request.attempt import Attempt, DecodeCalls, HandOffTerms, TokenEvent
from services.gateway.request.generation import GenerationRequest, with_keys
from services.gateway.request.prefilling import PrefillCalls
from services.gateway.request.usage import PromptUsage
from services.gateway.routing.plan import Forecast, Plan
from services.gateway.routing.rescue import GRACE_S
from services.gateway.settings import HandOff
from shared.deadline import Deadline
from shared.errors import Internal, WorkerLost
from shared.ids import BlockKey, Datacenter, WorkerId
from shared.kv.codec import Codec, Fidelity
from shared.kv.entries import Source
from shared.metrics import Metrics
from shared.sampling.params import SamplingParams
from shared.tenant import tenant_of
from tests.support.events import member
from tests.support.gateway import BLOCK_TOKENS, served_model
from tests.support.plans import NUM_BLOCKS, plan
from tests.support.waiting import LIMIT_S, until
from tests.support.workers import ScriptedDecode, ScriptedPrefill, decoded

TAIL_TOKENS = 5
NUM_TOKENS = NUM_BLOCKS * BLOCK_TOKENS + TAIL_TOKENS


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    return served_model(tmp_path)


class AttemptBench:
    """One attempt, and what the gateway knows beside it."""

    def __init__(
        self,
        model: ServedModel,
        decode: ScriptedDecode,
        prefill: ScriptedPrefill,
        chosen: Plan,
        mode: HandOff = "streamed",
        num_generated: int = 0,
    ) -> None:
        self.decode, self.prefill = decode, prefill
        self.registry = Registry(model.fingerprint, model.layout.hash)
        decoder = replace(member("decode-0"), fingerprint=model.fingerprint, layout_hash=model.layout.hash)
        self.registry.apply_membership(decoder, 0)
        self.registry.apply_membership(replace(decoder, worker=WorkerId("prefill-0"), role="prefill"), 0)
        self.promises = PrefillPromises()
        self.plan, self.first_tokens_s = chosen, list[float | None]()
        self.arrivals: list[tuple[Sequence[BlockKey], Sequence[str]]] = []
        request = GenerationRequest(range(NUM_TOKENS), (), SamplingParams(max_tokens=8), "salt", 7, num_generated)
        self.request = with_keys(model, request, Fidelity.LOSSLESS)
        self.usage = PromptUsage(NUM_TOKENS)
        self._metrics = Metrics()
        metrics = GatewayMetrics(self._metrics, "tiny")
        prefill_calls = PrefillCalls(prefill, self.registry, self.promises, self._note, metrics)
        terms = HandOffTerms(mode, block_wait_ms=1234)
        self.observations = Observations()
        calls = DecodeCalls(
            decode, self.registry, self._note, self._note_first, prefill_calls, model, terms, self.observations
        )
        self.attempt = Attempt(calls, chosen, self.request, self.usage, Deadline.after(2 * LIMIT_S))

    async def run(self) -> list[TokenEvent]:
        async with aclosing(self.attempt.tokens()) as events:
            return [event async for event in events]

    def loads(self) -> list[int]:
        """Return the calls that count as the load of the decode and of the prefill worker."""
        view = self.registry.view()
        return [int(n) for workers in (view.decode, view.prefill) for n in workers.rows["requests"]]

    def rescues(self, kind: str) -> float:
        labels = {"model_name": "tiny", "kind": kind}
        return self._metrics.registry.get_sample_value("prfaas:rescues_total", labels) or 0.0

    def assert_over(self) -> None:
        """Check that both calls are over, and count as nobody's load."""
        assert self.loads() == [0, 0]
        assert (len(self.promises), self.prefill.num_open) == (0, 0)
        assert all(call.has_ended for call in self.decode.calls)

    def _note_first(self, plan: Plan, keys: Sequence[BlockKey], ttft_s: float | None, _now: float) -> None:
        assert (plan, keys) == (self.plan, self.request.keys)
        self.first_tokens_s.append(ttft_s)

    def _note(self, keys: Sequence[BlockKey], nodes: Sequence[str]) -> None:
        self.arrivals.append((keys, nodes))


async def test_tokens_are_passed_on_and_the_stream_is_ended_from_both_sides(model: ServedModel) -> None:
    decode = ScriptedDecode([decoded(1, computed=TAIL_TOKENS), decoded(2, 3), decoded(4, end="length")])
    bench = AttemptBench(model, decode, ScriptedPrefill([16, 48]), plan())
    events = await bench.run()
    assert events == [TokenEvent((1,), None), TokenEvent((2, 3), None), TokenEvent((4,), "length")]
    assert len(bench.first_tokens_s) == 1
    assert decode.calls[0].is_finished
    bench.assert_over()
    assert (bench.usage.prefill_tokens, bench.usage.decode_tokens, bench.usage.cached_tokens) == (48, TAIL_TOKENS, 0)


async def test_what_a_request_was_like_is_observed(model: ServedModel) -> None:
    bench = AttemptBench(
        model, ScriptedDecode([decoded(1, 2), decoded(3, end="length")]), ScriptedPrefill([48]), plan()
    )
    await bench.run()
    seen = bench.observations.seen()
    assert (seen.prompt_tokens.tolist(), seen.uncached_tokens.tolist()) == ([NUM_TOKENS], [NUM_TOKENS])
    assert seen.output_tokens.tolist() == [3]
    assert seen.kinds["remote"] == 1


async def test_the_rest_of_a_request_is_no_other_one(model: ServedModel) -> None:
    decode = ScriptedDecode([decoded(1, end="length")])
    bench = AttemptBench(model, decode, ScriptedPrefill([48]), plan(), num_generated=2)
    await bench.run()
    assert bench.observations.seen().num_requests == 0


async def test_each_worker_is_told_of_the_pools_on_its_own_side(model: ServedModel) -> None:
    chosen = replace(
        plan(),
        decode_nodes=("west:1",),
        prefill_nodes=("east:1",),
        decode_sources=(Source(0, NUM_BLOCKS, Datacenter("east"), ("east:1",)),),
        prefill_sources=(Source(0, 1, Datacenter("west"), ("west:1",)),),
        prefill_codec=Codec.ZSTD,
    )
    bench = AttemptBench(model, ScriptedDecode([decoded(1, end="stop")]), ScriptedPrefill([48]), chosen)
    await bench.run()
    order, told = bench.decode.calls[0].order, bench.prefill.orders[0]
    assert order is not None
    assert (order.sampling, order.wait_ms, order.num_generated) == (bench.request.sampling, 1234, 0)
    assert (order.prompt.sources, order.prompt.pool_nodes) == (chosen.decode_sources, ("west:1",))
    assert (told.sources, told.pool_nodes) == (chosen.prefill_sources, ("east:1",))
    assert (order.prompt.codec, told.codec) == (Codec.RAW, Codec.ZSTD)
    assert replace(order.prompt, sources=(), pool_nodes=(), codec=Codec.RAW) == replace(
        told, sources=(), pool_nodes=(), codec=Codec.RAW
    )
    assert (told.num_blocks, told.fingerprint, told.layout_hash) == (NUM_BLOCKS, model.fingerprint, model.layout.hash)
    assert (told.salt, told.tenant, told.priority) == ("salt", tenant_of("salt"), 7)


async def test_without_prefill_decode_waits_for_no_block(model: ServedModel) -> None:
    bench = AttemptBench(model, ScriptedDecode([decoded(1, end="stop")]), ScriptedPrefill(), plan(0))
    await bench.run()
    assert bench.decode.calls[0].order is not None
    assert bench.decode.calls[0].order.wait_ms == 0
    assert bench.prefill.called == []


@pytest.mark.parametrize(("computed", "arrived"), [(TAIL_TOKENS, True), (TAIL_TOKENS + BLOCK_TOKENS, False)])
async def test_decodes_pool_is_credited_if_decode_computed_the_tail_alone(
    model: ServedModel, computed: int, arrived: bool
) -> None:
    bench = AttemptBench(model, ScriptedDecode([decoded(1, end="stop", computed=computed)]), ScriptedPrefill(), plan(0))
    await bench.run()
    assert bench.arrivals == ([(bench.request.keys[:NUM_BLOCKS], ("pool-of-decode-0:1",))] if arrived else [])


async def test_generated_tokens_that_a_second_worker_computes_are_not_the_prompts(model: ServedModel) -> None:
    decode = ScriptedDecode([decoded(1, end="stop", computed=TAIL_TOKENS)])
    bench = AttemptBench(model, decode, ScriptedPrefill(), plan(0), num_generated=3)
    await bench.run()
    assert bench.usage.decode_tokens == TAIL_TOKENS - 3


@pytest.mark.parametrize("mode", ["streamed", "stored"])
async def test_decode_is_told_of_a_failed_prefill_once_it_has_its_request(model: ServedModel, mode: HandOff) -> None:
    told = asyncio.Event()
    decode, prefill = ScriptedDecode([told, decoded(1, end="stop")]), ScriptedPrefill([16, Internal("a bug")])
    bench = AttemptBench(model, decode, prefill, plan(), mode)
    running = asyncio.create_task(bench.run())
    await until(lambda: bool(decode.calls) and decode.calls[0].told_of_failure.is_set())
    told.set()
    assert await running == [TokenEvent((1,), "stop")]
    bench.assert_over()


async def test_stored_hand_off_sends_the_request_when_prefill_is_over(model: ServedModel) -> None:
    made = asyncio.Event()
    decode, prefill = ScriptedDecode([decoded(1, end="stop")]), ScriptedPrefill([16, made, 48])
    bench = AttemptBench(model, decode, prefill, plan(), "stored")
    running = asyncio.create_task(bench.run())
    await until(lambda: prefill.num_open == 1)
    assert not decode.calls[0].started.is_set()
    made.set()
    assert len(await running) == 1
    assert bench.usage.prefill_tokens == 48


def in_a_hurry(patience_s: float) -> Plan:
    """A plan that decode is to carry out alone when its blocks are late by so much."""
    return replace(plan(), forecast=Forecast(0.0, 0.0, 0.01), alone_s=patience_s - GRACE_S)


async def test_decode_is_told_how_long_blocks_are_worth_waiting_for(model: ServedModel) -> None:
    bench = AttemptBench(model, ScriptedDecode([decoded(1, end="stop")]), ScriptedPrefill([48]), in_a_hurry(7.0))
    await bench.run()
    assert bench.decode.calls[0].order is not None
    assert bench.decode.calls[0].order.patience_s == 7.0


async def test_prefill_stops_when_decode_computes_what_is_late(model: ServedModel) -> None:
    never, computing = asyncio.Event(), asyncio.Event()
    late = decoded(rescued=True)
    decode = ScriptedDecode([late, computing, decoded(1, computed=NUM_TOKENS), decoded(2, end="stop")])
    bench = AttemptBench(model, decode, ScriptedPrefill([16, never]), in_a_hurry(7.0))
    running = asyncio.create_task(bench.run())
    await until(lambda: bool(bench.prefill.called) and bench.prefill.num_open == 0)
    computing.set()
    assert await running == [TokenEvent((1,), None), TokenEvent((2,), "stop")]
    assert bench.rescues("remote") == 1
    assert bench.arrivals == [], "nothing has come to decode's pool"
    assert bench.first_tokens_s == [None], "its time says nothing of plans that are carried out"
    assert not decode.calls[0].told_of_failure.is_set()
    bench.assert_over()


async def test_stored_hand_off_does_not_wait_for_a_prefill_that_is_late(model: ServedModel) -> None:
    never = asyncio.Event()
    chosen = replace(in_a_hurry(0.15), decode_sources=(Source(0, 1, Datacenter("east"), ("east:1",)),))
    bench = AttemptBench(model, ScriptedDecode([decoded(1, end="stop")]), ScriptedPrefill([never]), chosen, "stored")
    assert await bench.run() == [TokenEvent((1,), "stop")]
    order = bench.decode.calls[0].order
    assert order is not None
    assert (order.wait_ms, order.patience_s, order.prompt.sources) == (0, None, ())
    assert bench.rescues("remote") == 1
    bench.assert_over()


async def test_the_last_event_comes_with_prefills_last_count(model: ServedModel) -> None:
    late = asyncio.Event()
    decode, prefill = ScriptedDecode([decoded(1), decoded(2, end="stop")]), ScriptedPrefill([16, late, 48])
    bench = AttemptBench(model, decode, prefill, plan())
    async with aclosing(bench.attempt.tokens()) as events:
        assert (await anext(events)).finish_reason is None
        late.set()
        assert (await anext(events)).finish_reason == "stop"
        assert bench.usage.prefill_tokens == 48


async def test_while_it_runs_both_workers_have_a_load_and_closing_ends_both_calls(model: ServedModel) -> None:
    never = asyncio.Event()
    bench = AttemptBench(model, ScriptedDecode([decoded(1), never]), ScriptedPrefill([16, never]), plan())
    async with aclosing(bench.attempt.tokens()) as events:
        await anext(events)
        assert bench.loads() == [1, 1]
        assert bench.promises.longest(bench.request.keys) == {WorkerId("prefill-0"): NUM_BLOCKS}
    assert decode_was_cut_off(bench)
    bench.assert_over()


async def test_a_lost_decode_worker_ends_prefill_too(model: ServedModel) -> None:
    never = asyncio.Event()
    bench = AttemptBench(model, ScriptedDecode([decoded(1), WorkerLost("gone")]), ScriptedPrefill([16, never]), plan())
    with pytest.raises(WorkerLost):
        await bench.run()
    assert decode_was_cut_off(bench)
    bench.assert_over()


def decode_was_cut_off(bench: AttemptBench) -> bool:
    call = bench.decode.calls[0]
    return call.is_cancelled and not call.is_finished
