"""Settings from the environment: frozen dataclasses whose every problem is reported at once."""

import math
import os
import socket
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from shared.errors import SettingsError

T = TypeVar("T")

_SIZE_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3}
_SIZE_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tb": 1000**4, "tib": 1 << 40}
_BOOLS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_WILDCARD_HOSTS = ("0.0.0.0", "::")  # addresses to bind to, not to dial


def setting(
    env: str,
    default: Any = MISSING,
    *,
    help: str = "",  # noqa: A002 - argparse's word for the same thing
    parse: Callable[[str], Any] | None = None,
    check: Callable[[Any], str | None] | None = None,
    is_secret: bool = False,
) -> Any:
    """Declare a dataclass field that `load` reads from the variable `env`; without a default it must be set.

    `parse` turns the text into the value and raises ValueError; `check` returns what is wrong with the value, or None.
    A variable that is set to the empty string counts as unset, as in compose files. A secret is never shown.
    """
    metadata = {"env": env, "help": help, "parse": parse, "check": check}
    return field(default=default, metadata=metadata, repr=not is_secret)


def load(cls: type[T], environ: Mapping[str, str] | None = None) -> T:
    """Build `cls` from the environment. Raises SettingsError with one line for each problem."""
    environ = os.environ if environ is None else environ
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for item in _settings(cls):
        env = item.metadata["env"]
        text = environ.get(env, "").strip()
        if not text:
            if item.default is MISSING:
                problems.append(f"{env}: must be set{_because(item)}")
            continue
        try:
            value = (item.metadata["parse"] or parser_of(hints[item.name]))(text)
        except ValueError as error:
            problems.append(f"{env}: {error}{_got(item, text)}")
            continue
        check = item.metadata["check"]
        if check is not None and (problem := check(value)) is not None:
            problems.append(f"{env}: {problem}{_got(item, text)}")
        values[item.name] = value
    if not problems:
        try:
            return cls(**values)
        except ValueError as error:  # a rule between several settings, raised by __post_init__
            problems.append(str(error))
    raise SettingsError("\n".join(problems))


def describe(cls: type[Any]) -> str:
    """Return a table of the settings of `cls`: variable, default, meaning."""
    rows = [("variable", "default", "meaning")]
    rows += [(f.metadata["env"], _shown_default(f), f.metadata["help"]) for f in _settings(cls)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{env:<{widths[0]}}  {default:<{widths[1]}}  {text}".rstrip() for env, default, text in rows)


def parse_bytes(text: str) -> int:
    """Read a size such as `512MiB`, `2 GB` or `4096`. Raises ValueError."""
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = text.strip()[len(number) :].lower()
    if unit not in _SIZE_UNITS:
        raise ValueError(f"unknown unit {unit!r} (use one of KiB, MiB, GiB, TiB, KB, MB, GB)")
    try:
        size = float(number) * _SIZE_UNITS[unit]
        num_bytes = int(size)
    except (ValueError, OverflowError):
        raise ValueError("not a size, such as 512MiB") from None
    if num_bytes < 0:
        raise ValueError("must not be negative")
    return num_bytes


def positive(value: float) -> str | None:
    return None if value > 0 else "must be greater than 0"


def non_negative(value: float) -> str | None:
    return None if value >= 0 else "must not be negative"


def fraction(value: float) -> str | None:
    return None if 0 <= value <= 1 else "must lie between 0 and 1"


def collector(value: str) -> str | None:
    """Check the address of a collector of traces."""
    parts = urlsplit(value)
    fits = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/")
    return None if fits else "must be http://host:port or https://host:port"


def port(value: int) -> str | None:
    return None if 0 <= value <= 65535 else "must be a port between 0 and 65535 (0: any free port)"


@dataclass(frozen=True, kw_only=True)
class SecuritySettings:
    """How connections are encrypted, and who is at their other ends."""

    security: Literal["none", "mtls"] = setting(
        "PRFAAS_SECURITY", "none", help="identity and encryption of all connections: none or mtls"
    )
    certs: Path | None = setting(
        "PRFAAS_CERTS", None, help="folder of `prfaas certs`: ca.pem, and <role>-<dc>.pem and .key of each process"
    )
    tls_ca: Path | None = setting("PRFAAS_TLS_CA", None, help="trusted authorities, PEM (default: of PRFAAS_CERTS)")
    tls_cert: Path | None = setting("PRFAAS_TLS_CERT", None, help="own certificate, PEM (default: of PRFAAS_CERTS)")
    tls_key: Path | None = setting("PRFAAS_TLS_KEY", None, help="own private key, PEM (default: of PRFAAS_CERTS)")
    allow_plaintext: bool = setting(
        "PRFAAS_ALLOW_PLAINTEXT", False, help="allow connections in plain text beyond this machine"
    )
    kafka_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = setting(
        "PRFAAS_KAFKA_PROTOCOL", "plaintext", help="how brokers are spoken to: plaintext, ssl, sasl_plaintext, sasl_ssl"
    )
    kafka_ca: Path | None = setting(
        "PRFAAS_KAFKA_CA", None, help="authorities of the brokers, PEM (default: the system's)"
    )
    kafka_cert: Path | None = setting("PRFAAS_KAFKA_CERT", None, help="certificate shown to the brokers, PEM")
    kafka_key: Path | None = setting("PRFAAS_KAFKA_KEY", None, help="private key of PRFAAS_KAFKA_CERT, PEM")
    kafka_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = setting(
        "PRFAAS_KAFKA_SASL_MECHANISM", "PLAIN", help="SASL mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
    )
    kafka_user: str = setting("PRFAAS_KAFKA_SASL_USERNAME", "", help="user name of SASL")
    kafka_password: str = setting(
        "PRFAAS_KAFKA_SASL_PASSWORD", "", help="password of SASL; the next setting keeps it in a file", is_secret=True
    )
    kafka_password_file: Path | None = setting(
        "PRFAAS_KAFKA_SASL_PASSWORD_FILE", None, help="file that holds the password of SASL"
    )


@dataclass(frozen=True, kw_only=True)
class ServiceSettings(SecuritySettings):
    """What every service of the suite can be told. Subclasses set `service` and add fields of their own."""

    service: ClassVar[str] = "service"

    dc: str = setting("PRFAAS_DC", "local", help="datacenter that this process runs in")
    worker_id: str = setting("PRFAAS_WORKER_ID", "", help="unique name in the suite (default: service-dc)")
    grpc_host: str = setting("PRFAAS_GRPC_HOST", "127.0.0.1", help="address that gRPC listens on")
    grpc_port: int = setting("PRFAAS_GRPC_PORT", 0, help="gRPC port (0: any free one)", check=port)
    advertise_host: str = setting("PRFAAS_ADVERTISE_HOST", "", help="host that peers dial (default: the gRPC host)")
    http_host: str = setting("PRFAAS_HTTP_HOST", "127.0.0.1", help="address of /metrics, /livez, /readyz")
    http_port: int = setting("PRFAAS_HTTP_PORT", 0, help="port of /metrics, /livez, /readyz (0: any)", check=port)
    kafka: str = setting("PRFAAS_KAFKA", "127.0.0.1:19092", help="Kafka bootstrap servers, host:port[,host:port]")
    silence_s: float = setting("PRFAAS_SILENCE_S", 2.5, help="a connection as long silent is lost", check=positive)
    log_level: Literal["debug", "info", "warning", "error"] = setting("PRFAAS_LOG_LEVEL", "info", help="least level")
    log_format: Literal["json", "console"] = setting("PRFAAS_LOG_FORMAT", "json", help="json or console")
    traces: str = setting(
        "PRFAAS_TRACES", "", help="collector of traces: http://host:4317 (OTLP over gRPC; empty: none)", check=collector
    )
    drain_s: float = setting("PRFAAS_DRAIN_S", 5.0, help="seconds that running work may finish in", check=non_negative)

    @property
    def channel_silence_s(self) -> float:
        """The silence of connections that this process has opened itself."""
        return self.silence_s

    def __post_init__(self) -> None:
        if not self.worker_id:
            object.__setattr__(self, "worker_id", f"{self.service}-{self.dc}")
        if not self.advertise_host:
            wildcard = self.grpc_host in _WILDCARD_HOSTS
            object.__setattr__(self, "advertise_host", socket.gethostname() if wildcard else self.grpc_host)


def _settings(cls: type[Any]) -> Iterator[Field[Any]]:
    return (item for item in fields(cls) if "env" in item.metadata)


def _got(item: Field[Any], text: str) -> str:
    return f" (got {text!r})" if item.repr else ""


def _because(item: Field[Any]) -> str:
    return f" ({item.metadata['help']})" if item.metadata["help"] else ""


def _shown_default(item: Field[Any]) -> str:
    if item.default is MISSING:
        return "(required)"
    return ",".join(item.default) if isinstance(item.default, tuple) else str(item.default)


def parser_of(hint: Any) -> Callable[[str], Any]:
    """Return the function that reads one setting's text for its annotation."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # Optional: unset means None, so a text is always the other type
        (inner,) = (arg for arg in args if arg is not type(None))
        return parser_of(inner)
    if origin is Literal:
        return lambda text: _choice(text, args)
    if origin is tuple:
        return lambda text: tuple(part.strip() for part in text.split(",") if part.strip())
    scalar = {str: str, int: _integer, float: _number, bool: _boolean, Path: _path}.get(hint)
    assert scalar is not None, f"settings of type {hint} need a parse function"
    return cast(Callable[[str], Any], scalar)


def _choice(text: str, choices: tuple[Any, ...]) -> Any:
    if text not in choices:
        raise ValueError(f"must be one of {', '.join(map(str, choices))}")
    return text


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("not a whole number") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("not a number") from None
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLS:
        raise ValueError("not a boolean: use true or false")
    return _BOOLS[text.lower()]


def _path(text: str) -> Path:
    return Path(text).expanduser()
