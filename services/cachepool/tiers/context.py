"""What the parts of the object tier share."""

from collections.abc import Callable
from dataclasses import dataclass

from services.cachepool.tiers.breaker import Breaker
from services.cachepool.tiers.bucket import Bucket
from services.cachepool.tiers.index import ObjectIndex
from services.cachepool.tiers.metrics import TierMetrics


@dataclass(frozen=True)
class TierContext:
    bucket: Bucket
    index: ObjectIndex
    breaker: Breaker
    metrics: TierMetrics
    wall_clock: Callable[[], float]  # seconds since 1970: an object's last use is compared over the pool's lives
