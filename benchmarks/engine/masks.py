"""A running batch of 8 whose answers have to be JSON of a schema, beside the same batch without: what do masks cost?"""

import json
import statistics

from benchmarks.engine.batch import running_batch
from benchmarks.engine.node import open_decode, percentile
from benchmarks.harness import Report, Row, at_most
from benchmarks.peers.protocol import Prompts
from shared.sampling.constraint import Constraint, ConstraintKind

BATCH, CONTEXT = 8, 512
LIMIT = 1.15
ENDLESS = 10_000
"""More items than there will be steps: no answer of a batch ends before the others."""

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "roles": {"type": "array", "items": {"enum": ["reader", "writer", "owner"]}, "maxItems": 3},
    },
    "required": ["name", "age", "roles"],
    "additionalProperties": False,
}
CONSTRAINT = Constraint(ConstraintKind.JSON_SCHEMA, json.dumps({"type": "array", "items": PERSON, "minItems": ENDLESS}))


async def measure(quick: bool) -> Report:
    """Alternate batches with masks and batches without; each round's contexts have the same lengths."""
    steps, rounds = (16, 1) if quick else (150, 5)
    prompts = Prompts(3).several(BATCH, CONTEXT)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    async with open_decode() as node:
        for number in range(rounds):
            for masked in (False, True) if number % 2 else (True, False):
                constraint = CONSTRAINT if masked else None
                async with running_batch(node, prompts, steps, constraint) as batch:
                    seconds[masked] += await batch.steps(steps)
        model = node.model.files.name
    plain, masked_s = (statistics.median(seconds[masked]) for masked in (False, True))
    row: Row = {
        "model": model,
        "plain_ms": _ms(plain),
        "plain_p99_ms": _ms(percentile(seconds[False], 99)),
        "masked_ms": _ms(masked_s),
        "masked_p99_ms": _ms(percentile(seconds[True], 99)),
    }
    times = masked_s / plain
    return Report([row], [at_most(f"{model}: step of {BATCH} with masks, times without", times, LIMIT)])


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
