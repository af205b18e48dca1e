"""Opens the object tier that the settings name."""

from time import monotonic, time
from urllib.parse import quote

from services.cachepool.settings import PoolSettings
from services.cachepool.store.store import Store
from services.cachepool.tiers.breaker import Breaker
from services.cachepool.tiers.bucket import Bucket, ObjectClient, local_folder, open_client
from services.cachepool.tiers.collector import TierCollector
from services.cachepool.tiers.context import TierContext
from services.cachepool.tiers.index import ObjectIndex
from services.cachepool.tiers.metrics import TierMetrics
from services.cachepool.tiers.tier import ObjectTier, TierLimits
from shared.errors import SettingsError
from shared.metrics import Metrics

READ_LIMIT_CALLS = 2
"""All reads for one reader take at most this many times the time limit of a call: then computing is quicker."""


def open_tier(
    settings: PoolSettings,
    store: Store,
    metrics: Metrics,
    client: ObjectClient | None = None,
) -> ObjectTier:
    """Open the tier; nothing is asked of the object store yet. Raises `SettingsError` when its URL cannot be one.

    `client` takes the place of the one that the URL names.
    """
    url = f"{settings.object_url.rstrip('/')}/{quote(settings.worker_id)}"
    try:
        client = client or open_client(url, settings.object_timeout_s)
    except ValueError as error:
        raise SettingsError(f"PRFAAS_POOL_OBJECT_URL: {error} (got {settings.object_url!r})") from error
    counters = TierMetrics(metrics)
    index = ObjectIndex(settings.object_bytes, monotonic)
    bucket = Bucket(client, settings.object_timeout_s, counters.on_call)
    context = TierContext(bucket, index, Breaker(monotonic), counters, time)
    limits = TierLimits(
        max_waiting=settings.object_queue,
        max_writes=settings.object_writes,
        max_reads=settings.object_reads,
        read_limit_s=READ_LIMIT_CALLS * settings.object_timeout_s,
    )
    tier = ObjectTier(context, store, limits, local_folder(url))
    metrics.registry.register(TierCollector(index, lambda: tier.writes.num_waiting))
    return tier
