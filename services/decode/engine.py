"""The decode loop: admit, advance gated tails, step the running batch, let go of what has ended."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from services.decode.publisher import BlockPublisher
from services.decode.runner import Runner
from services.decode.sequence import FinishReason, Generation, NewTokens, Sequence
from services.decode.settings import DecodeSettings
from services.decode.tail import Tail
from shared.engine.fetch import FetchContext, PageFetch
from shared.engine.loaded import LoadedModel
from shared.engine.thread import WorkThread
from shared.errors import ContextTooLong, Internal, Overloaded, PrfaasError
from shared.kv.hashing import chain_keys, num_prefix_blocks
from shared.log import get_logger
from shared.metrics import Metrics
from shared.model.sampling import Sampled

log = get_logger()

T = TypeVar("T")

SPEED_SMOOTHING = 0.1


class DecodeEngine:
    """One model on one device, generating for many requests in one batch.

    Life: `submit` may be called once `run` has been started and returns a sequence whose `events` yield its tokens.
    `abort` may be called at any time, any number of times. A sequence's pages are released as soon as neither the
    loop nor its fetch can touch them; the publisher holds what it reads itself. `run` serves until cancelled.

    States, by where a sequence is listed: waiting (no pages yet), tails (entries arrive, prompt end is computed),
    running (one token a step), none (retired).
    """

    def __init__(
        self, settings: DecodeSettings, model: LoadedModel, thread: WorkThread, context: FetchContext, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._model = model
        self._kv = model.kv
        self._layout = model.layout
        self._thread = thread
        self._runner = Runner(model.transformer, model.kv)
        self._context = context
        self._metrics = metrics
        self._wake = asyncio.Event()
        self.publisher = BlockPublisher(context, metrics, on_published=self._wake.set)
        self._waiting: deque[Sequence] = deque()
        self._tails: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._in_hand: list[Sequence] = []  # what the torch thread is working on
        self._generated = metrics.counter("generation_tokens", "Tokens generated")
        self._computed_prompt = metrics.counter("decode_computed_prompt_tokens", "Prompt tokens computed by decode")
        self.tokens_per_s = 0.0

    @property
    def num_running(self) -> int:
        return len(self._running) + len(self._tails)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, generation: Generation) -> Sequence:
        """Queue a request. Raises `ContextTooLong` when it could never fit, `Overloaded` when too many wait."""
        num_tokens = len(generation.token_ids) + generation.sampling.max_tokens
        if num_tokens > self._model.max_model_len:
            raise ContextTooLong(
                f"prompt and max_tokens make {num_tokens} tokens, the context has {self._model.max_model_len}"
            )
        if len(self._waiting) >= self._settings.max_waiting:
            raise Overloaded(f"{len(self._waiting)} requests are waiting already")
        sequence = Sequence(generation)
        self._waiting.append(sequence)
        self._wake.set()
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """End a request, whatever its state; nothing happens when it has ended already."""
        self._retire(sequence)

    def prefill_failed(self, sequence: Sequence) -> None:
        """Blocks that are not there yet will not come: compute what is missing."""
        if sequence.fetch is not None:
            sequence.fetch.stop_waiting()

    async def run(self) -> None:
        """Serve, for ever."""
        while True:
            self._wake.clear()
            self._admit()
            advanced = await self._advance_tails()
            if self._running:
                await self._step()
            elif not advanced:
                await self._wake.wait()

    def _admit(self) -> None:
        while self._waiting and self.num_running < self._settings.max_batch:
            sequence = self._waiting[0]
            generation = sequence.generation
            num_tokens = len(generation.token_ids) + generation.sampling.max_tokens
            most = num_prefix_blocks(len(generation.token_ids), self._layout.block_tokens)
            sequence.reservation = self._kv.reserve(sequence.keys[:most], num_tokens, self._settings.chunk_tokens)
            if sequence.reservation is None:
                return
            self._waiting.popleft()
            self._tails.append(sequence)
            sequence.resident = list(sequence.reservation.cached_layers)
            if len(sequence.resident) < generation.num_blocks:
                self._start_fetch(sequence)
            # The device may hold more of the prompt than the gateway has heard of.
            self._start_tail(sequence, max(generation.num_blocks, len(sequence.resident)))

    def _start_fetch(self, sequence: Sequence) -> None:
        generation, reservation = sequence.generation, sequence.reservation
        assert reservation is not None
        resume = generation.num_blocks * self._layout.block_tokens
        covered = self._kv.cover(reservation, resume, resume)
        assert covered, "a window is within every guarantee"
        blocks = range(reservation.cached_blocks, generation.num_blocks)
        needed = {block: self._layout.needed_layers(block, generation.num_blocks) for block in blocks}
        wanted = {block: layers for block, layers in needed.items() if layers}
        sequence.fetch = PageFetch(self._context, reservation, sequence.keys, wanted, on_landed=self._wake.set)
        sequence.fetch_task = asyncio.create_task(
            sequence.fetch.run(generation.sources, generation.wait_s, generation.deadline), name="decode fetch"
        )
        sequence.fetch_task.add_done_callback(partial(self._fetch_ended, sequence))

    def _fetch_ended(self, sequence: Sequence, task: "asyncio.Task[None]") -> None:
        """Called by the task. The tail is changed later, by `run`, when the torch thread has let go of it."""
        self._wake.set()
        if sequence.retired:
            self._let_go(sequence)
        elif not task.cancelled() and (error := task.exception()) is not None:
            self._fail(sequence, error)

    def _start_tail(self, sequence: Sequence, first_block: int) -> None:
        start = first_block * self._layout.block_tokens
        sequence.tail = Tail(start, sequence.num_prompt_tokens, self._settings.chunk_tokens)

    async def _advance_tails(self) -> bool:
        """Advance waiting tails in turn, within the budget that a running batch allows. Return whether any moved."""
        settings = self._settings
        budget = settings.tail_tokens_per_step if self._running else settings.chunk_tokens
        for _ in range(len(self._tails)):
            sequence = self._tails[0]
            self._tails.rotate(-1)
            if await self._advance(sequence, budget):
                return True
        return False

    async def _advance(self, sequence: Sequence, budget: int) -> bool:
        if sequence.fetch_task is not None and sequence.fetch_task.done():
            self._settle_fetch(sequence)
        tail, fetch = sequence.tail, sequence.fetch
        assert tail is not None, "a sequence in tails has a tail"
        open_layers = self._layout.num_layers if fetch is None else fetch.num_open_layers()
        num_layers = tail.num_runnable(open_layers, budget, self._layout.num_layers)
        if num_layers == 0:
            return False
        if tail.first == tail.start and tail.next_layer == 0:
            sequence.gate_opened_at_s = time.time()
        if tail.next_layer == 0:
            self._cover_chunk(sequence, tail)
        first = tail.first
        call = partial(self._runner.advance_tail, tail, num_layers, sequence)
        sampled = await self._computed([sequence], call)
        if tail.first > first and not sequence.retired:
            self._settle_fetch(sequence)
            self._completed(sequence, first, tail.first)
        if sampled is not None and not sequence.retired:
            self._join_batch(sequence, sampled)
        return True

    def _cover_chunk(self, sequence: Sequence, tail: Tail) -> None:
        """Take the window pages of a tail's next chunk. The first one slides past nothing: its fetch may still fail."""
        assert sequence.reservation is not None, "a tail without pages"
        if tail.first > tail.start:
            self._kv.slide(sequence.reservation, tail.first)
        covered = self._kv.cover(sequence.reservation, tail.first, tail.chunk_end)
        assert covered, "a window and a chunk are within the guarantee"

    def _settle_fetch(self, sequence: Sequence) -> None:
        """Take stock of a fetch: what has landed is resident; if something is missing, the tail starts before it."""
        fetch, num_blocks = sequence.fetch, sequence.generation.num_blocks
        if fetch is None:
            return
        sequence.fetch = None
        for block in range(len(sequence.resident), num_blocks):
            needed = self._layout.needed_layers(block, num_blocks)
            sequence.resident.append(needed & ~fetch.outstanding.get(block, 0))
        if fetch.outstanding:
            resume = self._layout.longest_resume(sequence.resident)
            del sequence.resident[resume:]
            if sequence.reservation is not None:
                self._kv.rewind(sequence.reservation, resume * self._layout.block_tokens)
            log.warning(
                "tail_extended", request_id=sequence.generation.request_id, num_blocks=num_blocks, resume_block=resume
            )
            self._start_tail(sequence, resume)

    def _join_batch(self, sequence: Sequence, sampled: Sampled) -> None:
        tail = sequence.tail
        assert tail is not None
        self._tails.remove(sequence)
        self._running.append(sequence)
        sequence.tail = None
        self._computed_prompt.inc(tail.end - tail.start)
        log.info(
            "tail_computed",
            request_id=sequence.generation.request_id,  # this loop serves many requests and is bound to none
            num_prompt_tokens=sequence.num_prompt_tokens,
            computed_prompt_tokens=tail.end - tail.start,
            gate_opened_at_s=sequence.gate_opened_at_s,
            computed_at_s=time.time(),
        )
        if sequence.reservation is not None:
            self._kv.slide(sequence.reservation, tail.end, self._kv.page_tokens)
        self._append(sequence, sampled, computed_prompt_tokens=tail.end - tail.start)

    async def _step(self) -> None:
        """Generate one token for every running sequence."""
        batch = list(self._running)
        for sequence in batch:
            self._cover_next(sequence)
        started = time.perf_counter()
        results = await self._computed(batch, partial(self._runner.step, batch))
        if results is None:
            return
        self._measure(len(batch) / (time.perf_counter() - started))
        for sequence, sampled in zip(batch, results, strict=True):
            if not sequence.retired:
                if len(sequence.tokens) % self._layout.block_tokens == 0:
                    self._completed(sequence, len(sequence.tokens) - 1, len(sequence.tokens))
                self._append(sequence, sampled)

    def _cover_next(self, sequence: Sequence) -> None:
        """Move the window on, a page at a time, to the token that the next step computes."""
        position, page_tokens = len(sequence.tokens) - 1, self._kv.page_tokens
        if position % page_tokens or sequence.reservation is None:
            return
        self._kv.slide(sequence.reservation, position)
        end = min(position + page_tokens, sequence.reservation.num_tokens)
        covered = self._kv.cover(sequence.reservation, position, end)
        assert covered, "a window and a page are within the guarantee"

    async def _computed(self, sequences: list[Sequence], call: Callable[[], T]) -> T | None:
        """Run `call` in the torch thread; until it ends, the sequences keep their pages. A failure ends them: None."""
        self._in_hand = sequences
        try:
            return await self._thread.run(call)
        except RuntimeError as error:  # torch's own errors, out of memory included
            log.exception("step_failed", num_sequences=len(sequences))
            for sequence in sequences:
                self._fail(sequence, error)
            return None
        finally:
            self._in_hand = []
            for sequence in sequences:
                self._let_go(sequence)

    def _completed(self, sequence: Sequence, first: int, end: int) -> None:
        """Note that the KV of tokens `[first, end)` is in the pages; full blocks become shareable and are published."""
        block_tokens, keys = self._layout.block_tokens, sequence.keys
        first_block, end_block = first // block_tokens, end // block_tokens
        if sequence.reservation is None:
            return
        while len(keys) < end_block:
            start = len(keys) * block_tokens
            previous = keys[-1] if keys else sequence.generation.root
            keys.extend(chain_keys(previous, sequence.tokens[start : start + block_tokens], block_tokens))
        sequence.resident += [self._layout.all_layers] * (end_block - len(sequence.resident))
        self._kv.commit(sequence.reservation, end_block, keys, sequence.resident)
        if first_block < end_block:
            self.publisher.publish(sequence, first_block, end_block)

    def _append(self, sequence: Sequence, sampled: Sampled, computed_prompt_tokens: int = 0) -> None:
        sequence.tokens.append(sampled.token)
        self._generated.inc()
        reason = self._finish_reason(sequence, sampled.token)
        logprobs = () if sampled.logprobs is None else (sampled.logprobs,)
        sequence.deliver(NewTokens((sampled.token,), reason, computed_prompt_tokens, logprobs))
        if reason is not None:
            self._retire(sequence)

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        sampling = sequence.generation.sampling
        if token in sampling.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if sequence.num_generated >= sampling.max_tokens else None

    def _fail(self, sequence: Sequence, error: BaseException) -> None:
        if not sequence.retired:
            known = error if isinstance(error, PrfaasError) else Internal(f"decode failed: {type(error).__name__}")
            sequence.deliver(known)
        self._retire(sequence)

    def _retire(self, sequence: Sequence) -> None:
        sequence.retired = True
        for listed in (self._waiting, self._tails, self._running):
            if sequence in listed:
                listed.remove(sequence)
        if sequence.fetch_task is not None:
            sequence.fetch_task.cancel()
        self._let_go(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        """Release a retired sequence's pages, unless somebody may still touch them and will call again."""
        fetching = sequence.fetch_task is not None and not sequence.fetch_task.done()
        busy = fetching or sequence in self._in_hand
        if sequence.retired and not busy and sequence.reservation is not None:
            self._kv.release(sequence.reservation)
            sequence.reservation = None
            self._wake.set()

    def _measure(self, tokens_per_s: float) -> None:
        self.tokens_per_s += (tokens_per_s - self.tokens_per_s) * (SPEED_SMOOTHING if self.tokens_per_s else 1.0)
