"""Composition root of the prefill service."""

from collections.abc import Callable
from functools import partial

from services.prefill.engine import PrefillEngine
from services.prefill.page_queue import PageQueue
from services.prefill.promises import Promises
from services.prefill.servicer import PrefillServicer
from services.prefill.settings import PrefillSettings
from services.prefill.worker import PrefillWorker
from shared.config import load
from shared.engine.host import EngineHost, EngineLoad, serve_engine
from shared.proto.prfaas_pb2_grpc import add_PrefillServicer_to_server
from shared.service.lifecycle import Lifecycle


async def run(lifecycle: Lifecycle) -> None:
    """Serve until the lifecycle says stop. Raises `SettingsError`, `ModelFileError`."""
    settings = load(PrefillSettings)
    await serve_engine(lifecycle, settings, "prefill", partial(build_prefill, settings))


def build_prefill(settings: PrefillSettings, host: EngineHost) -> Callable[[], EngineLoad]:
    """Put a prefill worker on `host`; return what states its load."""
    model, metrics = host.model, host.metrics
    engine = PrefillEngine(model.transformer, host.torch_thread, host.transfer, settings.chunk_tokens, metrics)
    pages = PageQueue(model.kv, settings.max_waiting, settings.stride_tokens)
    promises = Promises(settings.max_waiting)
    worker = PrefillWorker(host.pool, host.transfer, engine, pages, promises, metrics)
    add_PrefillServicer_to_server(PrefillServicer(model, worker), host.server.grpc)
    host.jobs.start(engine.run(), name="prefill engine")
    running = metrics.gauge("num_requests_running", "Prompts being computed or waiting for the model")
    running.set_function(lambda: engine.num_jobs)
    waiting = metrics.gauge("num_requests_waiting", "Prompts waiting for KV memory, or for one with the same beginning")
    waiting.set_function(lambda: pages.num_waiting + promises.num_waiting)
    return lambda: EngineLoad(engine.num_jobs, pages.num_waiting + promises.num_waiting, engine.tokens_per_s)
