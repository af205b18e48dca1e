"""Prefill through the engine's own step: tokens per second, and how much of the device's matrix products that is."""

import random
import time

from benchmarks.device.limits import Measured
from benchmarks.device.sequences import pages_for, reserve
from benchmarks.device.shapes import DevicePlan
from benchmarks.harness import Report, Spread, at_least
from benchmarks.roofline import layer_parameters, prefill
from services.prefill.step import PrefillStep, PromptPart
from shared.engine.stage import Stager, select_stager
from shared.model.attention.base import Attention
from shared.model.files.config import ModelConfig
from shared.model.layers.batch import Span
from shared.model.pages.kv import PagedKv
from shared.model.pages.reservation import Reservation
from shared.model.transformer import Transformer

TARGET_SHARE, TARGET_FROM_TOKENS = 0.6, 8192


def measure(
    plan: DevicePlan, config: ModelConfig, model: Transformer, attention: Attention, limits: Measured
) -> Report:
    report = Report()
    for length in plan.prefill_lengths:
        seconds = _seconds(plan, config, model, attention, length)
        operations = computed_operations(config, length)
        spread = Spread.of([length / one for one in seconds])
        share = spread.median * operations / length / limits.operations_per_s
        report.rows.append(
            {
                "model": plan.model,
                "prompt_tokens": length,
                **spread.cells("tokens_per_s", 0),
                "tflop_per_s": round(spread.median * operations / length / 1e12, 1),
                "of_peak": round(share, 3),
            }
        )
        if model.device.type == "cuda" and length >= TARGET_FROM_TOKENS:
            report.checks.append(at_least(f"prefill, {length} tokens: share of the matrix peak", share, TARGET_SHARE))
    return report


def computed_operations(config: ModelConfig, num_tokens: int) -> float:
    """Return what a prefill worker computes: no output matrix, and of the last layer K and V only."""
    queries, keys = config.num_heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
    per_layer = layer_parameters(config) / config.num_layers
    unused = per_layer - config.hidden_size * (queries + keys)
    window = config.layers[-1].window or num_tokens
    attended = sum(min(position + 1, window) for position in range(num_tokens))
    whole = prefill(config, num_tokens).operations - 2.0 * config.vocab_size * config.hidden_size
    return whole - 2.0 * unused * num_tokens - 4.0 * queries * attended


def _seconds(
    plan: DevicePlan, config: ModelConfig, model: Transformer, attention: Attention, length: int
) -> list[float]:
    stride = 2 * plan.chunk_tokens
    kv = pages_for(config, attention, model, [length], stride)
    stager = select_stager(model.device)
    rng = random.Random(length)
    prompt = [rng.randrange(config.vocab_size) for _ in range(length)]
    found = []
    for repetition in range(1 + plan.repetitions):
        reservation = reserve(kv, length, stride)
        started = time.perf_counter()
        for first in range(0, length, plan.chunk_tokens):
            end = min(length, first + plan.chunk_tokens)
            compute(model, kv, stager, reservation, prompt, first, end)
            kv.slide(reservation, end)
        if repetition:  # the first compiles and allocates
            found.append(time.perf_counter() - started)
        kv.release(reservation)
    return found


def compute(
    model: Transformer,
    kv: PagedKv,
    stager: Stager,
    reservation: Reservation,
    prompt: list[int],
    first: int,
    end: int,
) -> None:
    """Run one chunk through all layers, as the prefill engine does."""
    assert kv.cover(reservation, first, end), "pages were reserved for it"
    part = PromptPart(Span(reservation.tables, first, end - first), prompt[first:end], lambda: False)
    PrefillStep(model, kv, stager, [part]).run(lambda _layer, _mark, _parts: None, lambda _part: None)
