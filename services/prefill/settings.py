"""What an operator can set on a prefill worker."""

from dataclasses import dataclass
from typing import ClassVar

from shared.engine.settings import EngineSettings


@dataclass(frozen=True, kw_only=True)
class PrefillSettings(EngineSettings):
    service: ClassVar[str] = "prefill"
