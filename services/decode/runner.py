"""What the decode engine asks of the model; every method runs in the torch thread."""

from collections.abc import Sequence as Seq

import torch

from services.decode.sequence import Sequence
from services.decode.tail import Tail
from shared.model.batch import Batch, Span
from shared.model.paged import PagedKv
from shared.model.penalties import TokenHistory
from shared.model.sampling import Row, Sampled, sample
from shared.model.transformer import Transformer


class Runner:
    """Reads sequences and writes their pages and histories; changes nothing else of them."""

    def __init__(self, transformer: Transformer, kv: PagedKv) -> None:
        self._transformer = transformer
        self._kv = kv

    def advance_tail(self, tail: Tail, num_layers: int, sequence: Sequence) -> Sampled | None:
        """Run a tail's next layers. Return the first generated token once the whole tail is computed."""
        assert sequence.reservation is not None, "a tail without pages"
        last = tail.advance(num_layers, self._transformer, self._kv, sequence.reservation, sequence.tokens)
        return None if last is None else self._sample(last, [sequence])[0]

    def step(self, batch: Seq[Sequence]) -> list[Sampled]:
        """Run one token of each sequence through the model; return the next token of each."""
        spans = [Span(s.reservation.tables, len(s.tokens) - 1, 1) for s in batch if s.reservation is not None]
        step = Batch.build(spans, self._kv.page_tokens, self._transformer.device)
        ids = torch.tensor([s.tokens[-1] for s in batch], device=self._transformer.device)
        return self._sample(self._transformer.forward(ids, step, self._kv), batch)

    def _sample(self, hidden: torch.Tensor, batch: Seq[Sequence]) -> list[Sampled]:
        """`hidden` is `[len(batch), hidden size]`: the state that predicts each sequence's next token."""
        return sample(self._transformer.logits(hidden), [_row(sequence) for sequence in batch])


def _row(sequence: Sequence) -> Row:
    generation = sequence.generation
    params = generation.sampling
    if sequence.history is None and params.has_penalties:
        num_prompt_tokens = len(generation.token_ids) - generation.num_generated_before
        sequence.history = TokenHistory(sequence.tokens, num_prompt_tokens)
    may_end = sequence.num_generated >= params.min_tokens
    return Row(params, len(sequence.tokens), may_end, sequence.history)
