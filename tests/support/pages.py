"""Reservations of small page memories, as tests of pages make them."""

from shared.ids import BlockKey
from shared.kv.layout import KvLayout, LayerSpec
from shared.model.pages.books import PageBooks
from shared.model.pages.reservation import Reservation

FULL = KvLayout((LayerSpec(None, 1, 2), LayerSpec(None, 1, 2)), "float32", block_tokens=4)
MIXED = KvLayout((LayerSpec(None, 1, 2), LayerSpec(8, 1, 2)), "float32", block_tokens=4)
FULL_LAYER = 0b01
FULL_GROUP, WINDOW_GROUP = 0, 1


def keys(count: int, chain: str = "a") -> list[BlockKey]:
    return [BlockKey(f"{chain}{i}".encode().ljust(32)) for i in range(count)]


def reserved(books: PageBooks, names: list[BlockKey], num_tokens: int, stride: int | None = None) -> Reservation:
    reservation = books.reserve(names, num_tokens, stride)
    assert reservation is not None
    return reservation


def window_pages(reservation: Reservation) -> list[int]:
    """The indexes at which the window group has pages."""
    return [index for index, page in enumerate(reservation.tables[WINDOW_GROUP]) if page >= 0]
