"""What one sequence holds of the page memory: tables of pages, and what its windows were guaranteed."""

from dataclasses import dataclass, field


@dataclass(eq=False)
class Reservation:
    """Pages held for one sequence. Made and changed by `PageBooks` only.

    The first `cached_blocks` blocks are shared with other reservations and must not be written. `cached_layers` holds,
    for each of them, the layers that it is complete in: all that a resume needs, not always all there are.
    """

    tables: tuple[list[int], ...]
    """Per page group, the page of each `page_tokens` tokens; -1 where none is held: behind the window, or not yet."""
    num_tokens: int  # capacity
    cached_blocks: int = 0
    cached_layers: tuple[int, ...] = ()
    position: int = 0  # no query will be before it
    released: bool = field(default=False, repr=False)
    _stride: int | None = field(default=None, repr=False)  # None: never slides
    _windows: dict[int, "WindowPages"] = field(default_factory=dict, repr=False)  # of the window groups


@dataclass
class WindowPages:
    """One window group's part of a reservation: at most `charge` pages are held at a time."""

    window: int
    held: int  # pages in the table
    spare: int  # pages beyond those of window and stride: a cached prefix's window, until it is known where to resume
    first: int = 0  # the table is empty before it
    charge: int = 0
