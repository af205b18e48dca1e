"""What decode's requests hold: pages reserved, filled from the pool, made reusable, published, and let go."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from services.decode.following import TailBlocks
from services.decode.holding import Holding
from services.decode.publisher import BlockPublisher, PublishWork
from services.decode.ready_pages import ReadyPages
from services.decode.request import NewTokens, Request
from services.decode.tail import PageCopy, Tail
from shared.engine.fetch import PageFetch
from shared.engine.pool_access import PoolAccess
from shared.engine.transfer import PageTransfer, PrefixMetrics
from shared.errors import ContextTooLong
from shared.kv.hashing import chain_keys
from shared.log import get_logger
from shared.metrics import Metrics
from shared.model.pages.reservation import Reservation
from shared.timings import LayerMarks

log = get_logger()

MIN_BORROWED_TOKENS = 4
"""Fewer are computed as soon as they are copied."""


class RequestMemory:
    """The scheduler's `PageMemory`, and what the engine needs beside. Owns all holdings: all of decode's reservations.

    The pool is the swap. Full blocks are published as they complete, so that a request that gives its pages up finds
    them again on the device, as long as nobody needed the pages, else in the pool; what is in neither is computed. Only
    entries that somebody promised are waited for: the gateway at first, later nobody.
    """

    def __init__(
        self,
        pool: PoolAccess,
        transfer: PageTransfer,
        metrics: Metrics,
        chunk_tokens: int,
        on_change: Callable[[], None],
        on_failure: Callable[[Request, BaseException], None],
    ) -> None:
        """`on_change` is called when a gate may have opened or pages are back, `on_failure` when a fetch has failed."""
        self._pool = pool
        self._transfer = transfer
        self._kv = transfer.kv
        self._layout = transfer.layout
        self._chunk_tokens = chunk_tokens
        self._group_layers = [sum(1 << layer for layer in group.layers) for group in transfer.kv.groups.groups]
        self._on_change = on_change
        self._on_failure = on_failure
        self.ready_pages = ReadyPages(transfer.kv)
        self.publisher = BlockPublisher(pool, transfer, metrics, on_done=self._published)
        self._leaving: set[Holding] = set()
        self._num_borrowed = metrics.counter(
            "decode_copied_prompt_tokens",
            "Prompt tokens whose KV was copied from a page of another prompt that begins alike",
        )
        self._prefix = PrefixMetrics(metrics)
        self._preempted = metrics.counter("num_preemptions", "Times that a request gave its pages up for another")

    @property
    def landing_bytes_per_s(self) -> float:
        return self._transfer.landing.per_s

    def check(self, num_tokens: int) -> None:
        """Raise `ContextTooLong` when a request would not fit alone."""
        if not self._kv.fits(num_tokens, self._chunk_tokens):
            capacity = self._kv.capacity_tokens(self._chunk_tokens)
            raise ContextTooLong(
                f"prompt and max_tokens make {num_tokens} tokens, the worker's KV memory holds {capacity}"
            )

    @property
    def returning(self) -> bool:
        return bool(self._leaving)

    def reserve(self, request: Request, num_growing: int, /) -> bool:
        num_tokens, block_tokens = len(request.tokens), self._layout.block_tokens
        reusable_blocks = request.num_reusable // block_tokens
        spare_pages = num_growing * len(self._kv.groups.full)

        def reserved() -> Reservation | None:
            # The last token is computed whatever is held: what it predicts is what is asked for.
            return self._kv.reserve(
                request.keys[:reusable_blocks], num_tokens + 1, self._chunk_tokens, spare_pages, latest=num_tokens - 1
            )

        reservation = reserved()
        if reservation is None and self.publisher.make_room():
            reservation = reserved()
        if reservation is None:
            return False
        resident = list(reservation.cached_layers)
        holding = request.holding = Holding(reservation, None, resident)
        request.admitted_at = request.admitted_at or time.monotonic()
        num_held = holding.num_held = self._borrow(request, holding)
        # The device may hold more than any pool is known to.
        num_blocks = max(min(request.num_pooled, reusable_blocks), num_held // block_tokens)
        self._start_tail(request, holding, num_blocks, num_held)
        if num_held < num_blocks * block_tokens:
            self._start_fetch(request, holding, num_blocks)
        else:
            request.wait_until_s = 0.0  # what was promised is here
        return True

    def extend(self, request: Request, /) -> bool:
        reservation, page_tokens = request.held.reservation, self._kv.page_tokens
        position = len(request.tokens) + request.num_coming - 1
        if request.num_coming and request.is_ending:
            return True  # it needs no more
        if request.num_coming and self._kv.groups.windowed and position % page_tokens == 0:
            return False  # a step under way sees what the window would slide past
        if position >= reservation.num_tokens:
            next_page = (position // page_tokens + 1) * page_tokens
            if not self._kv.extend(reservation, next_page) and not (
                self.publisher.make_room() and self._kv.extend(reservation, next_page)
            ):
                return False
        if position % page_tokens == 0:
            self._kv.slide(reservation, position)
            self._cover(reservation, position, min(position + page_tokens, reservation.num_tokens))
        return True

    def give_up(self, request: Request, /) -> None:
        holding = request.held
        with request.generation.bound():
            log.info("preempted", num_tokens=len(request.tokens))
        self._preempted.inc()
        # From its own pages: it slides no more.
        self._publish(request, holding, holding.reservation, len(holding.resident))
        self.abandon(request)

    def tail_blocks(self, request: Request) -> TailBlocks:
        """Return the full blocks that a tail computes, those that it has computed included; none while entries land."""
        holding = request.held
        tail = holding.tail
        assert tail is not None, "a request in tails has a tail"
        if holding.fetch is not None:
            return TailBlocks((), has_begun=True)
        keys = request.keys[tail.start // self._layout.block_tokens :]
        # What another computes of a prompt says nothing of how likely its tokens are.
        return TailBlocks(keys, tail.next_layer > 0 or tail.first > tail.start or bool(request.unscored))

    def renew(self, request: Request) -> bool:
        """Reserve anew for a request whose tail has not begun: others have computed what it begins with.

        False: there is no room for what a resume further on needs, and the request holds nothing any more.
        """
        self.abandon(request)
        return self.reserve(request, 0)

    def would_fit(self, request: Request, others: Sequence[Request], /) -> bool:
        return self._num_pages(request) + sum(map(self._num_pages, others)) <= self._kv.num_pages

    def take_in_hand(self, holdings: Iterable[Holding]) -> None:
        """Keep the pages of what the torch thread is going to work on, until `put_down`."""
        for holding in holdings:
            holding.num_users += 1

    def put_down(self, holdings: Iterable[Holding]) -> None:
        """Release the pages that were abandoned while the torch thread had them and that nobody else uses."""
        for holding in holdings:
            self._done(holding)

    def num_open_layers(self, request: Request) -> int:
        """Return how many leading layers of what is fetched have landed. May start the tail anew, further back."""
        holding = request.held
        if holding.fetch is None:
            return self._layout.num_layers
        if holding.fetch_task is not None and holding.fetch_task.done():
            self._settle(request, holding)
            return self._layout.num_layers
        return holding.fetch.num_open_layers()

    def cover_tail(self, request: Request, num_tokens: int) -> None:
        """Hold the window pages of a tail's next tokens, all within its chunk in hand.

        Windows slide between chunks. The first slides past nothing: its fetch may still fail.
        """
        holding = request.held
        tail = holding.tail
        assert tail is not None, "covering a tail that has ended"
        if tail.begins_chunk and tail.first > tail.start:
            self._kv.slide(holding.reservation, tail.first)
        self._cover(holding.reservation, tail.first, tail.first + num_tokens)

    def end_tail(self, request: Request) -> None:
        """Note that the tail is computed: from here on the request goes on by a token at a time."""
        holding = request.held
        if holding.tail is not None and not request.num_generated:  # a request that was pre-empted was counted
            self._prefix.looked_up(len(request.tokens), holding.num_held, holding.tail.start)
        holding.tail = None
        self._return_borrowed(holding)
        self.ready_pages.pages_taken()  # not before: it would compete with what the first token waits for
        self._kv.slide(holding.reservation, len(request.tokens), stride=self._kv.page_tokens)

    def completed(self, request: Request, num_tokens: int) -> None:
        """Share and publish the full blocks of the first `num_tokens` tokens, whose KV is in the pages."""
        holding, block_tokens, keys = request.held, self._layout.block_tokens, request.keys
        self._settle(request, holding)
        num_blocks = num_tokens // block_tokens
        while len(keys) < num_blocks:
            start = len(keys) * block_tokens
            previous = request.chain.key_before(len(keys))
            keys.extend(chain_keys(previous, request.tokens[start : start + block_tokens], block_tokens))
        holding.resident += [self._layout.all_layers] * (num_blocks - len(holding.resident))
        self._kv.commit(holding.reservation, num_blocks, keys, holding.resident)
        self._remember(request, holding, num_tokens // self._kv.page_tokens * self._kv.page_tokens)
        if request.num_offered < num_blocks:
            # The publisher's own hold: the request goes on and slides its window. Without room it is offered later.
            shared = self._kv.share(holding.reservation, request.num_offered, num_blocks)
            if shared is not None and not self._publish(request, holding, shared, num_blocks):
                self._kv.release(shared)

    def stop_waiting(self, request: Request) -> None:
        """Take what is present and compute the rest: nobody will write what is not there yet."""
        request.wait_until_s = 0.0
        if request.holding is not None and request.holding.fetch is not None:
            request.holding.fetch.stop_waiting()

    def abandon(self, request: Request) -> None:
        """Let go of a request's pages, at once or when the last user is done with them. Idempotent."""
        holding, request.holding = request.holding, None
        if holding is None:
            return
        self._remember(request, holding, request.num_complete(holding))
        holding.abandoned = True
        if holding.fetch_task is not None:
            holding.fetch_task.cancel()
        if holding.num_users:
            self._leaving.add(holding)
        else:
            self._release(holding)

    async def all_returned(self) -> None:
        """Wait until what was abandoned is released; for the end, when the publisher's queue is empty."""
        tasks = {holding.fetch_task for holding in self._leaving if holding.fetch_task is not None}
        if tasks:
            await asyncio.wait(tasks)

    def _borrow(self, request: Request, holding: Holding) -> int:
        """Return how many leading tokens are held: whole pages, and what can be copied of one that begins alike."""
        num_blocks = holding.reservation.cached_blocks
        held = num_blocks * self._layout.block_tokens
        # Not the last token, which is computed whatever is held, and less than a page.
        end = min(len(request.tokens) - 1, request.num_reusable, held + self._kv.page_tokens - 1)
        if end - held < MIN_BORROWED_TOKENS:
            return held
        borrowed = self._kv.borrow(request.chain.key_before(num_blocks), request.tokens[held:end])
        if borrowed is None:
            return held
        source, num_tokens = borrowed
        if num_tokens < MIN_BORROWED_TOKENS or held + num_tokens < request.num_pooled * self._layout.block_tokens:
            self._kv.release(source)
            return held
        holding.borrowed = source
        self._num_borrowed.inc(num_tokens)
        return held + num_tokens

    def _return_borrowed(self, holding: Holding) -> None:
        if holding.borrowed is not None:
            self._kv.release(holding.borrowed)
            holding.borrowed = None

    def _remember(self, request: Request, holding: Holding, num_tokens: int) -> None:
        """Let others find the pages of the first `num_tokens` tokens, all of them computed, by what they begin with."""
        first = holding.num_remembered
        if num_tokens > first:
            self._kv.remember(holding.reservation, request.chain, first, num_tokens, holding.resident)
            holding.num_remembered = num_tokens

    def _start_tail(self, request: Request, holding: Holding, num_blocks: int, num_held: int = 0) -> None:
        """Resume after as many blocks, or tokens, but never after the last. What is shared is not written to."""
        end, block_tokens = len(request.tokens), self._layout.block_tokens
        start = min(max(num_blocks * block_tokens, num_held), end - 1)
        stores = start >= holding.reservation.cached_blocks * block_tokens
        holding.tail = Tail(start, end, self._chunk_tokens, num_blocks, stores)
        if holding.borrowed is not None:
            index, num_tokens = divmod(start, self._kv.page_tokens)
            holding.tail.copy = PageCopy(holding.borrowed, holding.reservation, index, num_tokens)

    def _start_fetch(self, request: Request, holding: Holding, num_blocks: int) -> None:
        generation, tail = request.generation, holding.tail
        assert tail is not None, "fetching what no tail resumes from"
        self._cover(holding.reservation, tail.start, num_blocks * self._layout.block_tokens)
        blocks = range(holding.reservation.cached_blocks, num_blocks)
        needed = {block: self._layout.needed_layers_at(block, tail.start) for block in blocks}
        wanted = {block: layers for block, layers in needed.items() if layers}
        now = time.monotonic()
        if request.wait_until_s is None:
            request.wait_until_s = now + generation.wait_s
        if request.landed is None:
            request.landed = LayerMarks(self._layout.num_layers, generation.began_at)
            request.fetched_bytes = sum(map(self._layout.mask_bytes, wanted.values()))
        landed = partial(self._landed, holding)
        holding.fetch = PageFetch(
            self._transfer, holding.reservation, request.keys, wanted, landed, generation.fidelity, request.landed
        )
        fetching = holding.fetch.run(
            self._pool.at(generation.pool_nodes, generation.tenant),
            generation.sources,
            max(0.0, request.wait_until_s - now),
            generation.deadline,
            generation.patience_s,
        )
        with generation.bound():
            holding.fetch_task = asyncio.create_task(fetching, name="decode fetch")
        holding.num_users += 1
        holding.fetch_task.add_done_callback(partial(self._fetch_ended, request, holding))

    def _landed(self, holding: Holding) -> None:
        """Wake the loop where a gate has opened: most of what lands is a part of a layer."""
        if holding.fetch is not None and (num_open := holding.fetch.num_open_layers()) > holding.num_open_layers:
            holding.num_open_layers = num_open
            self._on_change()

    def _fetch_ended(self, request: Request, holding: Holding, task: "asyncio.Task[None]") -> None:
        """Called by the task. The tail is changed later, by the loop, when the torch thread has let go of it."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not holding.abandoned:
            self._on_failure(request, error)
        elif holding.fetch is not None and holding.fetch.is_overdue and not request.retired:
            request.deliver(NewTokens((), None, 0, rescued=True))
        self._done(holding)
        self._on_change()

    def _settle(self, request: Request, holding: Holding) -> None:
        """Take stock of a fetch: what has landed is resident; if something is missing, the tail starts before it."""
        fetch, holding.fetch = holding.fetch, None
        if fetch is None or holding.tail is None:
            return
        request.wait_until_s = 0.0
        start, num_blocks = holding.tail.start, holding.tail.num_blocks
        for block in range(len(holding.resident), num_blocks):
            needed = self._layout.needed_layers_at(block, start)
            holding.resident.append(needed & ~fetch.outstanding.get(block, 0))
        if fetch.outstanding:
            resume = self._layout.longest_resume(holding.resident[: start // self._layout.block_tokens])
            del holding.resident[resume:]
            self._kv.rewind(holding.reservation, resume * self._layout.block_tokens)
            request.num_pooled = request.num_offered = resume
            with request.generation.bound():
                log.warning("tail_extended", num_blocks=num_blocks, resume_block=resume)
            self._start_tail(request, holding, resume)

    def _publish(self, request: Request, holding: Holding, pages: Reservation, num_blocks: int) -> bool:
        """Offer what was not offered yet, as far as it is in `pages`."""
        first = request.num_offered
        layers = tuple(holding.resident[block] & self._layers_held(pages, block) for block in range(first, num_blocks))
        if not layers or not self.publisher.publish(PublishWork(request, holding, pages, first, layers)):
            return False
        if pages is holding.reservation:
            holding.num_users += 1
        request.num_offered = num_blocks
        return True

    def _published(self, work: PublishWork) -> None:
        if work.is_swap:
            self._done(work.holding)
        else:
            self._kv.release(work.pages)
        self._on_change()

    def _layers_held(self, pages: Reservation, block: int) -> int:
        """Return the layers whose pages of a block are held: those of windows may have been slid past."""
        index = block // self._kv.blocks_per_page
        return sum(mask for mask, table in zip(self._group_layers, pages.tables, strict=True) if table[index] >= 0)

    def _num_pages(self, request: Request) -> int:
        return self._kv.groups.pages_needed(len(request.tokens) + 1, self._chunk_tokens, self._kv.page_tokens)

    def _cover(self, reservation: Reservation, first: int, end: int) -> None:
        covered = self._kv.cover(reservation, first, end)
        assert covered, "a window and a stride are within the guarantee"

    def _done(self, holding: Holding) -> None:
        holding.num_users -= 1
        if holding.abandoned and not holding.num_users:
            self._release(holding)

    def _release(self, holding: Holding) -> None:
        self._leaving.discard(holding)
        self._return_borrowed(holding)
        self._kv.release(holding.reservation)
        self._on_change()
