"""What the gateway can be told by its environment."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from shared.bus.mirrors import read_sources
from shared.config import ServiceSettings, non_negative, parse_bytes, port, positive, setting
from shared.kv.codec import LOSSLESS_CODECS
from shared.model.files.catalog import DEFAULT_MODEL

AUTO = "auto"
CODEC_CHOICES = (AUTO, *(codec.name.lower() for codec in LOSSLESS_CODECS))
HandOff = Literal["streamed", "stored"]


def _codec(value: str) -> str | None:
    return None if value in CODEC_CHOICES else f"must be one of {', '.join(CODEC_CHOICES)}"


def _utilisation(value: float) -> str | None:
    return None if 0 < value <= 1 else "must be above 0 and not above 1"


def _options(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not separator or not name.strip() for name, separator, _ in pairs):
        raise ValueError("must be name=value,name=value")
    return tuple((name.strip(), value.strip()) for name, _, value in pairs)


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(ServiceSettings):
    """The model settings must be those of the engines: workers of another model or KV layout are not used."""

    service: ClassVar[str] = "gateway"

    http_port: int = setting("PRFAAS_HTTP_PORT", 8000, help="port of the API and of /metrics (0: any)", check=port)
    model: str = setting("PRFAAS_MODEL", DEFAULT_MODEL, help="built-in model, checkpoint directory or GGUF file")
    dtype: Literal["bfloat16", "float32"] = setting("PRFAAS_DTYPE", "bfloat16", help="of the KV cache")
    block_tokens: int = setting("PRFAAS_BLOCK_TOKENS", 64, help="tokens in a KV block", check=positive)
    cache_dir: Path = setting("PRFAAS_CACHE_DIR", Path("~/.cache/prfaas"), help="prepared models")
    max_model_len: int = setting("PRFAAS_MAX_MODEL_LEN", 0, help="longest context; 0: the model's", check=non_negative)
    chat_template: str = setting("PRFAAS_CHAT_TEMPLATE", "", help="file or text that replaces the model's template")
    generation_config: str = setting(
        "PRFAAS_GENERATION_CONFIG",
        AUTO,
        help="defaults of sampling: auto (the model's generation_config.json), none, or such a file",
    )
    tool_parser: Literal["auto", "none", "hermes", "llama", "qwen"] = setting(
        "PRFAAS_TOOL_PARSER", "auto", help="format of calls (auto: the template's; none: refused)"
    )
    reasoning_parser: Literal["auto", "none", "think"] = setting(
        "PRFAAS_REASONING_PARSER", "auto", help="format of reasoning (auto: the template's)"
    )
    offload_threshold_tokens: int = setting(
        "PRFAAS_OFFLOAD_THRESHOLD_TOKENS",
        512,
        help="policy threshold: above it prefill is remote",
        check=non_negative,
    )
    decode_threshold_tokens: int = setting(
        "PRFAAS_DECODE_THRESHOLD_TOKENS",
        2048,
        help="policy threshold: up to it decode computes prompts; 0: never",
        check=non_negative,
    )
    routing_policy: str = setting(
        "PRFAAS_ROUTING_POLICY",
        "cost",
        help="where prompts are prefilled: cost, threshold, dynamo, lmetric, llm_d, mooncake, gorgo, deflection, "
        "stay_home, least_load, power_of_two, round_robin or random",
    )
    policy_options: tuple[tuple[str, str], ...] = setting(
        "PRFAAS_POLICY_OPTIONS", (), help="of the routing policy: name=value,name=value", parse=_options
    )
    plan_time_per_output_token_s: float = setting(
        "PRFAAS_PLAN_TIME_PER_OUTPUT_TOKEN_S",
        0.05,
        help="step of decode that capacity is planned for without an SLO of it: twice as fast as quick readers",
        check=positive,
    )
    plan_utilisation: float = setting(
        "PRFAAS_PLAN_UTILISATION",
        0.7,
        help="of the stage that binds, that replicas are planned for",
        check=_utilisation,
    )
    max_batch: int = setting("PRFAAS_MAX_BATCH", 64, help="requests that hold pages at a time", check=positive)
    codec: str = setting(
        "PRFAAS_CODEC",
        AUTO,
        help=f"of lossless KV frames: {', '.join(CODEC_CHOICES)} (auto: by the link)",
        check=_codec,
    )
    hand_off: HandOff = setting(
        "PRFAAS_HAND_OFF",
        "streamed",
        help="stored: decode begins when prefill has ended; slower",
    )
    block_wait_s: float = setting(
        "PRFAAS_BLOCK_WAIT_S", 120.0, help="wait of decode for a block without a writer", check=positive
    )
    request_timeout_s: float = setting("PRFAAS_REQUEST_TIMEOUT_S", 600.0, help="of a whole request", check=positive)
    api_keys: str = setting("PRFAAS_API_KEYS", "", help="file of tenants and the hashes of their keys; empty: none")
    api_key: str = setting(
        "PRFAAS_API_KEY", "", help="in its place one key, whose holders may do everything", is_secret=True
    )
    allow_anonymous: bool = setting(
        "PRFAAS_ALLOW_ANONYMOUS", False, help="serve without keys elsewhere than on loopback"
    )
    max_requests: int = setting("PRFAAS_MAX_REQUESTS", 512, help="requests at a time, more get 429", check=positive)
    dispatch_window_s: float = setting(
        "PRFAAS_DISPATCH_WINDOW_S",
        0.5,
        help="seconds of prompt work that a worker is given ahead, the rest waits for its tenant's turn; 0: no limit",
        check=non_negative,
    )
    max_queued: int = setting(
        "PRFAAS_MAX_QUEUED", 1024, help="choices that may wait for their turn, more get 429", check=positive
    )
    max_queued_of_tenant: int = setting(
        "PRFAAS_MAX_QUEUED_OF_TENANT", 256, help="the same of one tenant (a cache_salt)", check=positive
    )
    slo_ttft_s: float = setting(
        "PRFAAS_SLO_TTFT_S",
        0.0,
        help="latest first token of requests that do not say; whose would be later gets 429; 0: any time",
        check=non_negative,
    )
    slo_time_per_output_token_s: float = setting(
        "PRFAAS_SLO_TIME_PER_OUTPUT_TOKEN_S", 0.0, help="the same for each further token", check=non_negative
    )
    text_cache_bytes: int = setting(
        "PRFAAS_TEXT_CACHE_BYTES",
        64 << 20,
        help="memory for token ids of texts: a conversation's turn is not tokenised from its beginning",
        parse=parse_bytes,
        check=non_negative,
    )
    unknown_fields: Literal["accept", "refuse"] = setting(
        "PRFAAS_UNKNOWN_FIELDS",
        "accept",
        help="refuse or accept (and log) fields that nobody knows",
    )
    max_body_bytes: int = setting(
        "PRFAAS_MAX_BODY_BYTES", 8 << 20, help="limit of a request's body", parse=parse_bytes, check=positive
    )
    kafka_mirrors: tuple[str, ...] = setting(
        "PRFAAS_KAFKA_MIRRORS",
        (),
        help="sources whose topics MirrorMaker copies here: east,north",
        parse=read_sources,
    )
