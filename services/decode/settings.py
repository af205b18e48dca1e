"""What an operator can set on a decode worker."""

from dataclasses import dataclass
from typing import ClassVar

from shared.config import positive, setting
from shared.engine.settings import EngineSettings


@dataclass(frozen=True, kw_only=True)
class DecodeSettings(EngineSettings):
    service: ClassVar[str] = "decode"

    max_batch: int = setting("PRFAAS_MAX_BATCH", 64, check=positive, help="requests that hold pages at a time")
    tail_tokens_per_step: int = setting(
        "PRFAAS_TAIL_TOKENS_PER_STEP",
        16,
        check=positive,
        help="prompt tokens (through all layers) computed in a step beside a running batch",
    )
