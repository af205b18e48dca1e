"""The pages of one request from admission to its end or its pre-emption, and who may still touch them."""

import asyncio
from dataclasses import dataclass

from services.decode.tail import Tail
from shared.engine.fetch import PageFetch
from shared.model.pages.reservation import Reservation


@dataclass(eq=False)
class Holding:
    """Made, used and let go by `RequestMemory` only.

    Users are the fetch that fills pages, the torch thread while it has the request in hand, and the publisher while it
    reads what a pre-empted request has left. An abandoned holding is released when the last of them is done.
    """

    reservation: Reservation
    tail: Tail | None  # None once the request runs
    resident: list[int]  # of the leading blocks in the pages: the layers that are complete
    num_held: int = 0  # leading tokens that were on the device at its admission
    borrowed: Reservation | None = None  # a page that the tail begins with a copy of
    num_remembered: int = 0  # leading tokens, of whole pages, that others may find by
    fetch: PageFetch | None = None  # until it was taken stock of
    num_open_layers: int = 0  # leading layers of what is fetched that had landed when the loop was woken last
    fetch_task: "asyncio.Task[None] | None" = None
    num_users: int = 0
    abandoned: bool = False
