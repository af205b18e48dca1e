"""What an operator can set on a decode worker."""

from dataclasses import dataclass
from typing import ClassVar

from shared.config import non_negative, positive, setting
from shared.engine.settings import EngineSettings


@dataclass(frozen=True, kw_only=True)
class DecodeSettings(EngineSettings):
    service: ClassVar[str] = "decode"

    max_batch: int = setting("PRFAAS_MAX_BATCH", 64, check=positive, help="requests that hold pages at a time")
    inter_token_s: float = setting(
        "PRFAAS_INTER_TOKEN_S",
        0.0,
        check=non_negative,
        help="latency target of a step of running requests that computes prompts too; 0: twice as long as without them",
    )
