"""The structures of the C sources, field by field, and how tensors become pointers."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum
from itertools import accumulate

import torch
from torch import Tensor

from shared.model.layers.batch import Span


class Kind(IntEnum):
    """How numbers are stored: `enum kind` of vectors.h."""

    F32 = 0
    BF16 = 1
    INT8 = 2


KINDS = {torch.float32: Kind.F32, torch.bfloat16: Kind.BF16, torch.int8: Kind.INT8}


class NativeMatrix(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("rows", c_int32),
        ("cols", c_int32),
        ("kind", c_int32),
    )


class NativePages(ctypes.Structure):
    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("kind", c_int32),
        ("page_tokens", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
    )


class NativeSpan(ctypes.Structure):
    _fields_ = (("row", c_int32), ("start", c_int32), ("rows", c_int32), ("stores", c_int32))


class NativeAttentionCall(ctypes.Structure):
    """`attention` of attention.h."""

    _fields_ = (
        ("kv", POINTER(NativePages)),
        ("tables", c_void_p),
        ("q", c_void_p),
        ("out", c_void_p),
        ("q_stride", c_int64),
        ("out_stride", c_int64),
        ("q_kind", c_int32),
        ("out_kind", c_int32),
        ("table_size", c_int32),
        ("scale", c_float),
    )


class NativeAttentionShape(ctypes.Structure):
    """`shape` of plan.h."""

    _fields_ = (
        ("spans", POINTER(NativeSpan)),
        ("num_spans", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("window", c_int32),
        ("threads", c_int32),
    )


class NativeLayer(ctypes.Structure):
    _fields_ = (
        ("qkv", NativeMatrix),
        ("output", NativeMatrix),
        ("gate_up", NativeMatrix),
        ("down", NativeMatrix),
        ("input_norm", c_void_p),
        ("qk_norm", c_void_p),
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("post_mlp_norm", c_void_p),
        ("kv", NativePages),
        ("window", c_int32),
        ("rope", c_int32),
        ("group", c_int32),
    )


class NativeModel(ctypes.Structure):
    _fields_ = (
        ("layers", POINTER(NativeLayer)),
        ("head", NativeMatrix),
        ("final_norm", c_void_p),
        ("frequencies", POINTER(c_void_p)),
        ("windows", POINTER(c_int32)),
        ("num_layers", c_int32),
        ("hidden", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("inner", c_int32),
        ("ropes", c_int32),
        ("num_windows", c_int32),
        ("kind", c_int32),
        ("gelu", c_int32),
        ("eps", c_float),
        ("scale", c_float),
    )


class NativeStep(ctypes.Structure):
    _fields_ = (
        ("tables", POINTER(c_void_p)),
        ("table_sizes", c_void_p),
        ("spans", POINTER(NativeSpan)),
        ("rotary", c_void_p),
        ("plans", c_void_p),
        ("rows", c_int32),
        ("num_spans", c_int32),
    )


def spans_of(spans: Sequence[Span]) -> "ctypes.Array[NativeSpan]":
    """Return a step's spans, whose rows lie one after the other."""
    starts = accumulate((span.num_tokens for span in spans), initial=0)
    rows = zip(starts, spans, strict=False)
    return (NativeSpan * len(spans))(*[NativeSpan(row, s.start, s.num_tokens, s.stores) for row, s in rows])


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor's numbers are, None for no tensor. The caller keeps the tensor alive."""
    if tensor is None:
        return None
    assert tensor.is_contiguous(), "kernels read dense memory"
    assert tensor.device.type == "cpu", "kernels read CPU memory"
    return tensor.data_ptr()
