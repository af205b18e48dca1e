"""The prefill half of an attempt: a worker's call, and when that worker is lost, the next one's."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from services.gateway.cluster.promises import Promise
from services.gateway.cluster.registry import Member
from services.gateway.cluster.view import Cluster
from services.gateway.request.generation import GenerationRequest
from services.gateway.request.usage import Tally
from services.gateway.routing.plan import Plan
from shared.deadline import Deadline
from shared.errors import Overloaded, PrfaasError, Unavailable, WorkerLost
from shared.log import get_logger
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import PrefillStub
from shared.rpc.client import rpc_errors
from shared.rpc.convert import sources_to_messages
from shared.tenant import tenant_of

log = get_logger()

MAX_WORKERS = 3
"""Prefill workers that one plan may be tried on."""


class Prefilling:
    """Has the blocks of a plan made. A worker that takes over finds in the pool what the lost one has published."""

    def __init__(
        self, cluster: Cluster, plan: Plan, request: GenerationRequest, tally: Tally, deadline: Deadline
    ) -> None:
        self.over = asyncio.Event()  # no more blocks will come, whichever way it ended
        self._cluster = cluster
        self._plan = plan
        self._request = request
        self._tally = tally
        self._deadline = deadline
        self._workers = () if plan.prefill is None else (plan.prefill, *plan.prefill_spares)[:MAX_WORKERS]
        self._promise: Promise | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, tell_failure: Callable[[], Awaitable[None]]) -> None:
        """Open the first worker's call, if the plan has one. `tell_failure` is called when no worker finishes.

        Promise and load count at once: plans may follow any await.
        """
        if not self._workers:
            self.over.set()
            return
        self._take(self._workers[0])
        self._task = asyncio.create_task(self._run(tell_failure), name="prefill call")
        self._task.add_done_callback(self._end)

    async def wait(self, limit_s: float) -> None:
        """Wait for the call's end, at most so long. Never fails."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=limit_s)

    async def stop(self) -> None:
        """Cancel what runs; return when it is over."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self, tell_failure: Callable[[], Awaitable[None]]) -> None:
        try:
            is_made = await self._make()
        finally:
            self.over.set()
        if is_made:
            worker = self._workers[0]
            keys = self._request.keys[: self._plan.num_blocks]
            self._cluster.assume(keys, self._plan.prefill_nodes or (worker.pool_address,))
        else:
            await tell_failure()

    async def _make(self) -> bool:
        """Try one worker after another; return whether one has finished."""
        for member in self._workers:
            self._take(member)
            try:
                await self._call(member)
                return True
            except PrfaasError as error:
                self._cluster.metrics.prefill_failed(error.code)
                log.warning("prefill_failed", worker=member.worker, code=error.code, error=str(error))
                if isinstance(error, Unavailable):
                    self._cluster.registry.lost(member.worker)
                elif not isinstance(error, Overloaded):
                    return False  # it would fail anywhere
        return False

    async def _call(self, member: Member) -> None:
        """Follow one call to its end. Raises what it fails with."""
        stub = PrefillStub(self._cluster.channels.get(member.address))
        call = stub.Prefill(self._request_message(), timeout=self._deadline.remaining())
        counted = 0
        is_finished = False
        try:
            with rpc_errors(member.worker):
                async for progress in call:
                    self._tally.prefill_tokens += progress.computed_tokens - counted
                    counted = progress.computed_tokens
                    is_finished = progress.finished
        finally:
            call.cancel()
        if not is_finished:
            raise WorkerLost(f"{member.worker} ended a prefill before it was finished")

    def _take(self, member: Member) -> None:
        """Have the blocks promised by this worker, and by no other."""
        if self._promise is not None and self._promise.worker == member.worker:
            return
        self._let_go()
        self._promise = Promise(member.worker, self._request.keys[: self._plan.num_blocks])
        self._cluster.promises.add(self._promise)
        self._cluster.registry.assign(member.worker)

    def _let_go(self) -> None:
        if self._promise is not None:
            self._cluster.promises.drop(self._promise)
            self._cluster.registry.release(self._promise.worker)
            self._promise = None

    def _end(self, task: asyncio.Task[None]) -> None:
        self._let_go()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("prefill_crashed", exc_info=error)  # decode computes what it then waits for in vain

    def _request_message(self) -> pb.PrefillRequest:
        return pb.PrefillRequest(
            token_ids=self._request.token_ids,
            num_blocks=self._plan.num_blocks,
            fingerprint=self._cluster.model.fingerprint,
            layout_hash=self._cluster.model.layout.hash,
            salt=self._request.salt,
            sources=sources_to_messages(self._plan.prefill_sources),
            codec=cast(pb.Codec.ValueType, int(self._plan.prefill_codec)),
            priority=self._request.priority,
            fidelity=cast(pb.Fidelity.ValueType, int(self._request.fidelity)),
            pool_nodes=self._plan.prefill_nodes,
            tenant=tenant_of(self._request.salt),
        )
