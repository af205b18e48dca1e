"""Graphs without a GPU: what a replay does is done once more, by attention that reads numbers as kernels do."""

from collections.abc import Callable

import torch
from torch import Tensor

from shared.model.attention.base import Attention
from shared.model.cuda.graphs import GraphOutput, Recorder
from shared.model.layers.batch import Batch
from shared.model.pages.kv import PagedKv


class TensorAttention(Attention):
    """Attends by the batch's tensors alone, as kernels do: what is in its spans is not looked at."""

    name = "by tensors"
    can_be_captured = can_capture_ragged = True

    def forward(self, q: Tensor, layer: int, batch: Batch, kv: PagedKv, scale: float, window: int | None) -> Tensor:
        out = torch.full_like(q, float("nan"))  # rows of no span are left as they are
        starts = list(range(len(batch.spans) + 1)) if batch.is_decode else batch.query_starts.tolist()
        tables = batch.block_table(kv.group_of(layer)).clamp(min=0)
        for length, table, first, end in zip(batch.lengths.tolist(), tables, starts[:-1], starts[1:], strict=True):
            pages = table[: -(-length // batch.page_tokens)]
            keys, values = (pool[pages].flatten(0, 1)[:length] for pool in (kv.keys_of(layer), kv.values_of(layer)))
            for row in range(first, end):
                position = length - (end - row)
                seen = slice(0 if window is None else max(0, position - window + 1), position + 1)
                heads = q.shape[1] // keys.shape[1]
                k, v = keys[seen].repeat_interleave(heads, 1), values[seen].repeat_interleave(heads, 1)
                weights = (torch.einsum("hd,thd->ht", q[row], k) * scale).softmax(-1)
                out[row] = torch.einsum("ht,thd->hd", weights, v)
        return out


class Rerun(Recorder):
    """Replays by doing the same work once more, into the memory of the first time."""

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = self.num_waited = 0

    def record(self, work: Callable[[], GraphOutput]) -> tuple[Callable[[], None], GraphOutput]:
        self.num_recorded += 1
        output = work()

        def replay() -> None:
            self.num_replayed += 1
            for out, new in zip(output, work(), strict=True):
                out.copy_(new)

        return replay, output

    def mark(self) -> Callable[[], None]:
        def wait() -> None:
            self.num_waited += 1

        return wait
