"""Rotary position embedding: float32 tables for a step's positions, applied to queries and keys together."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from shared.model.files.rope import RopeSpec


class RotaryTables(NamedTuple):
    """Cosines and sines of one step, `[num_tokens, 1, head_dim]`; the sine's first half carries rotate_half's minus."""

    cos: Tensor
    sin: Tensor


def inverse_frequencies(spec: RopeSpec, head_dim: int) -> Tensor:
    """Return `[head_dim / 2]` float32, by the operations of transformers: a different rounding grows with position."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    base = 1.0 / (spec.theta**exponents)
    if spec.kind == "linear":
        return base / spec.factor
    if spec.kind == "factors":
        return base / torch.tensor(spec.factors, dtype=torch.float32)
    if spec.kind == "llama3":
        return _llama3(base, spec)
    return base


def _llama3(base: Tensor, spec: RopeSpec) -> Tensor:
    """Llama 3.1's scaling: long wavelengths are stretched, short ones kept, those between interpolated."""
    low_wavelength = spec.original_max_position / spec.low_freq_factor
    high_wavelength = spec.original_max_position / spec.high_freq_factor
    wavelength = 2 * math.pi / base
    scaled = torch.where(wavelength > low_wavelength, base / spec.factor, base)
    smooth = (spec.original_max_position / wavelength - spec.low_freq_factor) / (
        spec.high_freq_factor - spec.low_freq_factor
    )
    smoothed = (1 - smooth) * scaled / spec.factor + smooth * scaled
    medium = ~(wavelength < high_wavelength) & ~(wavelength > low_wavelength)
    return torch.where(medium, smoothed, scaled)


def rotary_tables(frequencies: Tensor, positions: Tensor) -> RotaryTables:
    """Return the tables for `positions` `[num_tokens]`, in float32."""
    angles = positions.to(torch.float32)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return RotaryTables(torch.cat((cos, cos), dim=-1)[:, None], torch.cat((-sin, sin), dim=-1)[:, None])


def rotate(x: Tensor, tables: RotaryTables) -> Tensor:
    """Rotate `x` `[num_tokens, heads, head_dim]` in float32 and return it in its own dtype."""
    half = x.shape[-1] // 2
    wide = x.to(torch.float32)
    swapped = torch.cat((wide[..., half:], wide[..., :half]), dim=-1)
    return torch.addcmul(wide * tables.cos, swapped, tables.sin).to(x.dtype)
