"""Steps through layers.c."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from shared.model.files.config import ModelConfig
from shared.model.files.rope import RopeSpec
from shared.model.layers.batch import Batch
from shared.model.layers.layer_weights import LayerWeights, Matrix, ModelWeights
from shared.model.native import structures as c
from shared.model.native.structures import address
from shared.model.pages.kv import PagedKv

MAX_ROWS_BESIDE_AMX = 16
"""On a processor with AMX, steps of more rows are left to PyTorch, which multiplies by it."""

MAX_KEPT_LOGITS = 64
"""Rows of logits whose memory is kept for the next call."""

_LANES = 16
_MAX_HEAD = 512


def supports(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels can run this model: sizes are multiples of their vectors and fit their buffers."""
    sizes = (config.hidden_size, config.intermediate_size, config.head_dim)
    return (
        device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and all(size % _LANES == 0 for size in sizes)
        and config.head_dim <= _MAX_HEAD
    )


@dataclass(frozen=True)
class _Struct:
    """A C structure and what its pointers lead to."""

    value: c.NativeModel | c.NativeStep
    kept: tuple[object, ...]


class NativeDecoder:
    """Runs layers and logits. Sums are float32, whatever weights and pages are stored as; what is multiplied with
    weights of bfloat16 or int8 is rounded to bfloat16 where the processor has products of that.

    A row's result does not depend, to the last bit, on the other rows of its step, nor on the number of threads. Owns
    the memory that steps work in, which grows to the largest. Not for two threads at once.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        config: ModelConfig,
        weights: ModelWeights,
        frequencies: Mapping[RopeSpec, Tensor],
    ) -> None:
        self._library = library
        for sizing in (library.prfaas_prepared_bytes, library.prfaas_scratch_bytes, library.prfaas_logits_bytes):
            sizing.restype = ctypes.c_int64
        self._config = config
        self._weights = weights
        has_amx = weights.embedding.dtype is torch.bfloat16 and torch.cpu._is_amx_tile_supported()
        self.max_rows = MAX_ROWS_BESIDE_AMX if has_amx else None
        self._ropes = list(frequencies)
        self._frequencies = list(frequencies.values())
        self._windows = sorted({layer.window or 0 for layer in config.layers})
        self._without_pages = self._model([])
        self._models: WeakKeyDictionary[PagedKv, _Struct] = WeakKeyDictionary()
        self._steps: WeakKeyDictionary[Batch, _Struct] = WeakKeyDictionary()
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._logits = torch.empty(0)

    def serves(self, num_rows: int) -> bool:
        """Return whether a step of as many rows is to be run here."""
        return self.max_rows is None or num_rows <= self.max_rows

    def layers(self, first: int, end: int, hidden: Tensor, batch: Batch, kv: PagedKv, kv_only: bool = False) -> Tensor:
        """Run layers `[first, end)` over `hidden` `[rows, hidden_size]` float32, in place; return it.

        With `kv_only` the last one ends when its K and V are in their pages. Raises `RuntimeError` when memory is
        short, as PyTorch does.
        """
        model, step = self._models.get(kv), self._steps.get(batch)
        if model is None:
            layers = [self._layer(index, layer, kv) for index, layer in enumerate(self._weights.layers)]
            model = self._models[kv] = self._model(layers)
        if step is None:
            step = self._steps[batch] = self._step(batch)
        structs = ctypes.byref(model.value), ctypes.byref(step.value)
        threads = torch.get_num_threads()
        scratch = self._scratch_of(self._library.prfaas_scratch_bytes(*structs, threads))
        self._library.prfaas_layers(*structs, _pointer(hidden), first, end, kv_only, scratch, threads)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 `[rows, vocab_size]`, in a buffer that the next call uses again."""
        rows, vocab = hidden.shape[0], self._config.vocab_size
        out = self._logits
        if out.numel() < rows * vocab:
            out = torch.empty(rows * vocab)
            if rows <= MAX_KEPT_LOGITS:
                self._logits = out
        out = out[: rows * vocab].view(rows, vocab)
        model, threads = ctypes.byref(self._without_pages.value), torch.get_num_threads()
        scratch = self._scratch_of(self._library.prfaas_logits_bytes(model, rows, threads))
        self._library.prfaas_logits(model, _pointer(hidden), rows, _pointer(out), scratch, threads)
        return out

    def _scratch_of(self, size: int) -> ctypes.c_void_p:
        if self._scratch.numel() < size:
            self._scratch = torch.empty(0, dtype=torch.uint8)  # the old one goes before the new one comes
            self._scratch = torch.empty(size, dtype=torch.uint8)
        return _pointer(self._scratch)

    def _model(self, layers: list[c.NativeLayer]) -> _Struct:
        config = self._config
        array = (c.NativeLayer * len(layers))(*layers)
        frequencies = (ctypes.c_void_p * len(self._frequencies))(*map(address, self._frequencies))
        windows = (ctypes.c_int32 * len(self._windows))(*self._windows)
        model = c.NativeModel(
            layers=array,
            head=_matrix(self._weights.head),
            final_norm=address(self._weights.final_norm),
            frequencies=frequencies,
            windows=windows,
            num_layers=len(layers),
            hidden=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            inner=config.intermediate_size,
            ropes=len(self._ropes),
            num_windows=len(self._windows),
            kind=c.KINDS[self._weights.embedding.dtype],
            gelu=config.activation != "silu",
            eps=config.norm_eps,
            scale=config.attention_scale,
        )
        return _Struct(model, (array, frequencies, windows))

    def _layer(self, index: int, layer: LayerWeights, kv: PagedKv) -> c.NativeLayer:
        keys = kv.keys_of(index)
        return c.NativeLayer(
            qkv=_matrix(layer.qkv),
            output=_matrix(layer.output),
            gate_up=_matrix(layer.gate_up),
            down=_matrix(layer.down),
            input_norm=address(layer.input_norm),
            qk_norm=address(layer.qk_norm),
            attention_norm=address(layer.attention_norm),
            mlp_norm=address(layer.mlp_norm),
            post_mlp_norm=address(layer.post_mlp_norm),
            kv=c.NativePages(
                keys=address(keys),
                values=address(kv.values_of(index)),
                kind=c.KINDS[keys.dtype],
                page_tokens=kv.page_tokens,
                kv_heads=self._config.num_kv_heads,
                head_dim=self._config.head_dim,
            ),
            window=self._windows.index(layer.config.window or 0),
            rope=self._ropes.index(layer.config.rope),
            group=kv.group_of(index),
        )

    def _step(self, batch: Batch) -> _Struct:
        spans = c.spans_of(batch.spans)
        tables = [batch.block_table(group) for group in range(len(batch.spans[0].tables))]
        sizes = torch.tensor([table.shape[1] for table in tables], dtype=torch.int32)
        pointers = (ctypes.c_void_p * len(tables))(*map(address, tables))
        step = c.NativeStep(
            tables=pointers,
            table_sizes=address(sizes),
            spans=spans,
            rows=batch.num_tokens,
            num_spans=len(spans),
        )
        structs, threads = (ctypes.byref(self._without_pages.value), ctypes.byref(step)), torch.get_num_threads()
        prepared = torch.empty(self._library.prfaas_prepared_bytes(*structs, threads), dtype=torch.uint8)
        self._library.prfaas_prepare(*structs, _pointer(prepared), threads)
        return _Struct(step, (spans, tables, sizes, pointers, prepared))


def _matrix(matrix: Matrix) -> c.NativeMatrix:
    data, scale = matrix.int8 or (matrix.weight, None)
    rows, cols = data.shape
    return c.NativeMatrix(address(data), address(scale), address(matrix.bias), rows, cols, c.KINDS[data.dtype])


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(address(tensor))
