"""What a kind of weights costs in quality: perplexity on a real text, the manual that every Python interpreter carries.

Windows of the text, each with the model's own first token and no memory of the one before; the mean is over all tokens
but the first of each. Steps of few rows are computed by other kernels than chunks of a prompt, and read int8 weights
where those are chosen: so the same windows are scored in chunks of 512 tokens and in steps of 16.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tqdm import tqdm

from benchmarks import harness
from benchmarks.harness import Check, Report, at_most
from shared.config import load
from shared.engine.loaded import LoadedModel, load_model
from shared.engine.settings import EngineSettings
from shared.model.files.catalog import BUILT_IN, resolve
from shared.model.layers.batch import Batch, Span
from shared.model.text.tokenizer import Tokenizer

NUM_WINDOWS, WINDOW = 8, 1024
QUICK_NUM_WINDOWS, QUICK_WINDOW = 1, 256
LIMIT = 1.01
LOGIT_ROWS = 64
"""Rows of logits at a time: a vocabulary of 262,144 makes 1 MB of each."""


@dataclass(frozen=True)
class Variant:
    """One way to compute the same model."""

    dtype: str
    weight_dtype: str
    step_tokens: int

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PRFAAS_DTYPE": self.dtype,
            "PRFAAS_WEIGHT_DTYPE": self.weight_dtype,
            "PRFAAS_MAX_MODEL_LEN": str(WINDOW),  # float32 KV of a whole context would not fit the default memory
        }


REFERENCE = Variant("bfloat16", "auto", 512)
VARIANTS = (
    REFERENCE,
    Variant("bfloat16", "auto", 16),
    Variant("bfloat16", "int8", 16),
    Variant("float32", "auto", 512),
)


def windows(model: str, count: int, length: int) -> list[list[int]]:
    """Cut `count` windows of `length` token ids from the text, evenly spread."""
    files = resolve(model, Path("~/.cache/prfaas").expanduser())
    tokenizer = Tokenizer.load(files.path)
    ids = tokenizer.encode("\n".join(topics[name] for name in sorted(topics)), add_special_tokens=False)
    first = tokenizer.encode("")
    body = length - len(first)
    stride = (len(ids) - body) // count
    return [first + ids[i * stride : i * stride + body] for i in range(count)]


def negative_log_likelihood(model: LoadedModel, ids: Sequence[int], step_tokens: int) -> float:
    """Return the sum of -ln p over all tokens but the first, each given all before it."""
    total = 0.0
    reservation = model.kv.reserve([], len(ids))
    if reservation is None:
        raise RuntimeError(f"no pages for {len(ids)} tokens")
    try:
        for first in range(0, len(ids) - 1, step_tokens):
            end = min(first + step_tokens, len(ids) - 1)
            batch = Batch.build([Span(reservation.tables, first, end - first)], model.kv.page_tokens)
            hidden = model.transformer.forward(torch.tensor(ids[first:end]), batch, model.kv)
            for row in range(0, end - first, LOGIT_ROWS):
                logits = model.transformer.logits(hidden[row : row + LOGIT_ROWS])
                targets = torch.tensor(ids[first + row + 1 : first + row + 1 + logits.shape[0]])
                total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    finally:
        model.kv.release(reservation)
    return total


def perplexity(model: LoadedModel, texts: Sequence[Sequence[int]], step_tokens: int) -> float:
    total = sum(negative_log_likelihood(model, ids, step_tokens) for ids in tqdm(texts, leave=False))
    return math.exp(total / sum(len(ids) - 1 for ids in texts))


def measure(options: argparse.Namespace) -> Report:
    count, length = (QUICK_NUM_WINDOWS, QUICK_WINDOW) if options.quick else (NUM_WINDOWS, WINDOW)
    report = Report(settings={"text": "Python's language reference", "windows": count, "window_tokens": length})
    for name in options.model or (BUILT_IN[:1] if options.quick else BUILT_IN):
        texts = windows(name, count, length)
        found: dict[Variant, float] = {}
        for variant in VARIANTS[:3] if options.quick else VARIANTS:
            model = load_model(load(EngineSettings, {"PRFAAS_MODEL": name, **variant.environ}))
            found[variant] = perplexity(model, texts, variant.step_tokens)
            report.rows.append(
                {
                    "model": name,
                    "dtype": variant.dtype,
                    "weights": variant.weight_dtype,
                    "step_tokens": variant.step_tokens,
                    "perplexity": round(found[variant], 4),
                    "times_bfloat16": round(found[variant] / found[REFERENCE], 5),
                }
            )
        report.checks += checks(name, found)
    return report


def checks(model: str, found: dict[Variant, float]) -> list[Check]:
    """Every way to compute that a service offers may cost 1 % of the perplexity in bfloat16."""
    return [
        at_most(
            f"{model}, {v.weight_dtype} in steps of {v.step_tokens}: perplexity, times bfloat16",
            value / found[REFERENCE],
            LIMIT,
        )
        for v, value in found.items()
        if v.dtype == "bfloat16" and v != REFERENCE
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", action="append", choices=BUILT_IN, help="may be repeated; default: both")


if __name__ == "__main__":
    sys.exit(harness.main("quality", measure, add_options, description=__doc__))
