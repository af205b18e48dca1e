"""Any order of reserving, fetching, computing, sliding, committing, publishing and releasing keeps every page right."""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from shared.ids import BlockKey
from shared.kv.layout import KvLayout, LayerSpec, iter_layers
from shared.model.pages.kv import PagedKv
from shared.model.pages.prefixes import Chain
from shared.model.pages.reservation import Reservation

BLOCK = 4
FULL, WINDOW = LayerSpec(None, 1, 1), LayerSpec(8, 1, 1)
LAYOUTS = [
    KvLayout((FULL, FULL), "float32", BLOCK),
    KvLayout((WINDOW, FULL), "float32", BLOCK),
    KvLayout((WINDOW, FULL, WINDOW, LayerSpec(3, 1, 1)), "float32", BLOCK),
    KvLayout((WINDOW, WINDOW), "float32", BLOCK),
    KvLayout((FULL, LayerSpec(BLOCK + 1, 1, 1)), "float32", BLOCK),  # a last token sees a block more than what follows
    KvLayout((FULL, LayerSpec(8, 1, 2)), "float32", BLOCK),
]


def keys(count: int, chain: str) -> list[BlockKey]:
    return [BlockKey(f"{chain}{i}".encode().ljust(32)) for i in range(count)]


def chain_of(name: str, num_blocks: int) -> Chain:
    return Chain(BlockKey(name.encode()), keys(num_blocks, name), range(200))


def content(chain: str, layer: int, first: int, end: int) -> torch.Tensor:
    """What K of these tokens must be: as in a model, a function of the text before them, the layer and the position."""
    return torch.arange(first, end) + 1000.0 * layer + 10_000.0 * ord(chain)


@dataclass(eq=False)
class Holder:
    """A sequence as its engine sees it."""

    reservation: Reservation
    chain: str
    stride: int
    slides: bool
    resident: list[int]  # per block, the layers whose content is in the pages
    computed: int  # tokens
    covered: int  # tokens computed since the last slide


Granted: TypeAlias = Holder | MultipleResults[Holder]  # no results: there was too little room


class Publication(NamedTuple):
    """Pages that are read in the background, and what was in them when that began."""

    pages: Reservation
    entries: list[tuple[int, int, torch.Tensor]]  # layer, block, K


class PagedStates(RuleBasedStateMachine):
    """Each token's K says whose it is: a page that was handed out while somebody needed it shows at once."""

    holders = Bundle("holders")

    @initialize(layout=st.sampled_from(LAYOUTS), page_blocks=st.sampled_from([1, 2]), num_pages=st.integers(6, 50))
    def start(self, layout: KvLayout, page_blocks: int, num_pages: int) -> None:
        self.kv = PagedKv(layout, num_pages, page_blocks * BLOCK)
        self.layout = layout
        self.live: list[Holder] = []
        self.publications: list[Publication] = []

    @rule(
        target=holders,
        chain=st.sampled_from("ab"),
        blocks=st.integers(0, 12),
        extra=st.integers(1, 60),
        stride=st.integers(1, 12),
        slides=st.sampled_from([True, True, False]),
    )
    def reserve(self, chain: str, blocks: int, extra: int, stride: int, slides: bool) -> Granted:
        return self._reserve(chain, blocks, extra, stride, slides, None)

    @rule(target=holders, holder=holders, less=st.integers(0, 3), stride=st.integers(1, 12), slides=st.booleans())
    def ask_again(self, holder: Holder, less: int, stride: int, slides: bool) -> Granted:
        """Reserve for a prompt of whole blocks that is computed: its last token is run, not written if it is held."""
        self.commit(holder)
        blocks = len(holder.resident) - less
        return self._reserve(holder.chain, blocks, 1, stride, slides, blocks * BLOCK - 1) if blocks > 0 else multiple()

    def _reserve(self, chain: str, blocks: int, extra: int, stride: int, slides: bool, latest: int | None) -> Granted:
        usage, num_tokens = self.kv.usage, blocks * BLOCK + extra
        reservation = self.kv.reserve(keys(blocks, chain), num_tokens, stride if slides else None, latest=latest)
        if reservation is None:
            assert self.kv.usage == usage
            alone = not self.live and not self.publications
            assert not alone or not self.kv.fits(num_tokens, stride if slides else None), "what fits alone is granted"
            return multiple()
        resident = list(reservation.cached_layers)
        assert self.layout.longest_resume(resident, latest) == reservation.cached_blocks
        holder = Holder(reservation, chain, stride, slides, resident, len(resident) * BLOCK, 0)
        self.live.append(holder)
        if latest is not None and latest < holder.computed:
            assert self.kv.cover(reservation, latest, latest + 1)
            self._check_seen(holder, latest)
        return holder

    @rule(holder=holders, blocks=st.integers(1, 8), arrives=st.booleans())
    def fetch(self, holder: Holder, blocks: int, arrives: bool) -> None:
        """Entries of a longer prefix land in pages, or do not and the holder goes on from where it was."""
        if holder.computed != holder.reservation.cached_blocks * BLOCK:
            return
        reservation, first = holder.reservation, len(holder.resident)
        resume = first + blocks
        if resume * BLOCK > reservation.num_tokens or reservation.position:
            return
        assert self.kv.cover(reservation, resume * BLOCK, resume * BLOCK), "a window is within every guarantee"
        needed = [self.layout.needed_layers(block, resume) for block in range(first, resume)]
        if not arrives:
            self.kv.rewind(reservation, first * BLOCK)
            return
        for block, mask in enumerate(needed, start=first):
            for layer in iter_layers(mask):
                k, _ = self.kv.block(layer, reservation, block)
                k[:, 0] = content(holder.chain, layer, block * BLOCK, (block + 1) * BLOCK)[:, None]
        holder.resident += needed
        holder.computed, holder.covered = resume * BLOCK, 0

    @rule(holder=holders, num_alike=st.integers(1, 2 * BLOCK))
    def borrow(self, holder: Holder, num_alike: int) -> None:
        """Go on with a copy of a page that begins alike, as far as it does."""
        reservation, first = holder.reservation, holder.computed
        if first != reservation.cached_blocks * BLOCK or holder.covered or first == reservation.num_tokens:
            return
        count = min(num_alike, self.kv.page_tokens - 1, reservation.num_tokens - first)
        chain = chain_of(holder.chain, first // BLOCK)
        wanted = [*range(first, first + count), *[-1] * (self.kv.page_tokens - 1 - count)]
        borrowed = self.kv.borrow(chain.key_before(first // BLOCK), wanted)
        if borrowed is None:
            return
        source, num_tokens = borrowed
        assert 0 < num_tokens <= count
        assert not holder.slides or self.kv.cover(reservation, first + num_tokens, first + num_tokens)
        index = first // self.kv.page_tokens
        if all(table[index] >= 0 for table in reservation.tables):
            self.kv.copy_page(source, reservation, index, num_tokens)
            holder.computed += num_tokens
            holder.resident += [self.layout.all_layers] * (holder.computed // BLOCK - len(holder.resident))
        self.kv.release(source)

    @rule(holder=holders, tokens=st.integers(1, 12), steps=st.integers(1, 5), commits=st.booleans())
    def compute(self, holder: Holder, tokens: int, steps: int, commits: bool) -> None:
        for _ in range(steps):
            self._step(holder, tokens, slides_first=steps > 2)
            if commits:
                self.commit(holder)

    def _step(self, holder: Holder, tokens: int, slides_first: bool) -> None:
        reservation, first = holder.reservation, holder.computed
        if holder.slides and (slides_first or holder.covered + tokens > holder.stride):
            self.kv.slide(reservation, first)
            holder.covered = 0
        end = min(first + tokens, reservation.num_tokens)
        if holder.slides:
            end = min(end, first + holder.stride)
            assert self.kv.cover(reservation, first, end), "taking pages within the guarantee failed"
        for layer in range(self.layout.num_layers):
            table = reservation.tables[self.kv.group_of(layer)]
            for position, value in enumerate(content(holder.chain, layer, first, end).tolist(), start=first):
                page, offset = divmod(position, self.kv.page_tokens)
                self.kv.keys_of(layer)[table[page], offset] = value
        holder.computed = end
        holder.covered += end - first
        holder.resident += [self.layout.all_layers] * (end // BLOCK - len(holder.resident))

    @rule(holder=holders)
    def commit(self, holder: Holder) -> None:
        count = len(holder.resident)
        self.kv.commit(holder.reservation, count, keys(count, holder.chain), holder.resident)

    @rule(holder=holders, more=st.integers(0, 12))
    def extend(self, holder: Holder, more: int) -> None:
        before, usage = [list(table) for table in holder.reservation.tables], self.kv.usage
        if not self.kv.extend(holder.reservation, holder.reservation.num_tokens + more):
            assert [list(table) for table in holder.reservation.tables] == before
            assert self.kv.usage == usage

    @rule(holder=holders, stride=st.integers(1, 12))
    def shorten_stride(self, holder: Holder, stride: int) -> None:
        if holder.slides:
            self.kv.slide(holder.reservation, holder.computed, stride)
            holder.stride, holder.covered = min(stride, holder.stride), 0

    @rule(holder=holders, blocks=st.integers(1, 3))
    def share(self, holder: Holder, blocks: int) -> None:
        end = holder.computed // BLOCK
        first = max(0, end - blocks)
        pages = self.kv.share(holder.reservation, first, end) if first < end else None
        if pages is not None:
            held = [
                (layer, block)
                for layer in range(self.layout.num_layers)
                for block in range(first, end)
                if pages.tables[self.kv.group_of(layer)][block // self.kv.blocks_per_page] >= 0
            ]
            entries = [(layer, block, self.kv.block(layer, pages, block)[0].clone()) for layer, block in held]
            self.publications.append(Publication(pages, entries))

    @rule()
    def end_a_share(self) -> None:
        if self.publications:
            self.kv.release(self.publications.pop(0).pages)

    @rule(holder=consumes(holders))
    def release_remembered(self, holder: Holder) -> None:
        """Leave what was computed to whoever begins alike, the last page that is not full among it."""
        self.commit(holder)
        chain = chain_of(holder.chain, len(holder.resident))
        self.kv.remember(holder.reservation, chain, 0, holder.computed, holder.resident)
        self.release(holder)

    @rule(holder=consumes(holders))
    def release(self, holder: Holder) -> None:
        self.kv.release(holder.reservation)
        self.kv.release(holder.reservation)
        self.live.remove(holder)

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "kv"):
            self.kv.check()
            assert self.kv.held == len(self.live) + len(self.publications)

    @invariant()
    def what_is_needed_is_there(self) -> None:
        """A query at `computed` finds, in each layer, what it attends to; a publication, what it is to send."""
        for holder in getattr(self, "live", []):
            self._check_computed(holder)
        for publication in getattr(self, "publications", []):
            for layer, block, k in publication.entries:
                assert self.kv.block(layer, publication.pages, block)[0].equal(k), "overwritten before it was sent"

    def _check_computed(self, holder: Holder) -> None:
        for layer, spec in enumerate(self.layout.layers):
            first = 0 if spec.window is None else max(0, holder.computed - spec.window + 1)
            self._check_tokens(holder, layer, first, holder.computed)

    def _check_seen(self, holder: Holder, position: int) -> None:
        """A query whose own K is in the pages finds it there, and all that it attends to."""
        for layer, spec in enumerate(self.layout.layers):
            first = 0 if spec.window is None else max(0, position - spec.window + 1)
            self._check_tokens(holder, layer, first, position + 1)

    def _check_tokens(self, holder: Holder, layer: int, first: int, end: int) -> None:
        table, expected = holder.reservation.tables[self.kv.group_of(layer)], content(holder.chain, layer, first, end)
        pages = [table[position // self.kv.page_tokens] for position in range(first, end)]
        assert -1 not in pages, f"layer {layer} has lost tokens of [{first}, {end}): {table}"
        offsets = torch.arange(first, end) % self.kv.page_tokens
        assert self.kv.keys_of(layer)[pages, offsets, 0, 0].tolist() == expected.tolist(), "overwritten"


TestPagedStates = PagedStates.TestCase
TestPagedStates.settings = settings(max_examples=100, stateful_step_count=40)
