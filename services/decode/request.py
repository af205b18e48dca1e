"""One request inside the decode engine: its tokens, its pages, and what is on its way to its reader."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from services.decode.holding import Holding
from services.decode.scheduler import Rank
from shared.deadline import Deadline
from shared.engine.urgency import Urgency
from shared.errors import DeadlineExceeded, PrfaasError
from shared.ids import BlockKey, RequestId
from shared.kv.codec import Codec, Fidelity
from shared.kv.entries import Source
from shared.log import bound_request_of
from shared.model.grammar.guide import Guide
from shared.model.pages.prefixes import Chain
from shared.model.sampler.penalties import TokenHistory
from shared.sampling.logprobs import PromptScoring, TokenLogprobs
from shared.sampling.params import SamplingParams
from shared.telemetry.spans import NO_SPAN, TraceSpan, entered
from shared.tenant import NO_TENANT, Tenant
from shared.timings import NO_LAYERS, DecodeTimings, LayerMarks


class FinishReason(Enum):
    STOP = auto()  # an end-of-sequence or stop token, or an answer that its constraint lets nothing follow
    LENGTH = auto()  # max_tokens


class NewTokens(NamedTuple):
    """What one step brought to one request."""

    ids: tuple[int, ...]
    finish_reason: FinishReason | None  # set on the last one
    computed_prompt_tokens: int  # prompt tokens whose KV this worker computed itself; said with the first token
    logprobs: tuple[TokenLogprobs, ...] = ()  # parallel to ids, if they were asked for
    rescued: bool = False  # blocks were late, and the rest is computed here; said once
    timings: DecodeTimings | None = None  # with the first token
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the prompt's next tokens, if they were asked for

    def joined(self, later: "NewTokens") -> "NewTokens":
        computed = self.computed_prompt_tokens + later.computed_prompt_tokens
        rescued = self.rescued or later.rescued
        return NewTokens(
            ids=self.ids + later.ids,
            finish_reason=later.finish_reason,
            computed_prompt_tokens=computed,
            logprobs=self.logprobs + later.logprobs,
            rescued=rescued,
            timings=self.timings or later.timings,
            prompt_logprobs=self.prompt_logprobs + later.prompt_logprobs,
        )


@dataclass(frozen=True)
class Generation:
    """A validated request."""

    request_id: RequestId | None
    token_ids: Sequence[int]
    sampling: SamplingParams
    keys: Sequence[BlockKey]  # of all full blocks of the prompt
    root: BlockKey  # where the chain starts
    num_blocks: int  # leading blocks that are, or will be, in a pool
    sources: Sequence[Source]
    wait_s: float
    codec: Codec
    deadline: Deadline
    num_generated_before: int = 0  # the last so many of `token_ids` are the answer's, not the prompt's
    priority: int = 0  # lower goes first
    pool_nodes: Sequence[str] = ()  # of this datacenter, over which everybody spreads the blocks; none: as configured
    tenant: Tenant = NO_TENANT  # pays for what the pool stores
    fidelity: Fidelity = Fidelity.LOSSLESS  # of blocks that may be used; it is in their keys
    patience_s: float | None = None  # what has not come by then is computed; None: only `wait_s` counts
    scoring: PromptScoring | None = None  # what is to be told of the prompt's own tokens
    guide: Guide | None = None  # of the answer so far, if it has a constraint; from its submission the torch thread's
    began_at: float = field(default_factory=time.monotonic, compare=False)  # when its call was taken
    span: TraceSpan = NO_SPAN  # of its call

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Have log lines and calls of the body be the request's: loops serve many and are bound to none."""
        with bound_request_of(self.request_id), entered(self.span):
            yield


@dataclass(eq=False)
class Request:
    """Belongs to the engine's loop, which alone changes it; the servicer only reads `events`.

    What a pre-emption takes away is in `holding`; all else survives it.
    """

    generation: Generation
    rank: Rank
    urgency: Urgency
    block_tokens: int
    tokens: list[int] = field(init=False)  # prompt and generated; the KV of all but the last one is or was computed
    keys: list[BlockKey] = field(init=False)  # of the prompt's full blocks, and of those whose KV is complete
    num_pooled: int = field(init=False)  # leading blocks that a pool has, or will have
    num_offered: int = field(init=False)  # leading blocks that a pool has, or that wait to be published
    holding: Holding | None = None  # its pages, while it has any
    history: TokenHistory | None = None  # for penalties; the torch thread's
    wait_until_s: float | None = None  # of the monotonic clock: until when promised entries are waited for
    gate_opened_at_s: float | None = None  # when the tail's first layer could run; seconds since 1970
    admitted_at: float | None = None  # of the monotonic clock: when it had pages for the first time
    first_token_at: float | None = None  # likewise
    landed: LayerMarks | None = None  # layers of what was fetched first; None: nothing was
    fetched_bytes: int = 0  # asked for with it
    num_coming: int = 0  # tokens that steps under way will bring
    num_computed: int = 0  # tokens of the prompt that were computed here
    num_scored: int = 0  # tokens of the prompt whose log-probabilities were told
    waits_for: "Request | None" = None  # computes what this one's tail begins with
    retired: bool = False  # finished, failed or aborted
    _events: "asyncio.Queue[NewTokens | PrfaasError]" = field(default_factory=asyncio.Queue)
    """At most max_tokens + 2, and one for each step of a prompt of which something is told."""

    def __post_init__(self) -> None:
        self.tokens = list(self.generation.token_ids)
        self.keys = list(self.generation.keys)
        self.num_pooled = self.num_offered = self.generation.num_blocks

    @property
    def held(self) -> Holding:
        assert self.holding is not None, "a request without pages"
        return self.holding

    @property
    def chain(self) -> Chain:
        return Chain(self.generation.root, self.keys, self.tokens)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.generation.token_ids)

    @property
    def unscored(self) -> range:
        """Positions behind which a token of the prompt follows whose log-probability is still to be told."""
        generation = self.generation
        if generation.scoring is None:
            return range(0)
        num_prompt_tokens = self.num_prompt_tokens - generation.num_generated_before
        return range(generation.scoring.first - 1 + self.num_scored, num_prompt_tokens - 1)

    @property
    def num_reusable(self) -> int:
        """How many leading tokens may be computed elsewhere: KV tells nothing of what follows a token."""
        return self.unscored.start if self.unscored else len(self.tokens)

    @property
    def wants_token(self) -> bool:
        return self.generation.sampling.max_tokens > 0

    @property
    def is_short(self) -> bool:
        """Whether at most a block of its tail is left, while it has one."""
        tail = None if self.holding is None else self.holding.tail
        return tail is not None and tail.end - tail.first <= self.block_tokens

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_answered(self) -> int:
        """Tokens of the answer, those of workers before this one included."""
        return self.generation.num_generated_before + self.num_generated

    def num_complete(self, holding: Holding) -> int:
        """Return how many leading tokens are known to have their K and V in the pages."""
        if holding.fetch is not None:
            return 0
        return len(self.tokens) - 1 if holding.tail is None else holding.tail.first

    @property
    def is_ending(self) -> bool:
        """Whether what is under way brings its last token, if no other does."""
        return self.num_generated + self.num_coming >= self.generation.sampling.max_tokens

    def timings(self, computed_tokens: int) -> DecodeTimings:
        """Return when what happened; the tail of `computed_tokens` has just been computed."""
        now, began_at = time.monotonic(), self.generation.began_at
        self.first_token_at = now
        gate_ago_s = 0.0 if self.gate_opened_at_s is None else time.time() - self.gate_opened_at_s
        return DecodeTimings(
            admitted_s=(self.admitted_at or began_at) - began_at,
            landed=NO_LAYERS if self.landed is None else self.landed.times(),
            fetched_bytes=self.fetched_bytes,
            gate_opened_s=now - gate_ago_s - began_at,
            computed_s=now - began_at,
            computed_tokens=computed_tokens,
        )

    def deliver(self, event: NewTokens | PrfaasError) -> None:
        self._events.put_nowait(event)

    async def events(self) -> AsyncGenerator[NewTokens, None]:
        """Yield until the last event; a reader that is late gets what has come meanwhile as one.

        Raises the error that the engine delivered, or `DeadlineExceeded`.
        """
        late = DeadlineExceeded("the deadline passed while generating")
        # One timer for all events: one for each would take as long as all the rest of handing a token out.
        timer = asyncio.get_running_loop().call_later(self.generation.deadline.remaining(), self.deliver, late)
        try:
            while True:
                event = await self._events.get()
                later: NewTokens | PrfaasError | None = None
                while isinstance(event, NewTokens) and not self._events.empty():
                    later = self._events.get_nowait()
                    if isinstance(later, PrfaasError):
                        break
                    event = event.joined(later)
                if isinstance(event, PrfaasError):
                    raise event
                yield event
                if isinstance(later, PrfaasError):
                    raise later
                if event.finish_reason is not None:
                    return
        finally:
            timer.cancel()
