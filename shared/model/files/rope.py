"""Rotary position embedding as a model's config describes it (the arithmetic is in `rotary`). No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.errors import ModelFileError

_KNOWN = ("default", "linear", "llama3", "factors")


@dataclass(frozen=True)
class RopeSpec:
    """The rope of one layer.

    `kind` is Hugging Face's `rope_type` (default, linear, llama3), or `factors`: one divisor per frequency, which is
    how GGUF files spell llama3's scaling.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    factors: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str) -> "RopeSpec":
        """Build from a `rope_parameters` or `rope_scaling` section that holds `rope_theta`.

        Raises `ModelFileError` for a rope type that is not implemented, and for missing or absurd values.
        """
        kind = raw.get("rope_type") or raw.get("type") or "default"
        if kind not in _KNOWN:
            raise ModelFileError(f"{source}: rope_type {kind!r} is not supported (supported: default, linear, llama3)")
        if raw.get("partial_rotary_factor", 1.0) != 1.0:
            raise ModelFileError(f"{source}: partial_rotary_factor is not supported")
        try:
            spec = cls(theta=float(raw["rope_theta"]), kind=kind)
            if kind in ("linear", "llama3"):
                spec = cls(theta=spec.theta, kind=kind, factor=float(raw["factor"]))
            if kind == "llama3":
                spec = cls(
                    theta=spec.theta,
                    kind=kind,
                    factor=spec.factor,
                    low_freq_factor=float(raw["low_freq_factor"]),
                    high_freq_factor=float(raw["high_freq_factor"]),
                    original_max_position=int(raw["original_max_position_embeddings"]),
                )
            if kind == "factors":
                spec = cls(theta=spec.theta, kind=kind, factors=tuple(float(f) for f in raw["factors"]))
        except KeyError as error:
            raise ModelFileError(f"{source}: {error.args[0]!r} is missing for rope_type {kind!r}") from None
        except (TypeError, ValueError) as error:
            raise ModelFileError(f"{source}: {error}") from error
        if not (spec.theta > 0 and spec.factor > 0):
            raise ModelFileError(f"{source}: rope_theta and factor must be positive")
        return spec
