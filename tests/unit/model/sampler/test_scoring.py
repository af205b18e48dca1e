"""Given tokens' log-probabilities: right, ranked, and the same however rows are grouped."""

import pytest
import torch

from shared.model.sampler import scoring
from shared.model.sampler.scoring import score
from shared.sampling.logprobs import TokenLogprobs

VOCAB = 50


def states(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(3)) * 3


def test_each_token_is_told_with_its_rank_and_the_likeliest() -> None:
    rows = states(5)
    ids = [7, 0, 49, int(rows[3].argmax()), int(rows[4].argmin())]
    expected = rows.log_softmax(dim=-1)
    told = score(lambda few: few, rows, ids, VOCAB, 3)
    for row, token, (logprob, top, rank) in zip(expected, ids, told, strict=True):
        order = row.argsort(descending=True).tolist()
        assert logprob == row[token].item()
        assert rank == order.index(token) + 1
        assert top == tuple((i, row[i].item()) for i in order[:3])
    assert (told[3].rank, told[4].rank) == (1, VOCAB)


def test_without_alternatives_there_are_none() -> None:
    assert [told.top for told in score(lambda few: few, states(2), [1, 2], VOCAB, 0)] == [(), ()]


def test_equal_alternatives_are_in_the_order_of_their_ids() -> None:
    row = torch.zeros(1, VOCAB)
    row[0, [41, 3, 17]] = 2.0
    (told,) = score(lambda few: few, row, [17], VOCAB, 3)
    assert ([i for i, _ in told.top], told.rank) == ([3, 17, 41], 1)


@pytest.mark.parametrize("rows_at_once", [1, 7, 64])
def test_groups_of_rows_change_nothing_and_bound_what_exists(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, ids = states(130), [i % VOCAB for i in range(130)]
    whole = score(lambda few: few, rows, ids, VOCAB, 5)
    seen: list[int] = []
    buffer = torch.empty(rows_at_once, VOCAB)  # as a decoder has it: the next call overwrites it

    def logits_of(few: torch.Tensor) -> torch.Tensor:
        seen.append(len(few))
        return buffer[: len(few)].copy_(few)

    monkeypatch.setattr(scoring, "NUMBERS_AT_ONCE", rows_at_once * VOCAB)
    told: list[TokenLogprobs] = score(logits_of, rows, ids, VOCAB, 5)
    assert told == whole
    assert max(seen) == rows_at_once
    assert sum(seen) == 130
