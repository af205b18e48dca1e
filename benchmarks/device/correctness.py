"""Logits of the device's path against PyTorch's SDPA in float32 on the CPU, on the same weights.

bfloat16 has an error of its own: SDPA in bfloat16 on the same device says how large it is, and the path under test may
not have much more, however a prompt is cut, packed, or decoded token by token.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.device.sequences import Sequences, pages_for, reserve
from benchmarks.device.shapes import DevicePlan, config_of, random_weights, transformer
from benchmarks.harness import Check, Report, Row, at_most
from shared.model.attention.base import Attention
from shared.model.attention.sdpa import SdpaAttention
from shared.model.files.config import ModelConfig
from shared.model.transformer import Transformer

NUM_ROWS = 8
"""The last tokens of each sequence, whose logits are compared."""
ALLOWED = 1.5
"""Times the error of SDPA in bfloat16."""
Run = Callable[[Transformer, Sequences], list[Tensor]]
"""Computes sequences and returns the hidden states of the last `NUM_ROWS` tokens of each."""


def measure(plan: DevicePlan, device: torch.device, attention: Attention) -> Report:
    report = Report()
    for name, shape in plan.checked.items():
        rows, checks = _measure(name, shape, plan, device, attention)
        report.rows += rows
        report.checks += checks
    return report


def _measure(
    name: str, shape: Mapping[str, Any], plan: DevicePlan, device: torch.device, attention: Attention
) -> tuple[list[Row], list[Check]]:
    config = config_of(shape)
    rng = random.Random(0)
    prompts = [[rng.randrange(config.vocab_size) for _ in range(length)] for length in plan.checked_lengths]
    weights = random_weights(config, torch.bfloat16, torch.device("cpu"))
    reference = transformer(config, {n: w.float() for n, w in weights.items()}, SdpaAttention())
    expected = _logits(reference, _computed(config, reference, SdpaAttention(), prompts, whole))
    placed = {n: w.to(device) for n, w in weights.items()}
    plain = transformer(config, placed, SdpaAttention())
    allowed = _error(_logits(plain, _computed(config, plain, SdpaAttention(), prompts, whole)), expected)
    rows: list[Row] = [
        {"model": name, "path": SdpaAttention.name, "case": "packed", "relative_error": allowed, "of_sdpa": 1.0}
    ]
    checks = []
    for case, run in RUNS.items():
        model = transformer(config, placed, attention)
        error = _error(_logits(model, _computed(config, model, attention, prompts, run)), expected)
        share = round(error / allowed, 3)
        rows.append({"model": name, "path": attention.name, "case": case, "relative_error": error, "of_sdpa": share})
        checks.append(at_most(f"{name}, {case}: error in parts of that of SDPA in bfloat16", share, ALLOWED))
    return rows, checks


def _computed(
    config: ModelConfig, model: Transformer, attention: Attention, prompts: list[list[int]], run: Run
) -> list[Tensor]:
    kv = pages_for(config, attention, model, [len(prompt) for prompt in prompts])
    return run(model, Sequences.of(prompts, kv))


def whole(model: Transformer, sequences: Sequences) -> list[Tensor]:
    """All sequences packed into one step."""
    parts = [(i, 0, len(ids)) for i, ids in enumerate(sequences.token_ids)]
    return [hidden[-NUM_ROWS:] for hidden in sequences.step(model, parts)]


def even_chunks(model: Transformer, sequences: Sequences) -> list[Tensor]:
    return [_chunked(model, sequences, i, [64] * (len(ids) // 64)) for i, ids in enumerate(sequences.token_ids)]


def uneven_chunks(model: Transformer, sequences: Sequences) -> list[Tensor]:
    """A cached block, a single token, what crosses a page by one."""
    sizes = [64, 1, 2 * sequences.kv.page_tokens - 64, 7]
    return [_chunked(model, sequences, i, sizes) for i in range(len(sequences.token_ids))]


def slid_windows(model: Transformer, sequences: Sequences) -> list[Tensor]:
    """Chunks of a page, letting go of the pages that window layers have slid past."""
    kv, size, found = sequences.kv, sequences.kv.page_tokens, []
    for reservation in sequences.reservations:
        kv.release(reservation)
    for ids in sequences.token_ids:
        reservation = reserve(kv, len(ids), size)
        alone = Sequences([ids], [reservation], kv)
        last = len(ids) - NUM_ROWS
        for first in range(0, last, size):
            assert kv.cover(reservation, first, min(last, first + size)), "a guarantee was too small"
            alone.step(model, [(0, first, min(last, first + size))])
            kv.slide(reservation, min(last, first + size))
        assert kv.cover(reservation, last, len(ids)), "a guarantee was too small"
        found += alone.step(model, [(0, last, len(ids))])
    return found


def _chunked(model: Transformer, sequences: Sequences, number: int, sizes: list[int]) -> Tensor:
    """Compute a sequence in chunks of these sizes as far as they go, then all but the last rows, then those."""
    first, last = 0, len(sequences.token_ids[number]) - NUM_ROWS
    for size in sizes:
        end = min(last, first + size)
        if end > first:
            sequences.step(model, [(number, first, end)])
        first = end
    if last > first:
        sequences.step(model, [(number, first, last)])
    return sequences.step(model, [(number, last, last + NUM_ROWS)])[0]


def paged_decode(model: Transformer, sequences: Sequences) -> list[Tensor]:
    """All but the last rows in one step, those one at a time for all sequences together."""
    ends = [len(ids) - NUM_ROWS for ids in sequences.token_ids]
    sequences.step(model, [(i, 0, end) for i, end in enumerate(ends)])
    steps = [sequences.decode(model, [end + i for end in ends]).clone() for i in range(NUM_ROWS)]
    return list(torch.stack(steps, dim=1))


def captured_decode(model: Transformer, sequences: Sequences) -> list[Tensor]:
    """The same from CUDA graphs, where there are any: three rows in a graph of four."""
    longest = max(len(ids) for ids in sequences.token_ids)
    model.capture_steps(sequences.kv, longest, len(sequences.token_ids))
    return paged_decode(model, sequences)


def captured_ragged(model: Transformer, sequences: Sequences) -> list[Tensor]:
    """Chunks of each sequence's own size in shared steps from graphs; the shorter decode beside the longer."""
    model.capture_steps(sequences.kv, max(len(ids) for ids in sequences.token_ids), len(sequences.token_ids))
    sizes = [200 >> number for number in range(len(sequences.token_ids))]
    done, found = [0] * len(sizes), [list[Tensor]() for _ in sizes]
    while parts := [
        (i, done[i], min(done[i] + sizes[i], max(done[i] + 1, len(ids) - NUM_ROWS)))
        for i, ids in enumerate(sequences.token_ids)
        if done[i] < len(ids)
    ]:
        for (i, first, end), hidden in zip(parts, sequences.last_states(model, parts), strict=True):
            if first >= len(sequences.token_ids[i]) - NUM_ROWS:
                found[i].append(hidden.clone())
            done[i] = end
    return [torch.stack(hidden) for hidden in found]


RUNS: dict[str, Run] = {
    "packed": whole,
    "chunks of 64": even_chunks,
    "uneven chunks": uneven_chunks,
    "slid windows": slid_windows,
    "decode": paged_decode,
    "decode, captured": captured_decode,
    "ragged, captured": captured_ragged,
}


def _logits(model: Transformer, hidden: list[Tensor]) -> Tensor:
    return torch.cat([model.logits(part.contiguous()).cpu().clone() for part in hidden])


def _error(actual: Tensor, expected: Tensor) -> float:
    """Return the relative error, as norms of all logits; not a number when one is none."""
    return float((actual - expected).norm() / expected.norm())
