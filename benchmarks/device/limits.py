"""What the device can do at most: bfloat16 products, bytes read, bytes copied to and from the host."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.harness import Row

_GIB = 1 << 30


@dataclass(frozen=True)
class Measured:
    """The best of several repetitions each, on random data."""

    operations_per_s: float
    read_bytes_per_s: float
    to_host_bytes_per_s: float
    to_device_bytes_per_s: float

    def row(self) -> Row:
        return {
            "bf16_tflop_per_s": round(self.operations_per_s / 1e12, 1),
            "read_gb_per_s": round(self.read_bytes_per_s / 1e9, 1),
            "to_host_gb_per_s": round(self.to_host_bytes_per_s / 1e9, 1),
            "to_device_gb_per_s": round(self.to_device_bytes_per_s / 1e9, 1),
        }


def measure(device: torch.device, *, tiny: bool) -> Measured:
    size, num_bytes = (256, 1 << 20) if tiny else (8192, _GIB)
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    products = least_seconds(lambda: left @ right, device, 12)
    numbers = torch.randint(1 << 30, (4 * num_bytes // 8,), device=device)
    copy = torch.empty_like(numbers)
    read = min(
        least_seconds(numbers.sum, device, 6) / numbers.nbytes,
        least_seconds(lambda: copy.copy_(numbers), device, 6) / (2 * numbers.nbytes),
    )
    host = torch.empty(num_bytes // 8, dtype=numbers.dtype, pin_memory=device.type == "cuda")
    part = numbers[: num_bytes // 8]
    to_host = least_seconds(lambda: host.copy_(part, non_blocking=True), device, 4)
    to_device = least_seconds(lambda: part.copy_(host, non_blocking=True), device, 4)
    return Measured(2 * size**3 / products, 1 / read, num_bytes / to_host, num_bytes / to_device)


def least_seconds(call: Callable[[], object], device: torch.device, repetitions: int) -> float:
    """Return the shortest of several calls, each until the device is done, after one that is not counted."""
    call()
    times = []
    for _ in range(repetitions):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Give memory that nothing uses back, so that the next section finds it whole."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
