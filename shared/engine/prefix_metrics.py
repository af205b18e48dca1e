"""Where the KV of an engine's prompts was found, in vLLM's words: on the device, or outside, in a pool."""

from shared.metrics import Metrics


class PrefixMetrics:
    """Counts each prompt once, in tokens. Hits of the pool include what another worker has just computed for it."""

    def __init__(self, metrics: Metrics) -> None:
        self._queries = metrics.counter("prefix_cache_queries", "Prompt tokens looked up on the device")
        self._hits = metrics.counter("prefix_cache_hits", "Prompt tokens whose KV the device had")
        self._external_queries = metrics.counter(
            "external_prefix_cache_queries", "Prompt tokens that the device did not have"
        )
        self._external_hits = metrics.counter("external_prefix_cache_hits", "Prompt tokens whose KV a pool brought")

    def looked_up(self, num_tokens: int, on_device: int, present: int) -> None:
        """Count a prompt: its tokens, the leading ones that the device had, and all that were not computed here."""
        on_device = min(on_device, present)
        self._queries.inc(num_tokens)
        self._hits.inc(on_device)
        self._external_queries.inc(num_tokens - on_device)
        self._external_hits.inc(present - on_device)
