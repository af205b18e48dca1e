"""Recorded requests: traces in Mooncake's format, with prefixes, and Azure's, with lengths alone."""

import csv
import hashlib
import json
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from shared.ids import BlockKey
from simulator.workload.prompts import PromptDraw

TRACE_BLOCK_TOKENS = 512
"""What one hash id of a trace in Mooncake's format stands for."""


class TracedRequest(NamedTuple):
    """A request and when it came, in seconds since the trace's first."""

    at_s: float
    prompt: PromptDraw


def read_mooncake(path: Path, limit: int | None = None, *, reuse: bool = True) -> list[TracedRequest]:
    """Read JSON lines with `timestamp` (ms), `input_length`, `output_length` and `hash_ids`.

    Equal ids mean equal prefixes up to there; the last block, when it is partial, has no key. Without `reuse` all
    prompts are distinct. Raises ValueError for a file of another form.
    """
    found: list[TracedRequest] = []
    with path.open() as lines:
        for number, line in enumerate(islice(lines, limit)):
            try:
                row = json.loads(line)
                ids, num_tokens = row["hash_ids"], int(row["input_length"])
                at_s, num_output = row["timestamp"] / 1000, int(row["output_length"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number + 1}: not a request of a Mooncake trace: {error}") from None
            names = ids if reuse else [(number, index) for index in range(len(ids))]
            keys = [_key(name) for name in names[: num_tokens // TRACE_BLOCK_TOKENS]]
            found.append(TracedRequest(at_s, PromptDraw(max(1, num_tokens), max(1, num_output), keys)))
    return _from_zero(found)


def read_azure(path: Path, block_tokens: int, limit: int | None = None) -> list[TracedRequest]:
    """Read a CSV file with `TIMESTAMP`, `ContextTokens` and `GeneratedTokens`; prompts share nothing.

    Raises ValueError for a file of another form.
    """
    found: list[TracedRequest] = []
    with path.open(newline="") as lines:
        for number, row in enumerate(islice(csv.DictReader(lines), limit)):
            try:
                at_s = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                num_tokens, num_output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number + 2}: not a request of an Azure trace: {error}") from None
            keys = [_key((path.name, number, block)) for block in range(num_tokens // block_tokens)]
            found.append(TracedRequest(at_s, PromptDraw(max(1, num_tokens), max(1, num_output), keys)))
    return _from_zero(sorted(found, key=lambda request: request.at_s))


def _from_zero(requests: list[TracedRequest]) -> list[TracedRequest]:
    if not requests:
        raise ValueError("a trace must have at least one request")
    start_s = min(request.at_s for request in requests)
    return [request._replace(at_s=request.at_s - start_s) for request in requests]


def _key(name: object) -> BlockKey:
    return BlockKey(hashlib.sha256(repr(name).encode()).digest())
