"""Where requests come from: a trace in Mooncake's format, or a synthetic one of the same shape."""

import hashlib
import json
import random
from pathlib import Path
from typing import NamedTuple

from shared.ids import BlockKey

BLOCK_TOKENS = 512
"""What one hash id of the trace stands for."""


class TraceRequest(NamedTuple):
    at_s: float
    keys: tuple[BlockKey, ...]  # of the prompt, in chain order; the last block may be partial, and counts all the same
    conversation: int  # requests of one conversation have the same


def load(path: Path) -> list[TraceRequest]:
    """Read JSON lines with `timestamp` (ms) and `hash_ids`, where equal ids mean equal prefixes up to there."""
    keys: dict[int, BlockKey] = {}
    requests = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        ids: list[int] = row["hash_ids"]
        chain = tuple(keys.setdefault(number, _key(number)) for number in ids)
        # The first block of nearly all is the same system prompt: what follows tells conversations apart.
        requests.append(TraceRequest(row["timestamp"] / 1000, chain, ids[min(1, len(ids) - 1)]))
    return requests


def synthetic(num_requests: int, seed: int = 1) -> list[TraceRequest]:
    """Conversations of a few turns behind one system prompt, some of them about one document from many sides.

    Meant to be like Mooncake's conversation trace in what matters here: prompts of some 24 blocks with a long tail,
    most blocks used once, half of all reuse within minutes and some of it much later. Not fitted to it.
    """
    draw = random.Random(seed)
    requests: list[TraceRequest] = []
    number = 0
    while len(requests) < num_requests:
        number += 1
        start_s = draw.uniform(0, num_requests * 0.3)
        length = 1 + min(250, int(draw.lognormvariate(2.6, 1.0)))
        chain = [_key("system"), *(_key((number, 0, block)) for block in range(length))]
        limiter = 1 if draw.random() < 0.45 else 2 + min(12, int(draw.expovariate(0.7)))
        at_s = start_s
        is_document = draw.random() < 0.2
        for turn in range(limiter):
            asked = [*chain, *(_key((number, turn + 1, block)) for block in range(1 + int(draw.expovariate(0.4))))]
            requests.append(TraceRequest(at_s, tuple(asked), number))
            at_s += 20 + draw.lognormvariate(4.6, 0.9)
            if not is_document:  # the next turn follows this one: its last block was partial, and is another by then
                chain = asked[:-1]
    return sorted(requests[:num_requests])


def _key(name: object) -> BlockKey:
    return BlockKey(hashlib.sha256(repr(name).encode()).digest())
