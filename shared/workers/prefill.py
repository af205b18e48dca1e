"""Client of prefill workers: one Prefill call, followed to its end."""

from collections.abc import AsyncGenerator
from typing import cast

from shared.errors import WorkerLost
from shared.ids import WorkerId
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import PrefillStub
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import sources_to_messages
from shared.workers.request import PromptOrder


class PrefillClient:
    """Calls prefill workers; owns nothing, channels belong to `Channels`."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def prefill(
        self, worker: WorkerId, address: str, order: PromptOrder, timeout_s: float
    ) -> AsyncGenerator[int, None]:
        """Yield the number of prompt tokens computed so far, until all blocks are in the worker's pool.

        Closing the iterator cancels the call. Raises what the call fails with, and `WorkerLost` when it ends early.
        """
        call = PrefillStub(self._channels.get(address)).Prefill(_message(order), timeout=timeout_s)
        is_finished = False
        try:
            with rpc_errors(worker):
                async for progress in call:
                    is_finished = progress.finished
                    yield progress.computed_tokens
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
