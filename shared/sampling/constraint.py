"""What an answer has to be, as a client has written it. It travels as text: whoever generates compiles it."""

from dataclasses import dataclass
from enum import Enum

from shared.errors import BadRequest

MAX_CONSTRAINT_BYTES = 64 << 10
"""Of a constraint's text in UTF-8. It bounds what compiling can take, together with the compiler's own limits."""


class ConstraintKind(Enum):
    """What the text of a constraint is."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"  # the whole answer matches
    CHOICE = "choice"  # a JSON list of strings, one of which is the answer
    GRAMMAR = "grammar"  # Lark's notation as llguidance reads it, or GBNF


@dataclass(frozen=True)
class Constraint:
    """Bounded at birth: raises `BadRequest` when its text is too long. Whether it is well-formed says its compiler."""

    kind: ConstraintKind
    text: str

    def __post_init__(self) -> None:
        num_bytes = len(self.text.encode(errors="replace"))
        if num_bytes > MAX_CONSTRAINT_BYTES:
            raise BadRequest(f"has {num_bytes} bytes; at most {MAX_CONSTRAINT_BYTES} are compiled")
