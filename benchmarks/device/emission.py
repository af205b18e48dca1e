"""KV on its way to the host while the next layer computes: how much of the copying shows, and at what speed it goes."""

import queue
import random
import threading
import time
from dataclasses import dataclass

from benchmarks.device.limits import Measured
from benchmarks.device.sequences import pages_for, reserve
from benchmarks.device.shapes import BLOCK_TOKENS, DevicePlan
from benchmarks.harness import Report, Spread, at_least
from services.prefill.step import PrefillStep, PromptPart
from shared.engine.stage import Mark, Stager, select_stager
from shared.model.attention.base import Attention
from shared.model.files.config import ModelConfig
from shared.model.layers.batch import Span
from shared.model.pages.kv import PagedKv
from shared.model.pages.reservation import Reservation
from shared.model.transformer import Transformer

TARGET_HIDDEN = 0.95


@dataclass(frozen=True)
class _Chunk:
    reservation: Reservation
    first: int
    end: int

    def numbers(self, kv: PagedKv, layer: int) -> list[int]:
        blocks = range(self.first // BLOCK_TOKENS, self.end // BLOCK_TOKENS)
        return [kv.block_number(layer, self.reservation, block) for block in blocks]


class _Emission:
    """The second thread: stages each layer that is announced, and forgets the bytes."""

    def __init__(self, kv: PagedKv, stager: Stager) -> None:
        self._kv = kv
        self._stager = stager
        self._ready: queue.SimpleQueue[tuple[_Chunk, int, Mark] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="emission")
        self.num_bytes = 0
        self.busy_s = 0.0

    def announce(self, chunk: _Chunk, layer: int, mark: Mark) -> None:
        self._ready.put((chunk, layer, mark))

    def __enter__(self) -> "_Emission":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ready.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._ready.get()) is not None:
            chunk, layer, mark = item
            self._stager.reached(mark)  # so that `busy_s` is copying alone
            started = time.perf_counter()
            raws = self._stager.stage(mark, self._kv.blocks_of(layer), chunk.numbers(self._kv, layer))
            self.num_bytes += sum(len(raw) for raw in raws)
            self.busy_s += time.perf_counter() - started


def measure(
    plan: DevicePlan, config: ModelConfig, model: Transformer, attention: Attention, limits: Measured
) -> Report:
    """`hidden` is the part of the copying's own time by which sending does not lengthen a prompt's computation.

    Beside the model, copying is as slow as it may be: what gathers waits for a free multiprocessor.
    """
    kv = pages_for(config, attention, model, [plan.emission_tokens])
    reservation = reserve(kv, plan.emission_tokens)
    stager = select_stager(model.device)
    rng = random.Random(0)
    prompt = [rng.randrange(config.vocab_size) for _ in range(plan.emission_tokens)]
    chunks = [
        _Chunk(reservation, first, min(plan.emission_tokens, first + plan.chunk_tokens))
        for first in range(0, plan.emission_tokens, plan.chunk_tokens)
    ]
    alone, sending, speeds, hidden = [], [], [], []
    num_bytes = 0
    for repetition in range(1 + plan.repetitions):
        without = _compute(model, kv, stager, chunks, prompt, None)
        emission = _Emission(kv, stager)
        started = time.perf_counter()
        with emission:
            _compute(model, kv, stager, chunks, prompt, emission)
        total = time.perf_counter() - started
        if repetition:
            alone.append(without)
            sending.append(total)
            num_bytes = emission.num_bytes
            speeds.append(num_bytes / emission.busy_s)
            hidden.append(1 - max(0.0, total - without) / emission.busy_s)
    speed, share = Spread.of(speeds), Spread.of(hidden)
    undisturbed = num_bytes / min(_staging_s(model, kv, stager, chunks) for _ in range(1 + plan.repetitions))
    report = Report()
    report.rows.append(
        {
            "model": plan.model,
            "prompt_tokens": plan.emission_tokens,
            "computing_alone_ms": round(Spread.of(alone).median * 1000, 2),
            "computing_and_sending_ms": round(Spread.of(sending).median * 1000, 2),
            "mebibytes": round(num_bytes / 2**20, 1),
            **share.cells("hidden", 3),
            "beside_gb_per_s": round(speed.median / 1e9, 2),
            "alone_gb_per_s": round(undisturbed / 1e9, 2),
            "alone_of_pinned": round(undisturbed / limits.to_host_bytes_per_s, 3),
        }
    )
    if model.device.type == "cuda":
        report.checks.append(at_least("emission: share of the copying that is hidden", share.median, TARGET_HIDDEN))
    return report


def _staging_s(model: Transformer, kv: PagedKv, stager: Stager, chunks: list[_Chunk]) -> float:
    """Return the seconds of staging everything while nothing is computed."""
    started = time.perf_counter()
    for chunk in chunks:
        for layer in range(model.num_layers):
            for _ in stager.stage(None, kv.blocks_of(layer), chunk.numbers(kv, layer)):
                pass
    return time.perf_counter() - started


def _compute(
    model: Transformer,
    kv: PagedKv,
    stager: Stager,
    chunks: list[_Chunk],
    prompt: list[int],
    emission: _Emission | None,
) -> float:
    started = time.perf_counter()
    for chunk in chunks:

        def on_layer(layer: int, mark: Mark, _parts: object, chunk: _Chunk = chunk) -> None:
            if emission is not None:
                emission.announce(chunk, layer, mark)

        span = Span(chunk.reservation.tables, chunk.first, chunk.end - chunk.first)
        part = PromptPart(span, prompt[chunk.first : chunk.end], lambda: False)
        PrefillStep(model, kv, stager, [part]).run(on_layer, lambda _part: None)
    return time.perf_counter() - started
