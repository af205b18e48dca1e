"""Channel arguments of gRPC that both ends of the suite share, each with its reason."""

from typing import NamedTuple

DEFAULT_MAX_MESSAGE_BYTES = 64 << 20

Options = list[tuple[str, int]]

# A frame batch of 1 to 4 MiB must fit in the window of a long link from its first byte; gRPC's bandwidth probe
# enlarges the window further on links that need it.
_STREAM_WINDOW_BYTES = 4 << 20

# Of each of several channels that share a pull. What a window holds is bound to its channel, be that as slow as it
# may: small ones let all channels end together. The probe enlarges these too.
_CHANNEL_WINDOW_BYTES = 1 << 20

# What of a background stream may be on its way: the head start that it has over a foreground stream that comes now.
_BACKGROUND_WINDOW_BYTES = 256 << 10

_MAX_METADATA_BYTES = 32 << 10

DEFAULT_SILENCE_S = 2.5
"""A connection whose other end has not answered for so long counts as lost: a process that hangs is as dead as one that
is gone. gRPC's own threads answer, whatever Python does meanwhile."""

_PING_PART = 1 / 3
"""Of the silence: after so much of it a peer is asked for a sign of life, and has the rest to give one."""


class ChannelId(NamedTuple):
    """Which of several connections to one address; the first is the one that everybody shares."""

    number: int = 0
    is_background: bool = False  # its window is small, so that little of it is in the way of foreground channels


SHARED_CHANNEL = ChannelId()


def _common(max_message_bytes: int, silence_s: float) -> Options:
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.http2.lookahead_bytes", _STREAM_WINDOW_BYTES),
        ("grpc.keepalive_time_ms", int(silence_s * _PING_PART * 1000)),
        # gRPC up to 1.85 does not look at the first of these (grpc/grpc#39239); the second's default is a minute.
        ("grpc.keepalive_timeout_ms", int(silence_s * (1 - _PING_PART) * 1000)),
        ("grpc.http2.ping_timeout_ms", int(silence_s * (1 - _PING_PART) * 1000)),
        # A peer that vanishes without a FIN must be noticed on a stream that is silent for long, and before a call.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def server_options(max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES, silence_s: float = DEFAULT_SILENCE_S) -> Options:
    return [
        *_common(max_message_bytes, silence_s),
        ("grpc.so_reuseport", 0),  # or a second process would bind the same port and take half of the calls
        # Peers may be set to another silence than this server.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def client_options(max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES, silence_s: float = DEFAULT_SILENCE_S) -> Options:
    return [
        *_common(max_message_bytes, silence_s),
        # Connections belong to the channel, not to a table of the process: there a new channel to an address would wait
        # for as long as another one, whose peer was refused there before, backs off.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),  # the suite's own traffic never takes the proxy of the environment
        # A restarted peer is dialled again within a second; the default backs off up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),  # also the time limit of one attempt to connect
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),  # a restarted container has another address
    ]


def channel_options(channel_id: ChannelId) -> Options:
    """Return what sets a channel apart from the shared one of its address, on top of `client_options`."""
    options: Options = []
    if channel_id.number:
        options.append(("grpc.http2.lookahead_bytes", _CHANNEL_WINDOW_BYTES))
    if channel_id.is_background:
        options += [("grpc.http2.lookahead_bytes", _BACKGROUND_WINDOW_BYTES), ("grpc.http2.bdp_probe", 0)]
    return options
