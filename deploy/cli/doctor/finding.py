"""What a check found."""

from dataclasses import asdict, dataclass
from enum import Enum


class Level(Enum):
    OK = "ok"
    WARN = "warn"  # the suite works, but slower or not for long
    FAIL = "fail"  # the suite does not start, or does not serve


@dataclass(frozen=True)
class Finding:
    """One result. `todo` is an instruction, empty only when all is well."""

    level: Level
    what: str  # was looked at, in a word or two
    why: str  # what was seen
    todo: str = ""

    def to_json(self) -> dict[str, str]:
        return {**asdict(self), "level": self.level.value}


def fine(what: str, why: str) -> Finding:
    return Finding(Level.OK, what, why)


def warned(what: str, why: str, todo: str) -> Finding:
    return Finding(Level.WARN, what, why, todo)


def failed(what: str, why: str, todo: str) -> Finding:
    return Finding(Level.FAIL, what, why, todo)
