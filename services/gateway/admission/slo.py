"""The latency that a request asks for, in the headers of llm-d and the Gateway API's inference extension."""

from collections.abc import Mapping

from services.gateway.routing.plan import Slo
from services.gateway.settings import GatewaySettings
from shared.errors import BadRequest

TTFT_HEADER = "x-slo-ttft-ms"
TIME_PER_OUTPUT_TOKEN_HEADER = "x-slo-tpot-ms"

MAX_MS = 86_400_000
_MAX_CHARS = 16


def default_slo(settings: GatewaySettings) -> Slo:
    """Return what requests ask for that do not say."""
    return Slo(settings.slo_ttft_s or None, settings.slo_time_per_output_token_s or None)


def slo_of(headers: Mapping[str, str], default: Slo) -> Slo:
    """Return what the headers ask for; `default` where they are silent. `headers` match names in any case.

    A value is a number of milliseconds above 0. Raises `BadRequest` naming the header.
    """
    ttft_s, per_token_s = _seconds(headers, TTFT_HEADER), _seconds(headers, TIME_PER_OUTPUT_TOKEN_HEADER)
    if ttft_s is None and per_token_s is None:
        return default
    return Slo(
        default.ttft_s if ttft_s is None else ttft_s,
        default.time_per_output_token_s if per_token_s is None else per_token_s,
    )


def _seconds(headers: Mapping[str, str], name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    text = text.strip()
    is_number = len(text) <= _MAX_CHARS and text.isascii() and text.replace(".", "", 1).isdigit()
    if not is_number or not 0 < (milliseconds := float(text)) <= MAX_MS:
        raise BadRequest(f"{name} must be a number of milliseconds above 0, at most {MAX_MS}", param=name)
    return milliseconds / 1000
