"""The pool's calls on which frames travel: as generated, but with the (de)serialisers of `shared.pool.wire`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from shared.pool.lookup import decode_lookup, encode_lookup
from shared.pool.wire import decode_fetch, decode_publish, encode_fetch, encode_publish
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import CachePoolServicer, add_CachePoolServicer_to_server

if TYPE_CHECKING:  # generic in the stubs only
    Handlers = Mapping[str, grpc.RpcMethodHandler[Any, Any]]

SERVICE = "prfaas.v1.CachePool"


def add_pool_servicer(servicer: CachePoolServicer, server: grpc.aio.Server) -> None:
    """Add a servicer that gets and writes batches as sequences of frames.

    `Publish` gets what `decode_publish` returns, `Lookup` what `decode_lookup` returns, `Fetch` and `Probe` may write
    what `encode_fetch` takes; the other methods are as generated.
    """
    generated: Any = _Collected()
    add_CachePoolServicer_to_server(servicer, generated)
    handlers = dict(generated.handlers)
    handlers["Publish"] = grpc.stream_stream_rpc_method_handler(
        servicer.Publish, decode_publish, pb.PublishReply.SerializeToString
    )
    handlers["Fetch"] = grpc.unary_stream_rpc_method_handler(servicer.Fetch, pb.FetchRequest.FromString, encode_fetch)
    handlers["Probe"] = grpc.unary_stream_rpc_method_handler(servicer.Probe, pb.ProbeRequest.FromString, encode_fetch)
    handlers["Lookup"] = grpc.unary_unary_rpc_method_handler(
        servicer.Lookup, decode_lookup, pb.LookupReply.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


def fetch_call(channel: grpc.aio.Channel) -> Any:
    """Return the multi-callable of `Fetch`; replies come as from `decode_fetch`."""
    return channel.unary_stream(
        f"/{SERVICE}/Fetch",
        request_serializer=pb.FetchRequest.SerializeToString,
        response_deserializer=decode_fetch,
    )


def probe_call(channel: grpc.aio.Channel) -> Any:
    """Return the multi-callable of `Probe`; replies come as from `decode_fetch`."""
    return channel.unary_stream(
        f"/{SERVICE}/Probe",
        request_serializer=pb.ProbeRequest.SerializeToString,
        response_deserializer=decode_fetch,
    )


def publish_call(channel: grpc.aio.Channel) -> Any:
    """Return the multi-callable of `Publish` that takes what `encode_publish` takes."""
    return channel.stream_stream(
        f"/{SERVICE}/Publish",
        request_serializer=encode_publish,
        response_deserializer=pb.PublishReply.FromString,
    )


def lookup_call(channel: grpc.aio.Channel) -> Any:
    """Return the multi-callable of `Lookup` that takes keys."""
    return channel.unary_unary(
        f"/{SERVICE}/Lookup",
        request_serializer=encode_lookup,
        response_deserializer=pb.LookupReply.FromString,
    )


class _Collected:
    """What the generated function takes for a server: remembers the handlers."""

    def __init__(self) -> None:
        self.handlers: Handlers = {}

    def add_generic_rpc_handlers(self, _handlers: Any) -> None:
        pass  # the same handlers, wrapped

    def add_registered_method_handlers(self, _service: str, handlers: "Handlers") -> None:
        self.handlers = handlers
