"""Triton kernels of what lies between a layer's matrix products: each passes over memory once.

Hidden states are float32, everything else is in the model's dtype; arithmetic is float32.
"""

import triton
import triton.language as tl


@triton.jit
def _normed(x, weight_ptr, columns, mask, width, eps):
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    return x * scale * tl.load(weight_ptr + columns, mask=mask, other=0.0)


@triton.jit
def norm(x_ptr, weight_ptr, out_ptr, width, eps, BLOCK: tl.constexpr):
    """`out[row] = rmsnorm(x[row]) * weight`; a program a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    x = tl.load(x_ptr + row * width + columns, mask=mask, other=0.0)
    y = _normed(x, weight_ptr, columns, mask, width, eps)
    tl.store(out_ptr + row * width + columns, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def add_norm(
    hidden_ptr, delta_ptr, delta_weight_ptr, weight_ptr, out_ptr, width, eps,
    NORM_DELTA: tl.constexpr, NORM_SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`hidden[row] += delta[row]`, the delta normed first if asked; `out[row]` is the sum normed, if asked."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    place = row * width + columns
    delta = tl.load(delta_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if NORM_DELTA:
        delta = _normed(delta, delta_weight_ptr, columns, mask, width, eps)
    total = tl.load(hidden_ptr + place, mask=mask, other=0.0) + delta
    tl.store(hidden_ptr + place, total, mask=mask)
    if NORM_SUM:
        y = _normed(total, weight_ptr, columns, mask, width, eps)
        tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gate(gate_up_ptr, out_ptr, inner, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """`out = activation(gate) * up` for rows `[gate, up]` of `2 * inner`; programs are (row, part of it)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < inner
    x = tl.load(gate_up_ptr + row * 2 * inner + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * inner + inner + columns, mask=mask, other=0.0).to(tl.float32)
    if GELU:  # its tanh form: tanh(z) = 2 sigmoid(2 z) - 1
        active = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        active = x * tl.sigmoid(x)
    tl.store(out_ptr + row * inner + columns, (active * up).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def rotate(
    qkv_ptr, weight_ptr, cos_ptr, sin_ptr, slots_ptr, keys_ptr, values_ptr, eps,
    num_heads, num_kv_heads,
    HAS_NORM: tl.constexpr, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Norm and rotate queries in place, keys into their slots; copy values into theirs. A slot below 0 takes nothing.

    Programs are (token, group of `HEADS` heads). A head's two halves are what rotation mixes.
    """
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    total = num_heads + 2 * num_kv_heads
    columns = tl.arange(0, HALF_BLOCK)
    in_half = columns < HALF
    mask = (heads < total)[:, None] & in_half[None, :]
    low = qkv_ptr + (token * total + heads[:, None]) * (2 * HALF) + columns[None, :]
    a = tl.load(low, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(low + HALF, mask=mask, other=0.0).to(tl.float32)
    is_value = (heads >= num_heads + num_kv_heads)[:, None]
    x, y = a, b
    if HAS_NORM:
        scale = tl.rsqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * HALF) + eps)[:, None]
        weight = weight_ptr + heads[:, None] * (2 * HALF) + columns[None, :]
        normed = mask & (heads < num_heads + num_kv_heads)[:, None]
        x = a * scale * tl.load(weight, mask=normed, other=0.0)
        y = b * scale * tl.load(weight + HALF, mask=normed, other=0.0)
        # As the checkpoints' own code has it: between norm and rotation values are in the model's dtype.
        x = x.to(qkv_ptr.dtype.element_ty).to(tl.float32)
        y = y.to(qkv_ptr.dtype.element_ty).to(tl.float32)
    angle = token * (2 * HALF) + HALF + columns  # the second halves: there the sine has its own sign
    cos = tl.load(cos_ptr + angle, mask=in_half, other=0.0)[None, :]
    sin = tl.load(sin_ptr + angle, mask=in_half, other=0.0)[None, :]
    first = tl.where(is_value, a, x * cos - y * sin).to(qkv_ptr.dtype.element_ty)
    second = tl.where(is_value, b, y * cos + x * sin).to(qkv_ptr.dtype.element_ty)
    is_query = mask & (heads < num_heads)[:, None]
    tl.store(low, first, mask=is_query)
    tl.store(low + HALF, second, mask=is_query)
    slot = tl.load(slots_ptr + token)
    kv_head = heads - num_heads
    is_key = mask & (kv_head >= 0)[:, None] & (kv_head < num_kv_heads)[:, None] & (slot >= 0)
    place = (slot * num_kv_heads + kv_head[:, None]) * (2 * HALF) + columns[None, :]
    tl.store(keys_ptr + place, first, mask=is_key)
    tl.store(keys_ptr + place + HALF, second, mask=is_key)
    kept = mask & is_value & (slot >= 0)
    place = (slot * num_kv_heads + kv_head[:, None] - num_kv_heads) * (2 * HALF) + columns[None, :]
    tl.store(values_ptr + place, first, mask=kept)
    tl.store(values_ptr + place + HALF, second, mask=kept)
