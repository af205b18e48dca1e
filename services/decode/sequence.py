"""One request inside the decode engine: its tokens, its pages, and what is on its way to its reader."""

import asyncio
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from services.decode.tail import Tail
from shared.deadline import Deadline
from shared.engine.fetch import PageFetch
from shared.errors import PrfaasError
from shared.ids import BlockKey, RequestId
from shared.kv.codec import Codec
from shared.kv.entries import Source
from shared.model.logprobs import TokenLogprobs
from shared.model.paged import Reservation
from shared.model.penalties import TokenHistory
from shared.model.sampling_params import SamplingParams


class FinishReason(Enum):
    STOP = auto()  # an end-of-sequence or stop token
    LENGTH = auto()  # max_tokens


class NewTokens(NamedTuple):
    """What one step brought to one request."""

    ids: tuple[int, ...]
    finish_reason: FinishReason | None  # set on the last one
    computed_prompt_tokens: int  # prompt tokens whose KV this worker computed itself; said with the first token
    logprobs: tuple[TokenLogprobs, ...] = ()  # parallel to ids, if they were asked for


@dataclass(frozen=True)
class Generation:
    """A validated request."""

    request_id: RequestId | None
    token_ids: Seq[int]
    sampling: SamplingParams
    keys: Seq[BlockKey]  # of all full blocks of the prompt
    root: BlockKey  # where the chain starts
    num_blocks: int  # leading blocks that are, or will be, in a pool
    sources: Seq[Source]
    wait_s: float
    codec: Codec
    deadline: Deadline
    num_generated_before: int = 0  # the last so many of `token_ids` are the answer's, not the prompt's


@dataclass(eq=False)
class Sequence:
    """Belongs to the engine's loop, which alone changes it; the servicer only reads `events`."""

    generation: Generation
    tokens: list[int] = field(init=False)  # prompt and generated
    keys: list[BlockKey] = field(init=False)  # of all full blocks whose KV is complete or will be next
    reservation: Reservation | None = None
    fetch: PageFetch | None = None
    fetch_task: "asyncio.Task[None] | None" = None
    tail: Tail | None = None
    history: TokenHistory | None = None  # for penalties; the torch thread's
    gate_opened_at_s: float | None = None  # when the tail's first layer could run; seconds since 1970
    resident: list[int] = field(
        default_factory=list
    )  # of the leading blocks in the pages: the layers that are complete
    retired: bool = False  # finished, failed or aborted: only waits for its pages to be let go
    _events: "asyncio.Queue[NewTokens | PrfaasError]" = field(default_factory=asyncio.Queue)  # at most max_tokens + 1

    def __post_init__(self) -> None:
        self.tokens = list(self.generation.token_ids)
        self.keys = list(self.generation.keys)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.generation.token_ids)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    def deliver(self, event: NewTokens | PrfaasError) -> None:
        self._events.put_nowait(event)

    async def events(self) -> AsyncGenerator[NewTokens, None]:
        """Yield until the last event. Raises the error that the engine delivered, or `DeadlineExceeded`."""
        while True:
            async with self.generation.deadline.scope("generating"):
                event = await self._events.get()
            if isinstance(event, PrfaasError):
                raise event
            yield event
            if event.finish_reason is not None:
                return
