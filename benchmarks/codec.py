"""What each codec costs and gains on the KV of real models over real text: size, speed, perplexity, greedy agreement.

A context is prefilled, its KV goes through the codec block by block, as it would over a link, and the text that follows
is scored on what came out (teacher forcing), and continued greedily. The model computes in float32 on KV as bfloat16
holds it: in bfloat16 the rounding of the model's own steps moves each token's probability more than int8 does, and
hides it. Perplexities are compared token by token on the same text; the standard error is that of the mean difference.
Codecs without loss are not scored: their bytes are compared.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import harness
from benchmarks.harness import Report, at_least, at_most
from benchmarks.quality import LOGIT_ROWS, windows
from shared.config import load
from shared.engine.loaded import LoadedModel, load_model
from shared.engine.settings import EngineSettings
from shared.kv.codec import SINK_TOKENS, Codec, EntryShape, Fidelity, decode, encode
from shared.kv.codec.floats import from_floats, to_floats
from shared.model.files.catalog import BUILT_IN
from shared.model.layers.batch import Batch, Span
from shared.model.pages.reservation import Reservation


@dataclass(frozen=True)
class CodecSize:
    """How much is measured."""

    num_windows: int
    context: int  # tokens whose KV goes through the codec
    scored: int  # tokens after it
    generated: int

    @property
    def num_tokens(self) -> int:
        return self.context + self.scored + self.generated + 1


FULL, QUICK = CodecSize(8, 1024, 384, 64), CodecSize(1, 512, 64, 8)
STEP = 512
SPEED_ENTRIES, SPEED_ROUNDS = 48, 20

MOST_LOSS = {Fidelity.LOSSLESS: 0.0, Fidelity.INT8: 0.1, Fidelity.INT4: 1.0}
"""Of perplexity, in per cent."""

LEAST_RATIO = {
    codec: codec.spec.cost.ratio for codec in Codec if codec is not Codec.RAW and codec.spec.cost is not None
}
"""What routing counts on. A codec that it never chooses has no targets."""

LEAST_SCORED = 1000
"""Tokens; of fewer the error is larger than what is looked for."""

LEAST_LINK_MBIT = 1000
"""Of payload that one core can encode, and decode: then it is not the bottleneck of such a link."""

Entries = list[list[bytes]]
"""By layer and block, as they leave an engine in bfloat16."""


class Text:
    """One window: a context in pages, and what follows."""

    def __init__(self, model: LoadedModel, ids: Sequence[int], size: CodecSize) -> None:
        self.model, self.ids, self.size = model, ids, size
        reservation = model.kv.reserve([], size.context + size.scored + size.generated)
        if reservation is None:
            raise RuntimeError("no pages for a window")
        self.pages: Reservation = reservation
        for first in range(0, size.context, STEP):
            self._forward(ids[first : min(first + STEP, size.context)], first)
        self.entries: Entries = [
            [self._entry(layer, block) for block in range(size.context // model.layout.block_tokens)]
            for layer in range(model.layout.num_layers)
        ]

    def shape(self, layer: int) -> EntryShape:
        return replace(self.model.layout.entry_shape(layer), dtype="bfloat16")

    def put(self, entries: Entries) -> None:
        """Make the pages of the context hold these entries."""
        for layer, blocks in enumerate(entries):
            for block, raw in enumerate(blocks):
                numbers = torch.from_numpy(to_floats(raw, "bfloat16"))
                entry = self.model.kv.block(layer, self.pages, block)
                entry.copy_(numbers.view(entry.shape))

    def losses(self) -> NDArray[np.float64]:
        """Return -ln p of each scored token after the first, given all before it."""
        first, end = self.size.context, self.size.context + self.size.scored
        found = []
        for start in range(first, end, STEP):
            ids = self.ids[start : min(start + STEP, end)]
            hidden = self._forward(ids, start)
            for row in range(0, len(ids), LOGIT_ROWS):
                logits = self.model.transformer.logits(hidden[row : row + LOGIT_ROWS])
                targets = torch.tensor(self.ids[start + row + 1 : start + row + 1 + len(logits)])
                found.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().numpy())
        return np.concatenate(found)

    def continuation(self) -> list[int]:
        """Return the tokens that greedy decoding goes on with after the context."""
        at = self.size.context
        token, tokens = self.ids[at], []
        for position in range(at, at + self.size.generated):
            token = int(self.model.transformer.logits(self._forward([token], position)).argmax())
            tokens.append(token)
        return tokens

    def close(self) -> None:
        self.model.kv.release(self.pages)

    def _forward(self, ids: Sequence[int], first: int) -> torch.Tensor:
        model = self.model
        batch = Batch.build([Span(self.pages.tables, first, len(ids))], model.kv.page_tokens)
        return model.transformer.forward(torch.tensor(ids), batch, model.kv)

    def _entry(self, layer: int, block: int) -> bytes:
        entry = self.model.kv.block(layer, self.pages, block).flatten()
        return bytes(from_floats(entry.numpy(), "bfloat16"))


@dataclass
class CodecFound:
    """What one codec did to all windows of a model."""

    raw_bytes: int = 0
    payload_bytes: int = 0
    differences: list[NDArray[np.float64]] | None = None
    agreed: int = 0  # leading tokens of the continuations that are those of the exact KV
    generated: int = 0

    @property
    def ratio(self) -> float:
        return self.raw_bytes / self.payload_bytes


def run_codec(text: Text, codec: Codec, found: CodecFound) -> bool:
    """Put the context through `codec` and back into the pages. Return whether it is what it was."""
    decoded: Entries = []
    for layer, blocks in enumerate(text.entries):
        shape = text.shape(layer)
        payloads = [encode(raw, codec, shape, 0 if i else SINK_TOKENS) for i, raw in enumerate(blocks)]
        found.raw_bytes += sum(map(len, blocks))
        found.payload_bytes += sum(map(len, payloads))
        decoded.append([bytes(decode(payload, codec, shape)) for payload in payloads])
    text.put(decoded)
    return decoded == text.entries


def speeds(text: Text, codec: Codec) -> tuple[float, float]:
    """Return GB/s of KV that one core encodes and decodes: the best of some rounds, by the thread's own clock."""
    entries = [(text.shape(layer), raw) for layer, blocks in enumerate(text.entries) for raw in blocks]
    entries = entries[:: max(1, len(entries) // SPEED_ENTRIES)]
    payloads = [(shape, encode(raw, codec, shape)) for shape, raw in entries]
    num_bytes = sum(len(raw) for _, raw in entries)
    best_encode = best_decode = math.inf
    for _ in range(SPEED_ROUNDS):
        start = time.thread_time()
        for shape, raw in entries:
            encode(raw, codec, shape)
        middle = time.thread_time()
        for shape, payload in payloads:
            decode(payload, codec, shape)
        best_encode = min(best_encode, middle - start)
        best_decode = min(best_decode, time.thread_time() - middle)
    return num_bytes / best_encode / 1e9, num_bytes / best_decode / 1e9


def agreement(tokens: Sequence[int], exact: Sequence[int]) -> int:
    """Return how many leading tokens are equal."""
    return next((i for i, (a, b) in enumerate(zip(tokens, exact, strict=True)) if a != b), len(exact))


def measure_speed(model: LoadedModel, name: str, size: CodecSize, report: Report) -> None:
    """Add rows of size and speed: what a busy machine disturbs, in seconds."""
    text = Text(model, windows(name, 1, size.num_tokens)[0], size)
    for codec in Codec:
        if codec is not Codec.RAW:
            found = CodecFound()
            run_codec(text, codec, found)
            add_speed(name, codec, found.ratio, speeds(text, codec), report)
    text.close()


def measure_fidelity(model: LoadedModel, name: str, size: CodecSize, report: Report) -> None:
    """Add rows of size and of what is lost, in minutes."""
    found = {codec: CodecFound(differences=[]) for codec in Codec if codec is not Codec.RAW}
    for ids in tqdm(windows(name, size.num_windows, size.num_tokens), desc=name, leave=False):
        text = Text(model, ids, size)
        text.put(text.entries)
        exact, exact_tokens = text.losses(), text.continuation()
        for codec, result in found.items():
            if run_codec(text, codec, result):
                losses, tokens = exact, exact_tokens
            else:
                losses, tokens = text.losses(), text.continuation()
            assert result.differences is not None
            result.differences.append(losses - exact)
            result.agreed += agreement(tokens, exact_tokens)
            result.generated += len(exact_tokens)
        text.close()
    for codec, result in found.items():
        add_fidelity(name, codec, result, report)


def add_speed(name: str, codec: Codec, ratio: float, speed: tuple[float, float], report: Report) -> None:
    """Add a row, and the check of speed."""
    link = [1000 * 8 * gb_per_s / ratio for gb_per_s in speed]
    report.rows.append(
        {
            "model": name,
            "codec": codec.name.lower(),
            "ratio": round(ratio, 3),
            "encode_gb_per_s": round(speed[0], 3),
            "decode_gb_per_s": round(speed[1], 3),
            "encode_link_mbit_per_s": round(link[0]),
            "decode_link_mbit_per_s": round(link[1]),
        }
    )
    if codec in LEAST_RATIO:
        label = f"{name}, {codec.name.lower()}: link that one core fills or empties"
        report.checks.append(at_least(label, min(link), LEAST_LINK_MBIT, "Mbit/s"))


def add_fidelity(name: str, codec: Codec, result: CodecFound, report: Report) -> None:
    """Add a row, and the checks of its class."""
    assert result.differences is not None
    differences = np.concatenate(result.differences)
    loss = 100 * math.expm1(differences.mean())
    error = 100 * float(differences.std()) / math.sqrt(differences.size)
    report.rows.append(
        {
            "model": name,
            "codec": codec.name.lower(),
            "ratio": round(result.ratio, 3),
            "perplexity_change_percent": round(loss, 4),
            "standard_error_percent": round(error, 4),
            "tokens_scored": differences.size,
            "greedy_agreement": round(result.agreed / result.generated, 3),
        }
    )
    label = f"{name}, {codec.name.lower()}"
    if codec in LEAST_RATIO:
        name_of_ratio = f"{label}: bytes of bfloat16 to bytes of payload"
        report.checks.append(at_least(name_of_ratio, result.ratio, LEAST_RATIO[codec]))
    if differences.size >= LEAST_SCORED and codec in LEAST_RATIO:
        limit = MOST_LOSS[codec.spec.fidelity]
        report.checks.append(at_most(f"{label}: loss of perplexity, and one standard error", loss + error, limit, "%"))


def measure(options: argparse.Namespace) -> Report:
    torch.set_num_threads(options.threads or torch.get_num_threads())
    size = QUICK if options.quick else FULL
    size = replace(size, num_windows=options.windows or size.num_windows)
    report = Report(
        settings={
            "text": "Python's language reference",
            "windows": size.num_windows,
            "context_tokens": size.context,
            "scored_tokens": size.scored,
            "generated_tokens": size.generated,
        }
    )
    for name in options.model or (BUILT_IN[:1] if options.quick else BUILT_IN):
        settings = {"PRFAAS_MODEL": name, "PRFAAS_DTYPE": "float32", "PRFAAS_MAX_MODEL_LEN": str(size.num_tokens)}
        model = load_model(load(EngineSettings, settings))
        if options.only != "fidelity":
            measure_speed(model, name, size, report)
        if options.only != "speed":
            measure_fidelity(model, name, size, report)
    return report


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", action="append", choices=BUILT_IN, help="may be repeated; default: both")
    parser.add_argument("--windows", type=int, help="windows of text")
    parser.add_argument("--only", choices=("speed", "fidelity"), help="speed: size and GB/s on the first window's KV")
    parser.add_argument("--threads", type=int, help="torch threads")


if __name__ == "__main__":
    sys.exit(harness.main("codec", measure, add_options, description=__doc__))
