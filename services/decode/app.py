"""Composition root of the decode service."""

from collections.abc import Callable
from functools import partial

from services.decode.engine import DecodeEngine
from services.decode.servicer import DecodeServicer
from services.decode.settings import DecodeSettings
from shared.config import load
from shared.engine.costs.load import EngineLoad
from shared.engine.host import EngineHost, serve_engine
from shared.model.grammar.grammars import Grammars
from shared.model.grammar.vocabulary import GrammarVocabulary
from shared.proto.prfaas_pb2_grpc import add_DecodeServicer_to_server
from shared.service.lifecycle import Lifecycle


async def run(lifecycle: Lifecycle) -> None:
    """Serve until the lifecycle says stop. Raises `SettingsError`, `ModelFileError`."""
    settings = load(DecodeSettings)
    await serve_engine(lifecycle, settings, "decode", partial(build_decode, settings))


def build_decode(settings: DecodeSettings, host: EngineHost) -> Callable[[], EngineLoad]:
    """Put a decode worker on `host`; return what states its load."""
    engine = DecodeEngine(settings, host.model, host.torch_thread, host.pool, host.transfer, host.metrics, host.costs)
    grammars = Grammars(partial(GrammarVocabulary.load, host.model.files.path, host.model.config.vocab_size))
    add_DecodeServicer_to_server(DecodeServicer(host.model, engine, grammars), host.server.grpc)
    host.jobs.start(engine.run(), name="decode engine")
    host.jobs.start(engine.publisher.run(), name="block publisher")
    if host.model.transformer.device.type == "cpu":
        host.jobs.start(engine.ready_pages.run(), name="ready pages")
    running = host.metrics.gauge("num_requests_running", "Requests that hold pages")
    running.set_function(lambda: engine.num_running)
    waiting = host.metrics.gauge("num_requests_waiting", "Requests waiting for KV memory")
    waiting.set_function(lambda: engine.num_waiting)
    return engine.load
