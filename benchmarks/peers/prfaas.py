"""The suite's own decode engine: scheduler, pages, sampling and delivery, as its service runs it, without a pool.

Settings come from the environment (`PRFAAS_MODEL`, `PRFAAS_WEIGHT_DTYPE`, `PRFAAS_THREADS`), as for the service. A
prompt that no pool helps with is computed whole, in the chunks of `PRFAAS_CHUNK_TOKENS`, up to its first token.
"""

import asyncio
from typing import Any

from benchmarks.engine.batch import running_batch
from benchmarks.engine.node import DecodeNode, open_decode
from benchmarks.peers.protocol import serve


class Prfaas:
    """The engine lives in an event loop that runs while a command is carried out."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._context = open_decode()
        self._node: DecodeNode = self._loop.run_until_complete(self._context.__aenter__())

    def about(self) -> dict[str, Any]:
        model = self._node.model
        return {"model": model.files.name, "layout": model.layout.dtype, "kernels": model.transformer.uses_kernels}

    def prefill(self, prompt: list[int]) -> float:
        return self._loop.run_until_complete(self._node.generate(prompt, 1)).first_token_s

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        return self._loop.run_until_complete(self._decode(prompts, steps))

    async def _decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        async with running_batch(self._node, prompts, steps) as batch:
            return await batch.steps(steps)


if __name__ == "__main__":
    serve(Prfaas)
