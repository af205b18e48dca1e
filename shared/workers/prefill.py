"""Client of prefill workers: one Prefill call, followed to its end."""

from collections.abc import AsyncGenerator
from typing import NamedTuple, cast

from shared.errors import WorkerLost
from shared.ids import WorkerId
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import PrefillStub
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import sources_to_messages
from shared.rpc.timings import prefill_timings_from_message
from shared.timings import PrefillTimings
from shared.workers.request import PromptOrder


class PrefillNews(NamedTuple):
    """What one message of a prefill worker brought."""

    computed_tokens: int  # of the prompt, by this call, so far
    num_blocks_done: int = 0  # leading ones that need no computing any more
    timings: PrefillTimings | None = None  # with the last message


class PrefillClient:
    """Calls prefill workers; owns nothing, channels belong to `Channels`."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def prefill(
        self, worker: WorkerId, address: str, order: PromptOrder, timeout_s: float
    ) -> AsyncGenerator[PrefillNews, None]:
        """Yield how far the prompt has come, until all blocks are in the worker's pool.

        Closing the iterator cancels the call. Raises what the call fails with, and `WorkerLost` when it ends early.
        """
        call = PrefillStub(self._channels.get(address)).Prefill(_message(order), timeout=timeout_s)
        is_finished = False
        try:
            with rpc_errors(worker):
                async for progress in call:
                    is_finished = progress.finished
                    timings = prefill_timings_from_message(progress)
                    yield PrefillNews(progress.computed_tokens, progress.num_blocks_done, timings)
        finally:
            call.cancel()
        if not is_finished:
            raise WorkerLost(f"{worker} ended a prefill before it was finished")


def _message(order: PromptOrder) -> pb.PrefillRequest:
    return pb.PrefillRequest(
        token_ids=order.token_ids,
        num_blocks=order.num_blocks,
        fingerprint=order.fingerprint,
        layout_hash=order.layout_hash,
        salt=order.salt,
        sources=sources_to_messages(order.sources),
        codec=cast(pb.Codec.ValueType, int(order.codec)),
        priority=order.priority,
        fidelity=cast(pb.Fidelity.ValueType, int(order.fidelity)),
        pool_nodes=order.pool_nodes,
        tenant=order.tenant,
    )
