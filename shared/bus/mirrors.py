"""Names of topics that MirrorMaker copies from the brokers of other datacenters.

A copy has the name of the source before the topic's own, as in `east.prfaas.load` (MirrorMaker's
`DefaultReplicationPolicy`). Who writes never writes to a copy, so two brokers that copy from each other make no loop.
"""

import re
from collections.abc import Iterable

_SOURCE = re.compile(r"[A-Za-z0-9_-]+")


def read_sources(text: str) -> tuple[str, ...]:
    """Read a list of sources such as `east,north`. Raises ValueError."""
    sources = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for source in sources:
        if _SOURCE.fullmatch(source) is None:
            raise ValueError(f"{source!r} cannot begin the name of a topic: letters, digits, - and _ only")
    return sources


def copy_name(source: str, topic: str) -> str:
    """Return what a topic of `source` is called here."""
    return f"{source}.{topic}"


def original_name(name: str, topics: Iterable[str]) -> str:
    """Return the one of `topics` that `name` is a copy of; `name` itself where it is a copy of none."""
    for topic in topics:
        source, found, rest = name.rpartition(f".{topic}")
        if found and not rest and _SOURCE.fullmatch(source):
            return topic
    return name
