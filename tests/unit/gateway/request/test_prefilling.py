"""The prefill half of an attempt against a scripted client: who is tried, who is credited, what is held meanwhile."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import pytest

from services.gateway.cluster.promises import PrefillPromises
from services.gateway.cluster.registry import Member, Registry
from services.gateway.metrics import GatewayMetrics
from services.gateway.request.prefilling import MAX_WORKERS, PrefillCalls, Prefilling
from services.gateway.request.usage import PromptUsage
from services.gateway.routing.plan import Plan
from shared.deadline import Deadline
from shared.errors import BadRequest, Overloaded, PrfaasError, WorkerLost
from shared.ids import BlockKey, Datacenter, LayoutHash, ModelFingerprint, WorkerId
from shared.kv.codec import Codec, Fidelity
from shared.metrics import Metrics
from shared.rpc.client import Channels
from shared.tenant import NO_TENANT
from shared.workers.prefill import PrefillClient
from shared.workers.request import PromptOrder

EAST = Datacenter("east")
KEYS = [BlockKey(bytes([number]) * 32) for number in range(3)]
ORDER = PromptOrder(
    token_ids=range(50),
    num_blocks=3,
    fingerprint=ModelFingerprint("f"),
    layout_hash=LayoutHash("l"),
    salt="",
    tenant=NO_TENANT,
    sources=(),
    codec=Codec.RAW,
    fidelity=Fidelity.LOSSLESS,
    pool_nodes=(),
)


def worker(name: str) -> Member:
    return Member(WorkerId(name), EAST, f"{name}:1", f"pool-of-{name}:1")


WORKERS = [worker(f"prefill-{number}") for number in range(5)]


class ScriptedPrefill(PrefillClient):
    """Each call reports what its script says, and ends with the script's error if it has one."""

    def __init__(self, *scripts: Sequence[int | PrfaasError]) -> None:
        super().__init__(Channels())
        self._scripts = list(scripts)
        self.called: list[str] = []

    async def prefill(
        self, worker: WorkerId, address: str, order: PromptOrder, timeout_s: float
    ) -> AsyncGenerator[int, None]:
        self.called.append(worker)
        for step in self._scripts.pop(0):
            await asyncio.sleep(0)
            if isinstance(step, PrfaasError):
                raise step
            yield step


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
        self.prefilling.start(self.fail)
        await self.prefilling.wait(30)

    def failed(self, code: str) -> float:
        labels = {"model_name": "m", "code": code}
        return self.metrics.registry.get_sample_value("prfaas:prefill_failures_total", labels) or 0.0


def plan(num_workers: int = 2, nodes: tuple[str, ...] = ()) -> Plan:
    return Plan(
        kind="remote",
        home_dc=Datacenter("west"),
        decode=worker("decode"),
        prefill=WORKERS[0] if num_workers else None,
        prefill_spares=tuple(WORKERS[1:num_workers]),
        num_blocks=3,
        usable_blocks=0,
        decode_nodes=(),
        prefill_nodes=nodes,
        decode_sources=(),
        prefill_sources=(),
        prefill_codec=Codec.RAW,
        decode_codec=Codec.RAW,
    )


async def test_the_worker_that_finished_is_credited_not_the_one_that_was_planned() -> None:
    bench = Bench(ScriptedPrefill([16, WorkerLost("gone")], [16, 48]), plan())
    await bench.run()
    assert bench.client.called == ["prefill-0", "prefill-1"]
    assert bench.arrivals == [(KEYS, ("pool-of-prefill-1:1",))]
    assert (bench.failures, bench.failed("worker_lost")) == (0, 1)


async def test_where_nodes_are_known_the_blocks_are_on_those() -> None:
    bench = Bench(ScriptedPrefill([48]), plan(nodes=("n1:1", "n2:1")))
    await bench.run()
    assert bench.arrivals == [(KEYS, ("n1:1", "n2:1"))]


async def test_computed_tokens_add_up_over_workers() -> None:
    bench = Bench(ScriptedPrefill([16, 32, WorkerLost("gone")], [8, 16]), plan())
    await bench.run()
    assert bench.usage.prefill_tokens == 32 + 16


@pytest.mark.parametrize(("error", "called"), [(Overloaded("full"), 2), (WorkerLost("gone"), 2), (BadRequest("no"), 1)])
async def test_only_what_may_succeed_elsewhere_is_tried_elsewhere(error: PrfaasError, called: int) -> None:
    bench = Bench(ScriptedPrefill([error], [error]), plan())
    await bench.run()
    assert len(bench.client.called) == called
    assert (bench.failures, bench.arrivals) == (1, [])


async def test_not_all_workers_of_a_large_datacenter_are_tried() -> None:
    bench = Bench(ScriptedPrefill(*[[WorkerLost("gone")]] * 5), plan(5))
    await bench.run()
    assert len(bench.client.called) == MAX_WORKERS
    assert bench.failures == 1


async def test_a_promise_and_a_load_are_held_while_it_runs_and_no_longer() -> None:
    bench = Bench(ScriptedPrefill([16, 48]), plan())
    bench.prefilling.start(bench.fail)
    assert bench.promises.longest(KEYS) == {WorkerId("prefill-0"): 3}
    await bench.prefilling.wait(30)
    assert len(bench.promises) == 0


async def test_stopping_leaves_nothing_behind() -> None:
    bench = Bench(ScriptedPrefill([1] * 100_000), plan())
    bench.prefilling.start(bench.fail)
    await asyncio.sleep(0)
    await bench.prefilling.stop()
    assert (len(bench.promises), bench.arrivals, bench.failures) == (0, [], 0)
    assert bench.prefilling.over.is_set()


async def test_without_a_prefill_worker_it_is_over_at_once() -> None:
    bench = Bench(ScriptedPrefill(), plan(0))
    bench.prefilling.start(bench.fail)
    assert bench.prefilling.over.is_set()
    await bench.prefilling.stop()
    assert (bench.failures, bench.client.called) == (0, [])
