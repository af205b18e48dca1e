"""Typed clients that follow a script in place of a network: of decode workers, prefill workers and pool nodes."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from shared.errors import PrfaasError
from shared.ids import WorkerId
from shared.kv.entries import BlockEntries
from shared.kv.layout import KvLayout
from shared.pool.admin import PoolAdmin
from shared.rpc.client import Channels
from shared.tenant import Tenant
from shared.workers.decode import DecodeCall, DecodeClient, DecodedTokens, FinishReason
from shared.workers.prefill import PrefillClient, PrefillNews
from shared.workers.request import GenerateOrder, PromptOrder

DecodeScript = Sequence[DecodedTokens | PrfaasError | asyncio.Event]


def decoded(*ids: int, end: FinishReason | None = None, computed: int = 0, rescued: bool = False) -> DecodedTokens:
    """What one message of a decode worker brings."""
    return DecodedTokens(ids, end, computed, rescued=rescued)


class ScriptedPrefill(PrefillClient):
    """Each call reports what its script says, waits where that has an event, and raises where it has an error."""

    def __init__(self, *scripts: Sequence[int | PrfaasError | asyncio.Event]) -> None:
        super().__init__(Channels())
        self._scripts = list(scripts)
        self.called: list[WorkerId] = []
        self.orders: list[PromptOrder] = []
        self.num_open = 0

    async def prefill(
        self, worker: WorkerId, address: str, order: PromptOrder, timeout_s: float
    ) -> AsyncGenerator[PrefillNews, None]:
        self.called.append(worker)
        self.orders.append(order)
        self.num_open += 1
        try:
            for step in self._scripts.pop(0):
                await asyncio.sleep(0)
                if isinstance(step, PrfaasError):
                    raise step
                elif isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield PrefillNews(step)
        finally:
            self.num_open -= 1


class ScriptedDecodeCall(DecodeCall):
    """Answers as its script says, and remembers what it was told."""

    def __init__(self, script: DecodeScript, may_change: bool) -> None:
        self._script = list(script)
        self._may_be_told = may_change
        self.order: GenerateOrder | None = None
        self.started = asyncio.Event()
        self.told_of_failure = asyncio.Event()
        self.is_finished = False
        self.is_cancelled = False
        self.has_ended = False

    async def start(self, order: GenerateOrder, timeout_s: float) -> None:
        self.order = order
        self.started.set()

    async def prefill_failed(self) -> None:
        assert self.started.is_set(), "updates follow the request"
        assert self._may_be_told, "nobody announced updates"
        self.told_of_failure.set()

    async def next_tokens(self) -> DecodedTokens:
        await asyncio.sleep(0)
        step = self._script.pop(0)
        if isinstance(step, asyncio.Event):
            await step.wait()
            return await self.next_tokens()
        if isinstance(step, PrfaasError):
            raise step
        return step

    async def finish(self, limit_s: float) -> None:
        self.is_finished = True

    def cancel(self) -> None:
        self.is_cancelled = True

    async def ended(self) -> None:
        assert self.is_cancelled or self.is_finished, "nobody would end this call"
        self.has_ended = True


class ScriptedDecode(DecodeClient):
    """One script a call, in their order."""

    def __init__(self, *scripts: DecodeScript) -> None:
        super().__init__(Channels())
        self._scripts = list(scripts)
        self.called: list[WorkerId] = []
        self.calls: list[ScriptedDecodeCall] = []

    def call(self, worker: WorkerId, address: str, *, may_change: bool) -> ScriptedDecodeCall:
        call = ScriptedDecodeCall(self._scripts.pop(0), may_change)
        self.called.append(worker)
        self.calls.append(call)
        return call


@dataclass(frozen=True)
class NodePin:
    """What one node was told to keep."""

    blocks: tuple[BlockEntries, ...]
    ttl_s: int
    tenant: Tenant


class RecordedPools(PoolAdmin):
    """Pool nodes that remember their pins. A node in `failures` raises what stands there."""

    def __init__(self) -> None:
        super().__init__(Channels())
        self.pins: dict[tuple[str, str], NodePin] = {}  # by node and name
        self.failures: dict[str, PrfaasError] = {}
        self.meanwhile: Callable[[], Awaitable[None]] | None = None  # happens once, while the next pin is on its way

    async def pin(
        self, node: str, name: str, layout: KvLayout, blocks: Iterable[BlockEntries], ttl_s: int, tenant: Tenant
    ) -> None:
        self._raise_failure(node)
        if self.meanwhile is not None:
            happen, self.meanwhile = self.meanwhile, None
            await happen()
        self.pins[node, name] = NodePin(tuple(blocks), ttl_s, tenant)

    async def unpin(self, node: str, name: str) -> None:
        self._raise_failure(node)
        self.pins.pop((node, name), None)

    def _raise_failure(self, node: str) -> None:
        if node in self.failures:
            raise self.failures[node]
