"""What the gateway measures, under the names that vLLM's dashboards look for."""

import time
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.metrics import INTER_TOKEN_BUCKETS_S, PREFIX, REQUEST_BUCKETS_S, TTFT_BUCKETS_S, Metrics
from shared.model.text.cached import CachedTokenizer

_MODEL = ("model_name",)
_ENGINE_LABELS = ("model_name", "engine")


class GatewayMetrics:
    """One gateway's instruments. Token counts are those that clients are told in `usage`."""

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        base = (model_name, "gateway")
        counter, gauge, histogram = metrics.counter, metrics.gauge, metrics.histogram
        self.running = gauge("num_requests_running", "Requests being served.", _ENGINE_LABELS).labels(*base)
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens taken.", _ENGINE_LABELS).labels(*base)
        self.generation_tokens = counter("generation_tokens", "Tokens sent.", _ENGINE_LABELS).labels(*base)
        self.prefix_queries = counter(
            "prefix_cache_queries", "Prompt tokens looked up in the placement index.", _ENGINE_LABELS
        ).labels(*base)
        self.prefix_hits = counter(
            "prefix_cache_hits", "Prompt tokens whose KV was not computed again.", _ENGINE_LABELS
        ).labels(*base)
        self.ttft_s = histogram(
            "time_to_first_token_seconds", "From request to first token.", TTFT_BUCKETS_S, _ENGINE_LABELS
        ).labels(*base)
        self.inter_token_s = metrics.loop_histogram(  # the only instrument that every token passes
            "inter_token_latency_seconds", "Between tokens of one choice.", INTER_TOKEN_BUCKETS_S, _ENGINE_LABELS, base
        )
        self.e2e_s = histogram(
            "e2e_request_latency_seconds", "From request to last token.", REQUEST_BUCKETS_S, _ENGINE_LABELS
        ).labels(*base)
        self.waiting = gauge(
            "num_requests_waiting", "Choices that wait for their turn before they are sent to workers.", _ENGINE_LABELS
        ).labels(*base)
        self.queue_s = histogram(
            "request_queue_time_seconds", "Of choices that had to wait for their turn.", TTFT_BUCKETS_S, _ENGINE_LABELS
        ).labels(*base)
        self._model_name = model_name
        self._rejections = counter("admission_rejections", "Requests answered with 429.", (*_MODEL, "reason"))
        self._success = counter("request_success", "Finished requests.", (*_MODEL, "finished_reason"))
        self._by_source = counter("prompt_tokens_by_source", "Where prompt tokens' KV came from.", (*_MODEL, "source"))
        self._plans = counter("plans", "Plans by the place of prefill.", (*_MODEL, "kind"))
        self._rescues = counter("rescues", "Plans of which decode computed what came too late.", (*_MODEL, "kind"))
        self._prefill_failures = counter("prefill_failures", "Prefill calls that failed.", (*_MODEL, "code"))
        self._decode_failures = counter("decode_failures", "Decode calls that failed.", (*_MODEL, "code"))
        self._errors = counter("request_errors", "Requests answered with an error.", (*_MODEL, "code"))

    def planned(self, kind: str) -> None:
        self._plans.labels(self._model_name, kind).inc()

    def rescued(self, kind: str) -> None:
        self._rescues.labels(self._model_name, kind).inc()

    def prefill_failed(self, code: str) -> None:
        self._prefill_failures.labels(self._model_name, code).inc()

    def decode_failed(self, code: str) -> None:
        self._decode_failures.labels(self._model_name, code).inc()

    def rejected(self, reason: str) -> None:
        """`reason`: requests, queue, ttft or tpot."""
        self._rejections.labels(self._model_name, reason).inc()

    def request_failed(self, code: str) -> None:
        self._errors.labels(self._model_name, code).inc()

    def request_finished(self, reason: str) -> None:
        """`reason`: stop, length, abort or error."""
        self._success.labels(self._model_name, reason).inc()

    def prompt_done(self, *, cached: int, prefill: int, decode: int) -> None:
        """Count where the KV of one prompt's tokens came from."""
        self.prefix_hits.inc(cached)
        for source, num_tokens in (("cache", cached), ("prefill", prefill), ("decode", decode)):
            self._by_source.labels(self._model_name, source).inc(num_tokens)


class TextCollector(Collector):
    """Reads what is remembered of prompts' texts when scraped."""

    def __init__(self, texts: CachedTokenizer) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        figures = self._texts.figures
        chars = CounterMetricFamily(
            PREFIX + "prompt_text_chars", "Characters of prompts by where their token ids came from.", labels=["source"]
        )
        chars.add_metric(["cache"], figures.cached_chars)
        chars.add_metric(["tokenizer"], figures.encoded_chars)
        yield chars
        yield GaugeMetricFamily(PREFIX + "text_cache_bytes", "Memory of the cache of token ids.", figures.num_bytes)


class RequestTimer:
    """Times one choice: first token, gaps between tokens, the whole."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
        note: Callable[[float, int], None] = lambda _at, _num_tokens: None,
    ) -> None:
        """`note` is told when tokens have come, on `clock`, and how many."""
        self._metrics = metrics
        self._note = note
        self._clock = clock
        self._started_at = clock()
        self._last_at: float | None = None

    def tokens(self, num_tokens: int) -> None:
        """Note that tokens have arrived."""
        if num_tokens == 0:
            return
        now = self._clock()
        self._note(now, num_tokens)
        if self._last_at is None:
            self._metrics.ttft_s.observe(now - self._started_at)
        else:
            self._metrics.inter_token_s.observe((now - self._last_at) / num_tokens)
        self._last_at = now

    def finished(self) -> None:
        self._metrics.e2e_s.observe(self._clock() - self._started_at)
