"""What an answer consists of, as clients are told it: content, reasoning, calls of tools."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class ContentPart(NamedTuple):
    text: str


class ReasoningPart(NamedTuple):
    text: str


class CallBegun(NamedTuple):
    """A call whose arguments follow."""

    call: int  # its number in the answer
    name: str


class CallArguments(NamedTuple):
    """More of the text of a call's arguments, a JSON object."""

    call: int
    text: str


AnswerPart = ContentPart | ReasoningPart | CallBegun | CallArguments


class AnswerReader(Protocol):
    """Reads one answer, whose text comes in pieces. However it is cut, the parts say the same when they are joined."""

    def push(self, text: str) -> list[AnswerPart]:
        """Take more text; return the parts that are certain by now."""
        ...

    def finish(self) -> list[AnswerPart]:
        """Return what was held back: no more text comes."""
        ...


class TokenCount(Protocol):
    """Counts the tokens of one answer's reasoning."""

    @property
    def num_tokens(self) -> int: ...

    def push(self, ids: Sequence[int]) -> None:
        """Take the next ids of the answer."""
        ...


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How the answers of a request are read, where they are more than content."""

    new_reader: Callable[[], AnswerReader]
    new_count: Callable[[], TokenCount] | None = None  # None: they have no reasoning


def joined(parts: list[AnswerPart]) -> list[AnswerPart]:
    """Return the same parts with neighbours of one kind put together."""
    found: list[AnswerPart] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, ContentPart) and isinstance(last, ContentPart):
            found[-1] = ContentPart(last.text + part.text)
        elif isinstance(part, ReasoningPart) and isinstance(last, ReasoningPart):
            found[-1] = ReasoningPart(last.text + part.text)
        elif isinstance(part, CallArguments) and isinstance(last, CallArguments) and part.call == last.call:
            found[-1] = CallArguments(part.call, last.text + part.text)
        else:
            found.append(part)
    return found
