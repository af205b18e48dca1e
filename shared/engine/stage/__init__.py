"""KV between the device's pages and bytes on the host: direct on the CPU, over side streams on a GPU."""

import torch

from shared.engine.stage.cuda import CudaStager
from shared.engine.stage.host import HostStager
from shared.engine.stage.registered import CudaRegistrar, RegisteredMemory
from shared.engine.stage.stager import Arrival, Departure, Mark, Stager

__all__ = [
    "Arrival",
    "CudaStager",
    "Departure",
    "HostStager",
    "Mark",
    "RegisteredMemory",
    "Stager",
    "memory_for",
    "select_stager",
]


def memory_for(device: torch.device) -> RegisteredMemory:
    """Return what knows the mappings that `device` may copy from and to directly. Its owner closes it."""
    return RegisteredMemory(CudaRegistrar(device) if device.type == "cuda" else None)


def select_stager(device: torch.device, memory: RegisteredMemory | None = None) -> Stager:
    """Return the stager for pages on `device`, which copies directly where `memory` allows."""
    return CudaStager(device, memory) if device.type == "cuda" else HostStager()
