"""A request over several attempts: which failures lead to another worker, and what that one is asked to continue."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from services.gateway.admission.gate import GateLimits, TurnGate
from services.gateway.admission.turn import TurnRequest
from services.gateway.cluster.devices import ServedPrompts
from services.gateway.cluster.promises import PrefillPromises
from services.gateway.cluster.registry import NO_WAITS, Registry
from services.gateway.control.observed import Observations
from services.gateway.metrics import GatewayMetrics
from services.gateway.model import ServedModel
from services.gateway.placement.index import PlacementIndex
from services.gateway.request.attempt import DecodeCalls, HandOffTerms
from services.gateway.request.generation import GenerationRequest, with_keys
from services.gateway.request.pipeline import MAX_ATTEMPTS, Pipeline
from services.gateway.request.planning import Planner
from services.gateway.request.prefilling import PrefillCalls
from services.gateway.request.usage import PromptUsage
from services.gateway.routing.calibration import Calibration
from services.gateway.routing.plan import Plan
from services.gateway.routing.policies.cost import ByCost
from services.gateway.routing.router import Router
from services.gateway.timeline.record import ChoiceNote
from shared.deadline import Deadline
from shared.errors import CorruptFrame, LeaseExpired, NoWorker, Overloaded, PrfaasError, WorkerLost
from shared.ids import BlockKey, Datacenter, WorkerId
from shared.kv.codec import Fidelity
from shared.metrics import Metrics
from shared.sampling.params import SamplingParams
from shared.tenant import NO_TENANT
from tests.support.events import member
from tests.support.gateway import BLOCK_TOKENS, served_model
from tests.support.plans import plan
from tests.support.waiting import LIMIT_S, until
from tests.support.workers import ScriptedDecode, ScriptedPrefill, decoded

PROMPT = range(BLOCK_TOKENS * 2 - 1)  # one token more fills the second block
SAMPLING = SamplingParams(max_tokens=4, min_tokens=2)


class KeyedModel(ServedModel):
    """Notes in which threads it computes keys."""

    threads: list[threading.Thread]

    def prefix_keys(
        self, token_ids: Sequence[int], salt: str, fidelity: Fidelity = Fidelity.LOSSLESS
    ) -> list[BlockKey]:
        self.threads.append(threading.current_thread())
        return super().prefix_keys(token_ids, salt, fidelity)


class PipelineBench:
    """Plans without prefill, each on the next decode worker, as long as there is one."""

    def __init__(self, model: ServedModel, decode: ScriptedDecode, num_workers: int = 5) -> None:
        self.planned: list[tuple[GenerationRequest, frozenset[WorkerId]]] = []
        self.notes: list[ChoiceNote] = []
        self.num_workers = num_workers
        self.registry = Registry(model.fingerprint, model.layout.hash)
        for number in range(num_workers):
            event = member(f"decode-{number}")
            self.registry.apply_membership(
                replace(event, fingerprint=model.fingerprint, layout_hash=model.layout.hash), 0
            )
        metrics = GatewayMetrics(Metrics(), "tiny")
        prefill = PrefillCalls(ScriptedPrefill(), self.registry, PrefillPromises(), _ignore, metrics)
        self.calls = DecodeCalls(
            decode, self.registry, _ignore, _ignore_first, prefill, model, HandOffTerms(), Observations()
        )
        self.pipeline = Pipeline(self, self.calls, self.registry, metrics, TurnGate(GateLimits(), metrics))

    async def run(self, request: GenerationRequest) -> list[int]:
        usage, deadline = PromptUsage(len(request.token_ids)), Deadline.after(2 * LIMIT_S)
        note = ChoiceNote()
        self.notes.append(note)
        async with aclosing(self.pipeline.generate(request, usage, deadline, note)) as events:
            return [token for event in [event async for event in events] for token in event.ids]

    def plan(
        self, request: GenerationRequest, excluded: frozenset[WorkerId], waits: Mapping[WorkerId, float] = NO_WAITS
    ) -> tuple[GenerationRequest, Plan]:
        self.planned.append((request, excluded))
        if len(excluded) == self.num_workers:
            raise NoWorker("nobody is left")
        return request, replace(plan(0, decode=f"decode-{len(excluded)}"), num_blocks=0)

    def carried_out(self, request: GenerationRequest, plan: Plan) -> None:
        pass


def _ignore_first(_plan: Plan, _keys: Sequence[BlockKey], _ttft_s: float | None, _now: float) -> None:
    pass


def _ignore(_keys: Sequence[BlockKey], _nodes: Sequence[str]) -> None:
    pass


@pytest.fixture
def model(tmp_path: Path) -> KeyedModel:
    model = KeyedModel(**vars(served_model(tmp_path)))
    object.__setattr__(model, "threads", [])
    return model


def request(model: ServedModel, sampling: SamplingParams = SAMPLING) -> GenerationRequest:
    return with_keys(model, GenerationRequest(PROMPT, (), sampling, ""), Fidelity.LOSSLESS)


async def test_another_worker_continues_with_what_is_left(model: KeyedModel) -> None:
    decode = ScriptedDecode([decoded(7), WorkerLost("gone")], [decoded(8, 9, end="stop")])
    bench = PipelineBench(model, decode)
    asked = request(model)
    assert await bench.run(asked) == [7, 8, 9]
    assert decode.called == ["decode-0", "decode-1"]
    (note,) = bench.notes
    assert note.passed_at is not None
    assert [attempt.error for attempt in note.attempts] == [WorkerLost.code, None], "one turn, however many workers"
    order = decode.calls[1].order
    assert order is not None
    assert (list(order.prompt.token_ids), order.num_generated) == ([*PROMPT, 7], 1)
    assert order.sampling == replace(SAMPLING, max_tokens=3, min_tokens=1)
    rest, excluded = bench.planned[1]
    assert excluded == {"decode-0"}
    assert (rest.keys[:1], len(rest.keys)) == (asked.keys, 2)
    assert [worker.worker for worker in bench.registry.view().decode] == [f"decode-{number}" for number in range(1, 5)]


async def test_a_longer_prompt_is_hashed_beside_the_loop(model: KeyedModel) -> None:
    asked = request(model)
    model.threads.clear()
    await PipelineBench(model, ScriptedDecode([decoded(7), WorkerLost("gone")], [decoded(8, end="stop")])).run(asked)
    assert len(model.threads) == 1
    assert model.threads[0] is not threading.current_thread()


async def test_a_worker_that_is_full_is_passed_over_but_not_lost(model: KeyedModel) -> None:
    decode = ScriptedDecode([Overloaded("full")], [decoded(8, end="stop")])
    bench = PipelineBench(model, decode)
    assert await bench.run(request(model)) == [8]
    assert len(bench.registry.view().decode) == 5
    assert bench.planned[1][0] is bench.planned[0][0], "nothing was generated: the request is as it was"


@pytest.mark.parametrize("error", [CorruptFrame("no"), LeaseExpired("late")])
async def test_other_failures_are_the_requests_own(model: KeyedModel, error: PrfaasError) -> None:
    bench = PipelineBench(model, ScriptedDecode([decoded(7), error]))
    with pytest.raises(type(error)):
        await bench.run(request(model))
    assert len(bench.planned) == 1


async def test_not_more_than_so_many_workers_are_tried(model: KeyedModel) -> None:
    bench = PipelineBench(model, ScriptedDecode(*[[WorkerLost(f"lost {number}")] for number in range(5)]))
    with pytest.raises(WorkerLost, match=f"lost {MAX_ATTEMPTS - 1}"):
        await bench.run(request(model))
    assert len(bench.planned) == MAX_ATTEMPTS


async def test_when_nobody_is_left_the_client_learns_what_became_of_the_last(model: KeyedModel) -> None:
    bench = PipelineBench(model, ScriptedDecode([Overloaded("full")]), num_workers=1)
    with pytest.raises(Overloaded):
        await bench.run(request(model))
    nobody = PipelineBench(model, ScriptedDecode(), num_workers=0)
    with pytest.raises(NoWorker):
        await nobody.run(request(model))


async def test_a_worker_lost_after_the_last_token_costs_nothing(model: KeyedModel) -> None:
    bench = PipelineBench(model, ScriptedDecode([decoded(1, 2, 3, 4), WorkerLost("gone")]))
    async with aclosing(
        bench.pipeline.generate(request(model), PromptUsage(len(PROMPT)), Deadline.after(LIMIT_S))
    ) as events:
        reasons = [event.finish_reason async for event in events]
    assert reasons == [None, "length"]
    assert len(bench.planned) == 1


async def test_closing_ends_the_call(model: KeyedModel) -> None:
    decode = ScriptedDecode([decoded(1), asyncio.Event()])
    pipeline = PipelineBench(model, decode).pipeline
    async with aclosing(pipeline.generate(request(model), PromptUsage(1), Deadline.after(LIMIT_S))) as events:
        await anext(events)
    assert decode.calls[0].has_ended


async def test_requests_that_wait_count_for_those_that_come_after_them(model: KeyedModel) -> None:
    """Of two equal workers each has as many waiting: neither's queue is longer for what the gateway holds back."""
    release = asyncio.Event()
    num_requests = 12
    decode = ScriptedDecode(*[(release, decoded(7, end="stop"))] * num_requests)
    bench = PipelineBench(model, decode, num_workers=2)
    metrics = GatewayMetrics(Metrics(), "tiny")
    gate = TurnGate(GateLimits(window_s=1e-3), metrics)
    router = Router(Datacenter("west"), model.layout, ByCost())
    parts = (PlacementIndex(model.layout), PrefillPromises(), bench.registry, ServedPrompts(), Calibration(), metrics)
    planner = Planner(router, *parts, draw=lambda: 0.0)  # of equal workers always the same
    bench.pipeline = Pipeline(planner, bench.calls, bench.registry, metrics, gate)
    running = [asyncio.create_task(bench.run(request(model))) for _ in range(num_requests)]
    await until(lambda: gate.num_waiting + len(decode.called) == num_requests)
    first, second = gate.waits(TurnRequest(NO_TENANT)).values()
    assert gate.num_waiting > num_requests / 2
    assert first == pytest.approx(second, rel=0.5)
    release.set()
    await asyncio.gather(*running)
