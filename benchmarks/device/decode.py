"""Decode steps with sampling: tokens per second, beside what reading weights and KV allows, with graphs and without."""

import random
import time

import torch

from benchmarks.device.limits import Measured, free
from benchmarks.device.sequences import pages_for, reserve
from benchmarks.device.shapes import DevicePlan
from benchmarks.harness import Report, Spread, at_least
from benchmarks.roofline import decode, kv_bytes
from shared.model.attention.base import Attention
from shared.model.files.config import ModelConfig
from shared.model.layers.batch import Span
from shared.model.pages.kv import PagedKv
from shared.model.pages.reservation import Reservation
from shared.model.sampler.sampling import Row, sample
from shared.model.transformer import Transformer
from shared.sampling.params import SamplingParams

TARGET_SHARE = 0.7
KEPT_FREE_BYTES = 5e9
"""Of the device's memory, for graphs, logits and the allocator's odd ends."""
NUM_WARM_UP = 3


def measure(
    plan: DevicePlan, config: ModelConfig, model: Transformer, attention: Attention, limits: Measured
) -> Report:
    report = Report()
    for batch, wanted in plan.decode:
        context = min(wanted, _affordable(config, model.device, batch, plan.decode_steps))
        work = decode(config, batch, context)
        least_s = work.num_bytes / limits.read_bytes_per_s
        kv = pages_for(config, attention, model, [context + plan.decode_steps] * batch)
        _fill(kv, config)
        reservations = [reserve(kv, context + plan.decode_steps) for _ in range(batch)]
        share = 0.0
        for captured in (False, True) if model.can_capture else (False,):
            if captured:
                model.capture_steps(kv, context + plan.decode_steps, batch)
            seconds = _steps(plan, config, model, kv, reservations, context)
            spread = Spread.of([batch / one for one in seconds])
            share = spread.median / batch * least_s
            report.rows.append(
                {
                    "model": plan.model,
                    "batch": batch,
                    "context": context,
                    "graphs": captured,
                    **spread.cells("tokens_per_s", 1),
                    "step_ms": round(batch / spread.median * 1000, 3),
                    "least_ms": round(least_s * 1000, 3),
                    "of_limit": round(share, 3),
                }
            )
        if model.device.type == "cuda":
            name = f"decode, batch {batch} at {context} tokens: share of what reading allows"
            report.checks.append(at_least(name, share, TARGET_SHARE))
        model.forget_graphs()
        del kv, reservations
        free(model.device)
    return report


def _affordable(config: ModelConfig, device: torch.device, batch: int, num_steps: int) -> int:
    """Return the context that memory has room for, in whole kilotokens."""
    if device.type != "cuda":
        return config.max_context - num_steps
    available, _ = torch.cuda.mem_get_info(device)
    return int((available - KEPT_FREE_BYTES) / batch / (kv_bytes(config, 1024))) * 1024


def _fill(kv: PagedKv, config: ModelConfig) -> None:
    """Random keys and values: zeros are read faster than data."""
    for layer in range(config.num_layers):
        kv.keys_of(layer).normal_()
        kv.values_of(layer).normal_()


@torch.inference_mode()
def _steps(
    plan: DevicePlan,
    config: ModelConfig,
    model: Transformer,
    kv: PagedKv,
    reservations: list[Reservation],
    context: int,
) -> list[float]:
    rng = random.Random(0)
    ids = [rng.randrange(config.vocab_size) for _ in reservations]
    greedy = SamplingParams(max_tokens=1, temperature=0.0)
    found = []
    for step in range(plan.decode_steps):
        position = context + step
        started = time.perf_counter()
        after = model.step(ids, [Span(r.tables, position, 1) for r in reservations], kv)
        if after.best is not None:
            ids = after.best()
        else:
            chosen = sample(model.logits(after.hidden), [Row(greedy, position + 1)] * len(ids))
            ids = [sampled.token for sampled in chosen]
        found.append(time.perf_counter() - started)
    return found[min(NUM_WARM_UP, len(found) - 1) :]
