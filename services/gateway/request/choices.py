"""The choices of one request, run at once: their text merged into one stream of deltas."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import aclosing
from types import TracebackType
from typing import Generic, Self, TypeVar

from services.gateway.metrics import GatewayMetrics
from services.gateway.request.attempt import LAST_WORD_S
from services.gateway.request.generation import NO_ECHO, Echo, Prepared
from services.gateway.request.pipeline import Pipeline
from services.gateway.request.text import ChoiceDelta, ChoiceText, ScoredPrompt, ShownToken
from services.gateway.request.timer import RequestTimer
from services.gateway.request.usage import PromptUsage, Usage
from services.gateway.timeline.record import ChoiceNote
from shared.deadline import Deadline
from shared.model.text.tokenizer import Tokenizer
from shared.sampling.logprobs import TokenLogprobs
from shared.workers.decode import FinishReason

T = TypeVar("T")

LATE_S, HOLD_S = 0.005, 0.05
"""A reader whose turn came so late, after it was woken, finds an event loop that is behind. Tokens that are neither
first nor last then wait so long for others: one event takes them all, for little more than the cost of one."""


class Inbox(Generic[T]):
    """Items that wait for one reader, who takes all at once: every token passes here, and `asyncio.Queue` does more."""

    def __init__(self) -> None:
        self.late_s = 0.0  # between the first item's coming and the reader's turn, where the reader had to wait
        self._items: list[T] = []
        self._awaited: asyncio.Future[None] | None = None
        self._put_at = 0.0

    def put(self, item: T) -> None:
        self._items.append(item)
        if self._awaited is not None and not self._awaited.done():
            self._put_at = time.monotonic()
            self._awaited.set_result(None)

    async def take(self) -> list[T]:
        """Wait until there is something."""
        self.late_s = 0.0
        if not self._items:
            self._awaited = asyncio.get_running_loop().create_future()
            try:
                await self._awaited
            finally:
                self._awaited = None
            self.late_s = time.monotonic() - self._put_at
        return self.taken()

    def taken(self) -> list[T]:
        """Return what there is by now."""
        items, self._items = self._items, []
        return items


class Choices:
    """Runs while the context is open and yields deltas; leaving the context cancels what has not finished.

    Choices of one prompt start once its first has a token: by then the prompt's KV is where they find it.

    What the reader has not taken yet waits in a queue that `max_tokens` bounds: a slow client holds up no worker.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        tokenizer: Tokenizer,
        metrics: GatewayMetrics,
        prepared: Prepared,
        deadline: Deadline,
        note_choice: Callable[[], ChoiceNote] = ChoiceNote,
    ) -> None:
        """`note_choice` returns what keeps the times of one more choice."""
        self._pipeline = pipeline
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._prepared = prepared
        self._deadline = deadline
        self._usages = [PromptUsage(len(request.token_ids)) for request in prepared.prompts]
        self._scores: list[list[TokenLogprobs]] = [[] for _ in prepared.prompts]
        self._first_seen = [asyncio.Event() for _ in prepared.prompts]
        self._notes = [note_choice() for _ in prepared.requests]
        timed = zip(self._notes, prepared.requests, strict=True)
        self._timers = [RequestTimer(self._metrics, note, request.slo) for note, request in timed]
        self._ready: Inbox[ChoiceDelta | BaseException] = Inbox()
        self._tasks: list[asyncio.Task[None]] = []
        self._finished: dict[int, FinishReason] = {}
        self._completion_tokens = 0

    @property
    def usage(self) -> Usage:
        """Final once the iteration has ended. A prompt counts once, however many choices it has."""
        cached = sum(usage.cached_tokens for usage in self._usages)
        return Usage(self._prepared.num_prompt_tokens, self._completion_tokens, cached)

    @property
    def scored_prompts(self) -> list[ScoredPrompt]:
        """What was told of each prompt; all that was asked for, once the iteration has ended."""
        prompts = zip(self._prepared.prompts, self._scores, strict=True)
        return [ScoredPrompt(prompt.token_ids, told) for prompt, told in prompts]

    async def __aenter__(self) -> Self:
        self._metrics.prompt_tokens.inc(self._prepared.num_prompt_tokens)
        self._metrics.prefix_queries.inc(self._prepared.num_prompt_tokens)
        for index in range(len(self._prepared.requests)):
            task = asyncio.create_task(self._run(index), name=f"choice {index}")
            task.add_done_callback(self._note_end)
            self._tasks.append(task)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A choice that is done may still be closing its call; one that is not is cancelled at once.
        for index, task in enumerate(self._tasks):
            if index not in self._finished:
                task.cancel()
        left: Collection[asyncio.Task[None]] = self._tasks
        try:
            _, left = await asyncio.wait(self._tasks, timeout=LAST_WORD_S)
        finally:
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)
            self._count_ends(error)

    async def __aiter__(self) -> AsyncIterator[list[ChoiceDelta]]:
        """Yield deltas as they come, those that are ready together in one list. Raises what a choice failed with."""
        while len(self._finished) < len(self._tasks):
            items = await self._take()
            merged: dict[int, ChoiceDelta] = {}
            failure: BaseException | None = None
            for item in items:
                if isinstance(item, BaseException):
                    failure = failure or item
                else:
                    merged[item.choice] = merged[item.choice].joined(item) if item.choice in merged else item
            for delta in merged.values():
                self._note_taken(delta)
            yield list(merged.values())
            if failure is not None:
                raise failure

    async def _take(self) -> list[ChoiceDelta | BaseException]:
        """Wait for items, and for more of them where the event loop is behind."""
        items = await self._ready.take()
        if self._ready.late_s > LATE_S and self._completion_tokens and not any(map(_is_last, items)):
            await asyncio.sleep(HOLD_S)
            items += self._ready.taken()
        return items

    async def _run(self, index: int) -> None:
        request = self._prepared.requests[index]
        prompt, number = divmod(index, self._prepared.num_choices)
        first_seen = self._first_seen[prompt]
        is_scored = self._prepared.prompts[prompt].scoring is not None
        if number > 0 and (request.keys or is_scored):  # a prompt shorter than a block has nothing else to share
            await first_seen.wait()
        echo = self._prepared.echoes[prompt] if self._prepared.echoes else NO_ECHO
        text = ChoiceText(self._tokenizer, self._prepared.rules, len(echo.text))
        timer, note = self._timers[index], self._notes[index]
        async with aclosing(self._pipeline.generate(request, self._usages[prompt], self._deadline, note)) as events:
            async for event in events:
                self._scores[prompt] += event.prompt_logprobs
                if not event.is_answer:
                    continue
                first_seen.set()
                delta = text.push(event.ids, event.finish_reason, event.logprobs)
                timer.tokens(delta.num_tokens)
                ids = tuple(event.ids[: delta.num_tokens])
                logprob = sum(told.logprob for told in event.logprobs[: delta.num_tokens])
                shown = (*self._echoed(prompt, echo), *delta.tokens)
                self._ready.put(ChoiceDelta(index, echo.text + delta.text, ids, delta.finish_reason, shown, logprob))
                echo = NO_ECHO
                if delta.finish_reason is not None and event.finish_reason is None:
                    return  # a stop string: the workers know nothing of it and are cancelled

    def _echoed(self, prompt: int, echo: Echo) -> list[ShownToken]:
        """Return the prompt's own tokens, if they are to be shown with their log-probabilities."""
        if not echo.offsets:
            return []
        request = self._prepared.prompts[prompt]
        num_top = request.sampling.num_logprobs or 0
        told = [None, *(one._replace(top=one.top[:num_top]) for one in self._scores[prompt])]
        return list(map(ShownToken, request.token_ids, told, echo.offsets))

    def _note_taken(self, delta: ChoiceDelta) -> None:
        self._completion_tokens += len(delta.ids)
        self._metrics.generation_tokens.inc(len(delta.ids))
        if delta.finish_reason is not None:
            self._finished[delta.choice] = self._notes[delta.choice].finish_reason = delta.finish_reason
            self._timers[delta.choice].finished()

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._ready.put(error)

    def _count_ends(self, error: BaseException | None) -> None:
        unfinished = "error" if isinstance(error, Exception) else "abort"
        for index in range(len(self._tasks)):
            self._metrics.request_finished(self._finished.get(index, unfinished))
        for prompt, usage in enumerate(self._usages):
            first = prompt * self._prepared.num_choices
            if all(index in self._finished for index in range(first, first + self._prepared.num_choices)):
                cached = usage.cached_tokens
                self._metrics.prompt_done(cached=cached, prefill=usage.prefill_tokens, decode=usage.decode_tokens)


def _is_last(item: ChoiceDelta | BaseException) -> bool:
    return isinstance(item, BaseException) or item.finish_reason is not None
