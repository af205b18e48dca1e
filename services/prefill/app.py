"""Composition root of the prefill service."""

from collections.abc import Callable
from functools import partial

from services.prefill.backlog import Backlog
from services.prefill.engine import PrefillEngine
from services.prefill.page_queue import PageQueue
from services.prefill.promises import Promises
from services.prefill.servicer import PrefillServicer
from services.prefill.settings import PrefillSettings
from services.prefill.worker import PrefillWorker
from shared.config import load
from shared.engine.costs.load import EngineLoad
from shared.engine.host import EngineHost, serve_engine
from shared.proto.prfaas_pb2_grpc import add_PrefillServicer_to_server
from shared.service.lifecycle import Lifecycle


async def run(lifecycle: Lifecycle) -> None:
    """Serve until the lifecycle says stop. Raises `SettingsError`, `ModelFileError`."""
    settings = load(PrefillSettings)
    await serve_engine(lifecycle, settings, "prefill", partial(build_prefill, settings))


def build_prefill(settings: PrefillSettings, host: EngineHost) -> Callable[[], EngineLoad]:
    """Put a prefill worker on `host`; return what states its load."""
    model, metrics = host.model, host.metrics
    engine = PrefillEngine(
        model.transformer, host.torch_thread, host.transfer, settings.chunk_tokens, metrics, host.costs
    )
    pages = PageQueue(model.kv, settings.max_waiting, settings.stride_tokens)
    promises = Promises(settings.max_waiting)
    backlog = Backlog(host.costs, settings.chunk_tokens)
    worker = PrefillWorker(host.pool, host.transfer, engine, pages, promises, backlog, metrics)
    add_PrefillServicer_to_server(PrefillServicer(model, worker), host.server.grpc)
    host.jobs.start(engine.run(), name="prefill engine")
    running = metrics.gauge("num_requests_running", "Prompts being computed or waiting for the model")
    running.set_function(lambda: engine.num_jobs)
    waiting = metrics.gauge("num_requests_waiting", "Prompts waiting for KV memory, or for one with the same beginning")
    waiting.set_function(lambda: pages.num_waiting + promises.num_waiting)

    def load() -> EngineLoad:
        return EngineLoad(
            running=engine.num_jobs,
            waiting=pages.num_waiting + promises.num_waiting,
            tokens_per_s=engine.tokens_per_s,
            queued=backlog.queued(),
            step_tokens=settings.chunk_tokens,
            arrivals_per_s=backlog.arrivals_per_s,
            hand_over_bytes_per_s=host.transfer.sending.per_s,
        )

    return load
