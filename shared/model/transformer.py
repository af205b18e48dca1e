"""The decoder: embed, then layer by layer, then logits. One class for every family; `ModelConfig` says what differs."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import embedding

from shared.kv.layout import Dtype
from shared.model.attention.base import Attention
from shared.model.attention.sdpa import SdpaAttention
from shared.model.files.config import ModelConfig
from shared.model.files.rope import RopeSpec
from shared.model.layers.batch import Batch, Span
from shared.model.layers.layer_weights import ModelWeights
from shared.model.layers.operations import KvTarget, Operations, TorchOperations
from shared.model.layers.rotary import RotaryTables, inverse_frequencies, rotary_tables
from shared.model.layers.states import StepStates
from shared.model.layers.weights import load_int8, load_weights
from shared.model.native.attention import NativeAttention
from shared.model.native.decoder import NativeDecoder, supports
from shared.model.native.elementwise import NativeOperations
from shared.model.pages.kv import PagedKv

if TYPE_CHECKING:
    from shared.model.cuda.graphs import Recorder, StepGraphs


class Transformer:
    """A model that can be stepped layer by layer. Stateless between calls: K and V live in the `PagedKv` it is given.

    Steps run in C kernels where there are any for the device and the model, else in PyTorch. Hidden states are float32.
    Not for two threads at once (PyTorch's own threads are what runs in parallel).
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        attention: Attention | None = None,
        kernels: ctypes.CDLL | None = None,
    ) -> None:
        """`kernels` come from `native.build`, and attention is theirs then; without them PyTorch does everything."""
        self.config = config
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self._weights = weights
        self._attention = attention or SdpaAttention()
        # In the model's dtype, as the checkpoint's own code has it: 25.298 is 25.25 in bfloat16.
        self._embedding_scale = torch.tensor(config.embedding_scale, dtype=self.dtype).item()
        self._frequencies = {
            layer.rope: inverse_frequencies(layer.rope, config.head_dim).to(self.device) for layer in config.layers
        }
        self._tables: WeakKeyDictionary[Batch, dict[RopeSpec, RotaryTables]] = WeakKeyDictionary()
        self._native: NativeDecoder | None = None
        self._operations: Operations = TorchOperations(config.norm_eps, self.dtype)
        self._graphs: StepGraphs | None = None
        if self.device.type == "cuda":
            from shared.model.cuda.operations import CudaOperations  # deferred: needs Triton

            self._operations = CudaOperations(config.norm_eps, self.dtype)
        elif kernels is not None and supports(config, self.dtype, self.device):
            self._native = NativeDecoder(kernels, config, weights, self._frequencies)
            self._operations = NativeOperations(kernels, config.norm_eps, self.dtype)
            self._attention = NativeAttention(kernels)

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        weights_path: Path,
        dtype: Dtype,
        device: torch.device | str = "cpu",
        attention: Attention | None = None,
        kernels: ctypes.CDLL | None = None,
        int8_path: Path | None = None,
    ) -> "Transformer":
        """Map the files that `catalog.ensure_weights` made. Raises `ModelFileError` naming what is wrong."""
        weights = load_weights(config, weights_path, dtype, device)
        int8 = None if int8_path is None else load_int8(config, int8_path)
        return cls(config, ModelWeights.build(config, weights, int8), attention, kernels)

    @property
    def uses_kernels(self) -> bool:
        return self._native is not None

    @property
    def can_capture(self) -> bool:
        """Whether device and attention can do steps as CUDA graphs, those of decoding at least."""
        return self.device.type == "cuda" and self._attention.can_be_captured

    @property
    def attention(self) -> str:
        """Whose attention runs."""
        return self._attention.name

    @property
    def num_layers(self) -> int:
        return len(self._weights.layers)

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Tensor:
        """Return hidden states `[num_tokens, hidden_size]` for ids `[num_tokens]`, which must be in the vocabulary."""
        hidden = embedding(token_ids, self._weights.embedding)
        if self._embedding_scale != 1:
            hidden = hidden * self._embedding_scale
        return hidden.to(torch.float32)

    @torch.inference_mode()
    def layers(self, first: int, end: int, hidden: Tensor, batch: Batch, kv: PagedKv) -> Tensor:
        """Run layers `[first, end)` over the step's tokens: `[num_tokens, hidden_size]` to the same.

        `hidden` is what `embed`, or `layers` up to `first`, has returned, and may be changed in place. Writes these
        layers' K and V of the step's tokens into their pages, but of spans that only read them; when it returns they
        are complete and may leave the device. Reads the pages of earlier positions in these layers only.
        """
        if self._native is not None and self._native.serves(hidden.shape[0]):
            return self._native.layers(first, end, hidden, batch, kv)
        for index in range(first, end):
            hidden = self._layer(index, hidden, batch, kv, kv_only=False)
        return hidden

    @torch.inference_mode()
    def layer(self, index: int, hidden: Tensor, batch: Batch, kv: PagedKv, kv_only: bool = False) -> Tensor:
        """As `layers`, for one. `kv_only` says that its K and V are all that is wanted: what returns is meaningless."""
        if self._native is not None and self._native.serves(hidden.shape[0]):
            return self._native.layers(index, index + 1, hidden, batch, kv, kv_only)
        return self._layer(index, hidden, batch, kv, kv_only)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits `[rows, vocab_size]`, which the next call may overwrite.

        Pass the rows that are needed: the vocabulary is large.
        """
        if self._native is not None and self._native.serves(hidden.shape[0]):
            return self._native.logits(hidden)
        return self._weights.head(self._operations.norm(hidden, self._weights.final_norm)).to(torch.float32)

    def forward(self, token_ids: Tensor, batch: Batch, kv: PagedKv) -> Tensor:
        """Run a whole step: hidden states `[num_tokens, hidden_size]` after the last layer."""
        return self.layers(0, self.num_layers, self.embed(token_ids), batch, kv)

    @torch.inference_mode()
    def step(self, token_ids: Sequence[int], spans: Sequence[Span], kv: PagedKv) -> StepStates:
        """Run the tokens of all spans, one span after the other; return what follows each span."""
        if self._graphs is not None and self.is_captured(spans, kv):
            return self._graphs.run(token_ids, spans)
        batch = Batch.build(spans, kv.page_tokens, self.device, token_ids)
        return StepStates(self._last(batch.token_ids, batch, kv))

    @torch.inference_mode()
    def states(self, token_ids: Sequence[int], spans: Sequence[Span], kv: PagedKv) -> Tensor:
        """As `step`, but return the states of all tokens, `[num_tokens, hidden_size]`, span after span."""
        batch = Batch.build(spans, kv.page_tokens, self.device, token_ids)
        return self.forward(batch.token_ids, batch, kv)

    def is_captured(self, spans: Sequence[Span], kv: PagedKv) -> bool:
        """Whether `step` replays a graph for these: it returns at once, and the next one may take tokens from it, an id
        of `~i` for what follows span i."""
        return self._graphs is not None and self._graphs.serves(kv, spans)

    @torch.inference_mode()
    def capture_steps(self, kv: PagedKv, max_tokens: int, max_batch: int, recorder: "Recorder | None" = None) -> None:
        """Make graphs of `step` over one cache for up to `max_batch` spans: seconds, and nothing unless `can_capture`.

        `max_tokens` is the longest sequence that will come. `recorder` is the device's own unless it is given.
        """
        from shared.model.cuda.graphs import (
            CudaRecorder,
            GraphOutput,
            StepGraphs,
            padded,
        )  # deferred: most devices have no graphs

        if recorder is None:
            if not self.can_capture:
                return
            recorder = CudaRecorder(self.device)
        logits = torch.empty(padded(max_batch), self.config.vocab_size, device=self.device)  # of all graphs

        def step(batch: Batch, token_ids: Tensor) -> GraphOutput:
            hidden = self._last(token_ids, batch, kv)
            out = logits[: len(hidden)]
            out.copy_(self.logits(hidden))
            return GraphOutput(hidden, out, out.argmax(dim=-1))

        ragged = self._attention.can_capture_ragged
        graphs = StepGraphs(step, kv, max_tokens, max_batch, ragged, self.device, recorder)
        for size in graphs.sizes():
            graphs.capture(size)
        self._graphs = graphs

    def forget_graphs(self) -> None:
        """Undo `capture_steps`: the graphs, and the cache that they read, are let go of."""
        self._graphs = None

    def wait(self) -> None:
        """Block until the device has computed what was submitted; a CPU has when a call returns."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _last(self, token_ids: Tensor, batch: Batch, kv: PagedKv) -> Tensor:
        """Run a whole step; return the states of each span's last token, `[num_spans, hidden_size]`."""
        hidden = self.forward(token_ids, batch, kv)
        return hidden if batch.is_decode else hidden[batch.query_starts[1:].long() - 1]

    def _layer(self, index: int, hidden: Tensor, batch: Batch, kv: PagedKv, kv_only: bool) -> Tensor:
        config, layer, ops = self.config, self._weights.layers[index], self._operations
        tables = self._rotary(batch, layer.config.rope)
        qkv = layer.qkv(ops.norm(hidden, layer.input_norm))
        queries = ops.rotate(qkv, config.num_heads, layer.qk_norm, tables, _target(index, batch, kv))
        if kv_only:
            return hidden
        attended = self._attention.forward(queries, index, batch, kv, config.attention_scale, layer.config.window)
        delta = layer.output(attended.flatten(1))
        hidden, normed = ops.add_and_norm(hidden, delta, layer.attention_norm, layer.mlp_norm)
        gate_up = layer.gate_up(normed)
        return ops.add(hidden, layer.down(ops.gate(gate_up, config.activation)), layer.post_mlp_norm)

    def _rotary(self, batch: Batch, rope: RopeSpec) -> RotaryTables:
        """Return the step's tables, made by the first layer that needs them."""
        tables = self._tables.setdefault(batch, {})
        if rope not in tables:
            tables[rope] = rotary_tables(self._frequencies[rope], batch.positions)
        return tables[rope]


def _target(index: int, batch: Batch, kv: PagedKv) -> KvTarget:
    return KvTarget(kv.keys_of(index), kv.values_of(index), batch.slots_of(kv.group_of(index)))
