"""What steps are held to take before any was measured: the time a stated machine needs at least. Pure.

A worker that has never computed tells this of itself, so it must be neither so good that it attracts everything nor
so bad that it is never asked. The stated rates are what our own kernels reach on common machines, not their limits;
the first steps correct them (`shared.measuring.fitting`).
"""

import math
from dataclasses import dataclass

from shared.engine.settings import EngineSettings
from shared.kv.layout import ITEM_BYTES
from shared.model.files.config import ModelConfig
from shared.model.files.stored import stored_tensors

LAUNCH_S = 10e-6
"""A layer's calls into kernels, by the order of magnitude, on a CPU as on a GPU."""

TURN_S = 1e-3
"""A turn of the engine's loop: plan, hop to the thread and back, results."""

ROW_TURN_S = 20e-6
"""What the loop does for each running request of a step."""


@dataclass(frozen=True)
class MachineRates:
    """What kernels reach, in multiplications or additions and bytes of memory per second."""

    operations_per_s: float
    bytes_per_s: float


GPU = MachineRates(operations_per_s=300e12, bytes_per_s=2e12)
"""About half of a data-centre GPU of 2023 (NVIDIA H100: 989e12 in bfloat16, 3.35e12)."""

CPU_OPERATIONS_PER_S = 50e9
"""Of one thread: half of what AVX2 can do in float32 at 3 GHz."""

CPU_BYTES_PER_S = 10e9
"""Of all threads: one memory channel's worth, since neighbours share them."""


def machine_rates(device: str, num_threads: int) -> MachineRates:
    """Return the stated rates of a kind of device."""
    if device.startswith("cuda"):
        return GPU
    return MachineRates(CPU_OPERATIONS_PER_S * num_threads, CPU_BYTES_PER_S)


def prior_of(config: ModelConfig, settings: EngineSettings) -> tuple[float, ...]:
    """Return the leading parts of a `StepProfile`: three for prefill, all five for decode."""
    rates, item_bytes = machine_rates(settings.device, settings.num_threads), ITEM_BYTES[settings.dtype]
    num_weights = sum(
        math.prod(tensor.shape)
        for tensor in stored_tensors(config)
        if tensor.name.startswith("model.layers") and len(tensor.shape) == 2
    )
    token_s = 2 * num_weights / rates.operations_per_s
    # A product and a sum for each score, and the same again for its share of the values.
    pair_s = 4 * config.num_layers * config.num_heads * config.head_dim / rates.operations_per_s
    base_s = TURN_S + LAUNCH_S * config.num_layers + num_weights * item_bytes / rates.bytes_per_s
    if settings.service == "prefill":
        return base_s, token_s, pair_s
    vocabulary = config.vocab_size * config.hidden_size
    row_s = ROW_TURN_S + token_s + 2 * vocabulary / rates.operations_per_s
    kv_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * item_bytes
    return base_s + vocabulary * item_bytes / rates.bytes_per_s, token_s, pair_s, row_s, kv_bytes / rates.bytes_per_s
