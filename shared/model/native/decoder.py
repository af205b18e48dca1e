"""Steps of few rows through layers.c: what decoding and short tails are made of."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from shared.model.files.config import ModelConfig
from shared.model.files.rope import RopeSpec
from shared.model.layers.batch import Batch
from shared.model.layers.layer_weights import LayerWeights, Matrix, ModelWeights, multiplies_bfloat16
from shared.model.native import structures as c
from shared.model.native.structures import address
from shared.model.pages.kv import PagedKv

MAX_ROWS = 16
"""A step of more rows is bound by computing, which PyTorch's matrix kernels do better."""

MAX_ROWS_IN_FLOAT32 = 64
"""The same where PyTorch multiplies bfloat16 by way of float32 copies of whole matrices: a block's tail is computed
faster here."""

_LANES = 16
_MAX_GROUP = 16
_MAX_HEAD = 512


def supports(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels can run this model: sizes are multiples of their vectors and fit their buffers."""
    sizes = (config.hidden_size, config.intermediate_size, config.head_dim)
    return (
        device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and all(size % _LANES == 0 for size in sizes)
        and config.head_dim <= _MAX_HEAD
        and config.num_heads // config.num_kv_heads <= _MAX_GROUP
    )


@dataclass(frozen=True)
class _Struct:
    """A C structure and what its pointers lead to."""

    value: c.NativeModel | c.NativeStep
    kept: tuple[object, ...]


class NativeDecoder:
    """Runs layers and logits in float32, whatever weights and pages are stored as.

    A row's result does not depend on the other rows of its step: products, and chunks of attention, are summed in an
    order that the row's own position fixes. Not for two threads at once.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        config: ModelConfig,
        weights: ModelWeights,
        frequencies: Mapping[RopeSpec, Tensor],
    ) -> None:
        self._library = library
        self._config = config
        self._weights = weights
        copies = weights.embedding.dtype is torch.bfloat16 and not multiplies_bfloat16("cpu")
        self.max_rows = MAX_ROWS_IN_FLOAT32 if copies else MAX_ROWS
        self._ropes = list(frequencies)
        self._frequencies = list(frequencies.values())
        self._without_pages = self._model([])
        self._models: WeakKeyDictionary[PagedKv, _Struct] = WeakKeyDictionary()
        self._steps: WeakKeyDictionary[Batch, _Struct] = WeakKeyDictionary()
        self._logits = torch.empty(0)

    def layers(self, first: int, end: int, hidden: Tensor, batch: Batch, kv: PagedKv) -> Tensor:
        """Run layers `[first, end)` over `hidden` `[rows, hidden_size]` float32, in place; return it.

        Raises `RuntimeError` when memory is short, as PyTorch does.
        """
        model, step = self._models.get(kv), self._steps.get(batch)
        if model is None:
            layers = [self._layer(index, layer, kv) for index, layer in enumerate(self._weights.layers)]
            model = self._models[kv] = self._model(layers)
        if step is None:
            step = self._steps[batch] = _step(batch)
        assert isinstance(step.value, c.NativeStep)
        step.value.hidden = address(hidden)
        threads = torch.get_num_threads()
        if self._library.prfaas_layers(ctypes.byref(model.value), ctypes.byref(step.value), first, end, threads) != 0:
            raise RuntimeError(f"no memory for a step of {batch.num_tokens} rows")
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 `[rows, vocab_size]`, in a buffer that the next call uses again."""
        rows, vocab = hidden.shape[0], self._config.vocab_size
        if self._logits.numel() < rows * vocab:
            self._logits = torch.empty(rows * vocab)
        out = self._logits[: rows * vocab].view(rows, vocab)
        normed = hidden.clone()
        self._library.prfaas_logits(
            ctypes.byref(self._without_pages.value),
            ctypes.c_void_p(address(normed)),
            rows,
            ctypes.c_void_p(address(out)),
            torch.get_num_threads(),
        )
        return out

    def _model(self, layers: list[c.NativeLayer]) -> _Struct:
        config = self._config
        array = (c.NativeLayer * len(layers))(*layers)
        frequencies = (ctypes.c_void_p * len(self._frequencies))(*map(address, self._frequencies))
        model = c.NativeModel(
            layers=array,
            head=_matrix(self._weights.head),
            final_norm=address(self._weights.final_norm),
            frequencies=frequencies,
            hidden=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            inner=config.intermediate_size,
            ropes=len(self._ropes),
            gelu=config.activation != "silu",
            eps=config.norm_eps,
            scale=config.attention_scale,
        )
        return _Struct(model, (array, frequencies))

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
            window=layer.config.window or 0,
            rope=self._ropes.index(layer.config.rope),
            group=kv.group_of(index),
        )


def _matrix(matrix: Matrix) -> c.NativeMatrix:
    data, scale = matrix.int8 or (matrix.weight, None)
    rows, cols = data.shape
    return c.NativeMatrix(address(data), address(scale), address(matrix.bias), rows, cols, c.KINDS[data.dtype])


def _step(batch: Batch) -> _Struct:
    positions = batch.positions.to(torch.int32)
    spans = torch.tensor([i for i, span in enumerate(batch.spans) for _ in range(span.num_tokens)], dtype=torch.int32)
    stores = torch.tensor([span.stores for span in batch.spans], dtype=torch.int32)
    tables = [batch.block_table(group) for group in range(len(batch.spans[0].tables))]
    sizes = torch.tensor([table.shape[1] for table in tables], dtype=torch.int32)
    pointers = (ctypes.c_void_p * len(tables))(*map(address, tables))
    step = c.NativeStep(
        hidden=None,
        tables=pointers,
        table_sizes=address(sizes),
        spans=address(spans),
        positions=address(positions),
        stores=address(stores),
        rows=batch.num_tokens,
    )
    return _Struct(step, (positions, spans, stores, tables, sizes, pointers))
