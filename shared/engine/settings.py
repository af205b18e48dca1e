"""What an operator can set on either engine."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.config import non_negative, parse_bytes, positive, setting
from shared.lanes.settings import LaneSettings


def available_cores() -> int:
    """Cores this process may run on (a container's CPU set counts, a CPU quota does not)."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class EngineSettings(LaneSettings):
    """Model, memory and threads of an engine, and the pool it belongs to."""

    model: str = setting("PRFAAS_MODEL", "smollm2-135m-instruct", help="built-in name, model directory or GGUF file")
    dtype: Literal["float32", "bfloat16"] = setting("PRFAAS_DTYPE", "bfloat16", help="of weights, compute and KV")
    block_tokens: int = setting("PRFAAS_BLOCK_TOKENS", 64, check=positive, help="tokens of a KV block")
    max_model_len: int = setting("PRFAAS_MAX_MODEL_LEN", 0, check=non_negative, help="longest context; 0: the model's")
    cache_dir: Path = setting("PRFAAS_CACHE_DIR", Path("~/.cache/prfaas"), help="converted models")
    profile_dir: str = setting("PRFAAS_PROFILE_DIR", "", help="what steps took; empty: profiles in PRFAAS_CACHE_DIR")
    attention: Literal["auto", "sdpa", "flash"] = setting("PRFAAS_ATTENTION", "auto", help="attention implementation")
    weight_dtype: Literal["auto", "int8"] = setting(
        "PRFAAS_WEIGHT_DTYPE", "auto", help="auto: PRFAAS_DTYPE; int8: products read int8 copies (CPU only)"
    )
    kernels: Literal["auto", "native", "torch"] = setting(
        "PRFAAS_KERNELS", "auto", help="CPU kernels: auto is native where a C compiler is found, else torch"
    )
    device: str = setting("PRFAAS_DEVICE", "cpu", help="torch device: cpu, cuda, cuda:1 ...")
    kv_bytes: int = setting("PRFAAS_KV_BYTES", parse_bytes("1GiB"), parse=parse_bytes, check=positive, help="KV pages")
    chunk_tokens: int = setting("PRFAAS_CHUNK_TOKENS", 512, check=positive, help="prompt tokens computed at a time")
    threads: int = setting("PRFAAS_THREADS", 0, check=non_negative, help="torch threads; 0: all cores")
    stuck_step_s: float = setting(
        "PRFAAS_STUCK_STEP_S", 60.0, check=non_negative, help="a worker whose step takes so long ends; 0: never"
    )
    max_waiting: int = setting("PRFAAS_MAX_WAITING", 256, check=positive, help="requests that may wait for pages")
    pool: str = setting("PRFAAS_POOL", "127.0.0.1:7102", help="address of this datacenter's cache pool")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_tokens % self.block_tokens:
            raise ValueError(
                f"PRFAAS_CHUNK_TOKENS ({self.chunk_tokens}) must be a multiple of "
                f"PRFAAS_BLOCK_TOKENS ({self.block_tokens})"
            )

    @property
    def stride_tokens(self) -> int:
        """Tokens between two slides of a prompt's windows: a chunk is computed while the one before is being sent."""
        return 2 * self.chunk_tokens

    @property
    def num_threads(self) -> int:
        return self.threads or available_cores()
