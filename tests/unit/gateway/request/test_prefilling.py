"""The prefill half of an attempt against a scripted client: who is tried, who is credited, what is held meanwhile."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from services.gateway.cluster.promises import PrefillPromises
from services.gateway.cluster.registry import Registry
from services.gateway.metrics import GatewayMetrics
from services.gateway.request.prefilling import MAX_WORKERS, PrefillCalls, Prefilling
from services.gateway.request.usage import PromptUsage
from services.gateway.routing.plan import Plan
from shared.deadline import Deadline
from shared.errors import BadRequest, LeaseExpired, Overloaded, PrfaasError, WorkerLost
from shared.ids import BlockKey, LayoutHash, ModelFingerprint, WorkerId
from shared.kv.codec import Codec, Fidelity
from shared.metrics import Metrics
from shared.tenant import NO_TENANT
from shared.workers.request import PromptOrder
from tests.support.plans import NUM_BLOCKS, plan
from tests.support.workers import ScriptedPrefill

KEYS = [BlockKey(bytes([number]) * 32) for number in range(NUM_BLOCKS)]
ORDER = PromptOrder(
    token_ids=range(50),
    num_blocks=NUM_BLOCKS,
    fingerprint=ModelFingerprint("f"),
    layout_hash=LayoutHash("l"),
    salt="",
    tenant=NO_TENANT,
    sources=(),
    codec=Codec.RAW,
    fidelity=Fidelity.LOSSLESS,
    pool_nodes=(),
)


@dataclass
class Bench:
    client: ScriptedPrefill
    plan: Plan
    usage: PromptUsage = field(default_factory=lambda: PromptUsage(50))
    arrivals: list[tuple[Sequence[BlockKey], Sequence[str]]] = field(default_factory=list)
    failures: int = 0

    def __post_init__(self) -> None:
        self.registry = Registry(ORDER.fingerprint, ORDER.layout_hash)
        self.promises = PrefillPromises()
        self.metrics = Metrics()
        note = lambda keys, nodes: self.arrivals.append((keys, nodes))  # noqa: E731 - it is handed on as a value
        calls = PrefillCalls(self.client, self.registry, self.promises, note, GatewayMetrics(self.metrics, "m"))
        self.prefilling = Prefilling(calls, self.plan, ORDER, KEYS, self.usage, Deadline.after(30))

    async def fail(self) -> None:
        self.failures += 1

    async def run(self) -> None:
        self.prefilling.start(self.fail, lambda: None)
        await self.prefilling.wait(30)

    def failed(self, code: str) -> float:
        labels = {"model_name": "m", "code": code}
        return self.metrics.registry.get_sample_value("prfaas:prefill_failures_total", labels) or 0.0


async def test_the_worker_that_finished_is_credited_not_the_one_that_was_planned() -> None:
    bench = Bench(ScriptedPrefill([16, WorkerLost("gone")], [16, 48]), plan(2))
    await bench.run()
    assert bench.client.called == ["prefill-0", "prefill-1"]
    assert bench.arrivals == [(KEYS, ("pool-of-prefill-1:1",))]
    assert (bench.failures, bench.failed("worker_lost")) == (0, 1)


async def test_where_nodes_are_known_the_blocks_are_on_those() -> None:
    bench = Bench(ScriptedPrefill([48]), plan(prefill_nodes=("n1:1", "n2:1")))
    await bench.run()
    assert bench.arrivals == [(KEYS, ("n1:1", "n2:1"))]


async def test_computed_tokens_add_up_over_workers() -> None:
    bench = Bench(ScriptedPrefill([16, 32, WorkerLost("gone")], [8, 16]), plan(2))
    await bench.run()
    assert bench.usage.prefill_tokens == 32 + 16


@pytest.mark.parametrize(
    ("error", "called"),
    [(Overloaded("full"), 2), (WorkerLost("gone"), 2), (BadRequest("no"), 1), (LeaseExpired("late"), 1)],
)
async def test_only_what_may_succeed_elsewhere_is_tried_elsewhere(error: PrfaasError, called: int) -> None:
    bench = Bench(ScriptedPrefill([error], [error]), plan(2))
    await bench.run()
    assert len(bench.client.called) == called
    assert (bench.failures, bench.arrivals) == (1, [])


async def test_not_all_workers_of_a_large_datacenter_are_tried() -> None:
    bench = Bench(ScriptedPrefill(*[[WorkerLost("gone")]] * 5), plan(5))
    await bench.run()
    assert len(bench.client.called) == MAX_WORKERS
    assert bench.failures == 1


async def test_a_promise_and_a_load_are_held_while_it_runs_and_no_longer() -> None:
    bench = Bench(ScriptedPrefill([16, 48]), plan(2))
    bench.prefilling.start(bench.fail, lambda: None)
    assert bench.promises.longest(KEYS) == {WorkerId("prefill-0"): 3}
    await bench.prefilling.wait(30)
    assert len(bench.promises) == 0


async def test_stopping_leaves_nothing_behind() -> None:
    bench = Bench(ScriptedPrefill([1] * 100_000), plan(2))
    bench.prefilling.start(bench.fail, lambda: None)
    await asyncio.sleep(0)
    await bench.prefilling.stop()
    assert (len(bench.promises), bench.arrivals, bench.failures) == (0, [], 0)
    assert bench.prefilling.over.is_set()


async def test_without_a_prefill_worker_it_is_over_at_once() -> None:
    bench = Bench(ScriptedPrefill(), plan(0))
    bench.prefilling.start(bench.fail, lambda: None)
    assert bench.prefilling.over.is_set()
    await bench.prefilling.stop()
    assert (bench.failures, bench.client.called) == (0, [])
