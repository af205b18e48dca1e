"""gRPC face of a prefill worker: validates, then hands over to `worker`."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc

from services.prefill.worker import PrefillWorker, Prompt
from shared.engine.loaded import LoadedModel
from shared.engine.thread import beside_loop
from shared.errors import BadRequest
from shared.kv.hashing import num_prefix_blocks
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import PrefillServicer as Base
from shared.rpc.convert import codec_from_message, fidelity_from_message, sources_from_messages
from shared.rpc.server import call_deadline
from shared.rpc.timings import prefill_timings_to_message
from shared.tenant import Tenant

DEFAULT_TIMEOUT_S = 600.0


class PrefillServicer(Base):
    """`prfaas.v1.Prefill`."""

    def __init__(self, model: LoadedModel, worker: PrefillWorker) -> None:
        self._model = model
        self._worker = worker

    async def Prefill(
        self, request: pb.PrefillRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[pb.Progress]:
        deadline, began_at = call_deadline(context, DEFAULT_TIMEOUT_S), time.monotonic()
        prompt = await beside_loop(len(request.token_ids), partial(self._validated, request, began_at))
        async with aclosing(self._worker.prefill(prompt, deadline)) as steps:
            async for step in steps:
                yield pb.Progress(
                    num_blocks_done=step.num_blocks_done,
                    computed_tokens=step.computed_tokens,
                    finished=step.finished,
                    timings=None if step.timings is None else prefill_timings_to_message(step.timings),
                )

    def _validated(self, request: pb.PrefillRequest, began_at: float) -> Prompt:
        token_ids = list(request.token_ids)
        self._model.check(request.fingerprint, request.layout_hash, token_ids)
        most = num_prefix_blocks(len(token_ids), self._model.layout.block_tokens)
        if not 1 <= request.num_blocks <= most:
            raise BadRequest(f"num_blocks is {request.num_blocks}; this prompt has {most} blocks to prefill")
        fidelity = fidelity_from_message(request.fidelity)
        codec = codec_from_message(request.codec, fidelity)
        keys = self._model.keys(token_ids, request.salt, fidelity)[: request.num_blocks]
        sources = sources_from_messages(request.sources)
        return Prompt(
            token_ids=token_ids,
            keys=keys,
            sources=sources,
            codec=codec,
            priority=request.priority,
            pool_nodes=tuple(request.pool_nodes),
            tenant=Tenant(request.tenant),
            fidelity=fidelity,
            began_at=began_at,
        )
