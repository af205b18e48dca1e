"""Who holds which page of a device's KV memory, prefix reuse by block key, one call to reserve. No tensors."""

import threading
from collections import Counter
from collections.abc import Sequence

from shared.ids import BlockKey
from shared.kv.hashing import chain_keys
from shared.kv.layout import KvLayout
from shared.model.pages.groups import PageGroups, first_page_needed, live_pages, num_pages
from shared.model.pages.match import PageMatcher
from shared.model.pages.pool import PagePool
from shared.model.pages.prefixes import Chain
from shared.model.pages.reservation import Reservation, WindowPages


class PageBooks:
    """The reservations of `num_pages` pages.

    Layers are cut into page groups (`PageGroups`), all of whose pages come from one pool. A reservation holds the pages
    of full groups for all its tokens; of window groups it holds those that are live, and a *guarantee* of as many as
    can be live at once: taking pages within it never fails, so that sequences cannot block each other half-way. Room is
    what is neither used by full groups nor guaranteed to window groups (a shared window page counts for every holder:
    each of them will need one of its own when it has moved on).

    Bookkeeping is under one lock, so that an event loop may reserve while an engine thread computes; tensors are the
    holder's business. Pages that a step or an emission in progress reads must not be slid past.
    """

    def __init__(self, layout: KvLayout, num_pages: int, page_tokens: int) -> None:
        if page_tokens % layout.block_tokens:
            raise ValueError(f"page_tokens ({page_tokens}) must be a multiple of block_tokens ({layout.block_tokens})")
        self.layout = layout
        self.groups = PageGroups.of(layout)
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.blocks_per_page = page_tokens // layout.block_tokens
        self._group_layers = [sum(1 << layer for layer in group.layers) for group in self.groups.groups]
        self._lock = threading.Lock()
        self._pool = PagePool(num_pages, self.num_groups)
        self._matcher = PageMatcher(self._pool, layout, self.groups, page_tokens)
        self._live: set[Reservation] = set()
        self._used_by_full = 0
        self._guaranteed = 0

    @property
    def num_groups(self) -> int:
        return len(self.groups.groups)

    def group_of(self, layer: int) -> int:
        """Return the page group that a layer belongs to: which table its pages are in."""
        return self.groups.place_of[layer][0]

    def fits(self, num_tokens: int, stride: int | None) -> bool:
        """Return whether `reserve` succeeds when nothing else is held."""
        return self.groups.pages_needed(num_tokens, stride, self.page_tokens) <= self.num_pages

    def capacity_tokens(self, stride: int | None) -> int:
        """Return the longest sequence that `reserve` has pages for when nothing else is held."""
        return self.groups.capacity_tokens(self.num_pages, stride, self.page_tokens)

    def reserve(
        self,
        keys: Sequence[BlockKey],
        num_tokens: int,
        stride: int | None = None,
        spare_pages: int = 0,
        latest: int | None = None,
    ) -> Reservation | None:
        """Hold pages for `num_tokens` tokens, the first of them shared where the blocks `keys` are held already.

        Reuses the longest prefix at which every layer group can resume, in whole pages. Full groups get all their pages
        now. Window groups get those that a resume after the prefix needs, and a guarantee for the holder that computes
        at most `stride` tokens between two slides, and says what it computes by `cover`. Without a stride it never
        slides: all pages are there at once. A holder that computes the token `latest` in any case resumes there when
        the prefix reaches beyond it: it finds what that token sees. Returns None, and changes nothing, when there is
        too little room: `spare_pages` have to be left for others.
        """
        with self._lock:
            total = num_pages(num_tokens, self.page_tokens)
            match = self._matcher.longest(keys[: total * self.blocks_per_page], latest)
            length = len(match.tables[0])
            windows = {}
            for g, window in self.groups.windowed:
                cached = sum(page >= 0 for page in match.tables[g])
                windows[g] = WindowPages(window, cached, spare=cached)
            reservation = Reservation(
                tuple(match.tables),
                num_tokens,
                length * self.blocks_per_page,
                match.layers,
                _stride=stride,
                _windows=windows,
            )
            charges = self._charges(reservation, total)
            idle = sum(not self._pool.is_used(page) for g in self.groups.full for page in match.tables[g])
            if (total - length) * len(self.groups.full) + idle + sum(charges.values()) + spare_pages > self._room:
                return None
            for g, table in enumerate(match.tables):
                for page in table:
                    if page >= 0:
                        self._hold(g, page)
            self._charge(reservation, charges)
            self._lengthen(reservation, total)
            self._live.add(reservation)
            return reservation

    def extend(self, reservation: Reservation, num_tokens: int) -> bool:
        """Raise a reservation's capacity to `num_tokens`. Returns False, and changes nothing, when pages are short."""
        with self._lock:
            assert not reservation.released, "extending a released reservation"
            total, length = num_pages(num_tokens, self.page_tokens), len(reservation.tables[0])
            if total > length:
                charges = self._charges(reservation, total)
                more = sum(charges.values()) - sum(w.charge for w in reservation._windows.values())
                if (total - length) * len(self.groups.full) + more > self._room:
                    return False
                self._charge(reservation, charges)
                self._lengthen(reservation, total)
            reservation.num_tokens = max(reservation.num_tokens, num_tokens)
            return True

    def cover(self, reservation: Reservation, first: int, end: int) -> bool:
        """Take the pages of window groups that computing the tokens `[first, end)` reads and writes.

        With `first == end`: those that a resume there reads, for entries to land in. Returns False, and changes
        nothing, when they are more than was guaranteed: the holder must slide further first. That is never so when
        nothing was covered beyond `stride` tokens after the last slide, or the first `first`.
        """
        with self._lock:
            assert not reservation.released, "covering tokens of a released reservation"
            assert reservation.position <= first <= end <= reservation.num_tokens, "covering what is out of reach"
            missing = {}
            for g, part in reservation._windows.items():
                low = first_page_needed(part.window, first, self.page_tokens)
                table = reservation.tables[g]
                missing[g] = [i for i in range(low, num_pages(end, self.page_tokens)) if table[i] < 0]
                if part.held + len(missing[g]) > part.charge:
                    return False
            for g, indexes in missing.items():
                # From the top: away from the full groups' long runs, and where pages were let go.
                for index, page in zip(indexes, self._pool.take(len(indexes), from_top=True), strict=True):
                    reservation.tables[g][index] = page
                reservation._windows[g].held += len(indexes)
            return True

    def slide(self, reservation: Reservation, position: int, stride: int | None = None) -> None:
        """Let go of window groups' pages that no query at `position` or later sees; earlier ones are not possible then.

        What is to be sent of them must have been sent. Pages of the holder's own are free then, committed or not: few
        prompts resume there, the pool serves those, and memory stays what a window needs. `stride` sets how far the
        holder goes between slides from now on, if less.
        """
        with self._lock:
            assert not reservation.released, "sliding a released reservation"
            if position <= reservation.position and stride is None:
                return
            reservation.position = max(reservation.position, position)
            if stride is not None and (reservation._stride is None or stride < reservation._stride):
                reservation._stride = stride
            cached = reservation.cached_blocks // self.blocks_per_page
            for g, part in reservation._windows.items():
                table = reservation.tables[g]
                low = first_page_needed(part.window, reservation.position, self.page_tokens)
                for index in range(part.first, min(low, len(table))):
                    self._drop(reservation, g, index, keep=index < cached)  # a cached one has proved useful
                part.first = max(part.first, low)
                part.spare = 0
            self._charge(reservation, self._charges(reservation, len(reservation.tables[0])))

    def rewind(self, reservation: Reservation, position: int) -> None:
        """Let go of window groups' pages from `position` on: a resume further on failed, computing starts here.

        A holder that never slides keeps them.
        """
        with self._lock:
            assert not reservation.released, "rewinding a released reservation"
            assert position >= reservation.position, "rewinding to what was slid past"
            for g in reservation._windows if reservation._stride is not None else ():
                for index in range(num_pages(position, self.page_tokens), len(reservation.tables[g])):
                    self._drop(reservation, g, index, keep=False)

    def share(self, reservation: Reservation, first_block: int, end_block: int) -> Reservation | None:
        """Hold the pages of blocks `[first_block, end_block)` once more, to read them whatever becomes of the other.

        For reading in the background; released like any other. Returns None when there is too little room.
        """
        with self._lock:
            assert not reservation.released, "sharing a released reservation"
            first, end = first_block // self.blocks_per_page, num_pages(end_block, self.blocks_per_page)
            tables = tuple([-1] * first + table[first:end] for table in reservation.tables)
            windows = {}
            for g, window in self.groups.windowed:
                held = sum(page >= 0 for page in tables[g])
                windows[g] = WindowPages(window, held, spare=0)
            charges = {g: part.held for g, part in windows.items()}
            if sum(charges.values()) > self._room:
                return None
            for g, table in enumerate(tables):
                for page in table:
                    if page >= 0:
                        self._hold(g, page)
            shared = Reservation(tables, end_block * self.layout.block_tokens, end_block, _windows=windows)
            self._charge(shared, charges)
            self._live.add(shared)
            return shared

    def commit(
        self,
        reservation: Reservation,
        num_blocks: int,
        keys: Sequence[BlockKey],
        layers: Sequence[int] | None = None,
    ) -> None:
        """Make the leading `num_blocks` blocks reusable under `keys`; their content must not change from now on.

        `layers` holds, per block, the layers it is complete in (None: all of them): a block that came without the
        entries of its window layers serves resumes that do not need these. Whole pages only, and only those that are
        still held: what was slid past cannot be reused. When two reservations
        commit one key the first page keeps it, unless the second is complete in more layers.
        """
        with self._lock:
            assert not reservation.released, "committing a released reservation"
            size = self.blocks_per_page
            for index in range(reservation.cached_blocks // size, num_blocks // size):
                end = (index + 1) * size
                masks = layers[end - size : end] if layers else (self.layout.all_layers,) * size
                for g, table in enumerate(reservation.tables):
                    own = self._group_layers[g]
                    if table[index] >= 0 and any(mask & own == own for mask in masks):
                        self._pool.name(table[index], g, keys[end - 1], tuple(mask & own for mask in masks))

    def remember(
        self, reservation: Reservation, chain: Chain, first: int, num_tokens: int, layers: Sequence[int] = ()
    ) -> None:
        """Make the pages of tokens `[first, num_tokens)` findable by their tokens; those of whole pages are committed.

        A last page that is not full is committed by this, under the key of its tokens: they must not change from now
        on. `first` is the start of a page; `layers` as in `commit`, of the leading blocks, all of them for later ones.
        """
        with self._lock:
            assert not reservation.released, "remembering a released reservation"
            for start in range(first, num_tokens, self.page_tokens):
                tokens = chain.tokens[start : min(start + self.page_tokens, num_tokens)]
                parent = chain.key_before(start // self.layout.block_tokens)
                if len(tokens) == self.page_tokens:
                    key = chain.key_before((start + self.page_tokens) // self.layout.block_tokens)
                else:
                    (key,) = chain_keys(parent, tokens, len(tokens))
                    self._name_end(reservation, start // self.page_tokens, key, layers)
                if all(self._pool.find(g, key) is not None for g in range(self.num_groups)):
                    self._pool.prefixes.add(parent, tokens, key)

    def borrow(self, parent: BlockKey, tokens: Sequence[int]) -> tuple[Reservation, int] | None:
        """Hold the page behind the block `parent` that shares most leading tokens, to copy from; return how many.

        Released like any other. Returns None when there is no such page, or too little room to hold it.
        """
        with self._lock:
            found = self._pool.prefixes.longest(parent, tokens)
            if found is None:
                return None
            key, num_shared = found
            pages = [self._pool.find(g, key) for g in range(self.num_groups)]
            held = [page for page in pages if page is not None]
            if len(held) < len(pages) or not all(map(self._is_complete, range(self.num_groups), held)):
                return None
            idle = sum(not self._pool.is_used(held[g]) for g in self.groups.full)
            if idle + len(self.groups.windowed) > self._room:
                return None
            for g, page in enumerate(held):
                self._hold(g, page)
            windows = {g: WindowPages(window, held=1, spare=0) for g, window in self.groups.windowed}
            borrowed = Reservation(tuple([page] for page in held), len(tokens), _windows=windows)
            self._charge(borrowed, dict.fromkeys(windows, 1))
            self._live.add(borrowed)
            return borrowed, num_shared

    def release(self, reservation: Reservation) -> None:
        """Give a reservation's pages back; those with a key stay findable until they are evicted. Idempotent."""
        with self._lock:
            if reservation.released:
                return
            reservation.released = True
            self._live.remove(reservation)
            for index in reversed(range(len(reservation.tables[0]))):  # ends of chains are evicted before their starts
                for g in range(self.num_groups):
                    self._drop(reservation, g, index)
            self._charge(reservation, dict.fromkeys(reservation._windows, 0))

    @property
    def usage(self) -> float:
        """The share of pages that reservations hold or were guaranteed, 0 to 1."""
        with self._lock:
            return 1 - self._room / self.num_pages

    @property
    def held(self) -> int:
        """The number of reservations that were not released."""
        return len(self._live)

    def check(self) -> None:
        """Verify the class invariants; raises `AssertionError`. Cheap enough to run whenever the engine is idle."""
        with self._lock:
            live = list(self._live)
            full = Counter(p for r in live for g in self.groups.full for p in r.tables[g] if p >= 0)
            windowed = Counter(p for r in live for g in r._windows for p in r.tables[g] if p >= 0)
            assert not full.keys() & windowed.keys(), "a page in two kinds of groups"
            self._pool.check(full + windowed)
            assert self._used_by_full == len(full), "pages of full groups"
            assert self._guaranteed == sum(w.charge for r in live for w in r._windows.values()), "guarantees"
            assert self._room >= 0, "more was guaranteed than there is"
            for reservation in live:
                for g, part in reservation._windows.items():
                    assert part.held == sum(page >= 0 for page in reservation.tables[g]), "pages held in a window"
                    assert part.held <= part.charge, "more held than guaranteed"

    def _name_end(self, reservation: Reservation, index: int, key: BlockKey, layers: Sequence[int]) -> None:
        blocks = range(index * self.blocks_per_page, (index + 1) * self.blocks_per_page)
        for g, table in enumerate(reservation.tables):
            if table[index] >= 0:
                own = self._group_layers[g]
                masks = (layers[block] & own if block < len(layers) else own for block in blocks)
                self._pool.name(table[index], g, key, tuple(masks))

    def _is_complete(self, group: int, page: int) -> bool:
        return all(layers == self._group_layers[group] for layers in self._pool.layers(page))

    @property
    def _room(self) -> int:
        return self.num_pages - self._used_by_full - self._guaranteed

    def _charges(self, reservation: Reservation, total: int) -> dict[int, int]:
        """Return, per window group, what a reservation of `total` pages a table must be guaranteed."""
        stride, charges = reservation._stride, {}
        for g, part in reservation._windows.items():
            live = total if stride is None else live_pages(part.window, stride, self.page_tokens) + part.spare
            charges[g] = max(part.held, min(total, live))
        return charges

    def _charge(self, reservation: Reservation, charges: dict[int, int]) -> None:
        for g, part in reservation._windows.items():
            self._guaranteed += charges[g] - part.charge
            part.charge = charges[g]

    def _lengthen(self, reservation: Reservation, total: int) -> None:
        """Make the tables `total` pages long; the pages are known to exist."""
        for g, table in enumerate(reservation.tables):
            count = total - len(table)
            part = reservation._windows.get(g)
            if part is not None and reservation._stride is not None:
                table += [-1] * count
                continue
            table += self._pool.take(count, table[-1] if table else None)
            if part is None:
                self._used_by_full += count
            else:
                part.held += count

    def _hold(self, group: int, page: int) -> None:
        if self.groups.groups[group].window is None:
            self._used_by_full += not self._pool.is_used(page)
        self._pool.hold(page)

    def _drop(self, reservation: Reservation, group: int, index: int, *, keep: bool = True) -> None:
        """Take a page out of a table, if there is one; it may be somebody else's from now on."""
        page = reservation.tables[group][index]
        if page < 0:
            return
        reservation.tables[group][index] = -1
        self._pool.let_go(page, keep=keep)
        part = reservation._windows.get(group)
        if part is not None:
            part.held -= 1
        elif not self._pool.is_used(page):
            self._used_by_full -= 1
