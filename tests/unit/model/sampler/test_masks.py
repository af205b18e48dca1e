"""What a mask forbids is never chosen, whatever else is asked for; rows without one do not change."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.model.sampler.masks import allow_only
from shared.model.sampler.penalties import TokenHistory
from shared.model.sampler.sampling import Row, sample, takes_best
from shared.sampling.params import SamplingParams

VOCAB = 77


def words_of(*ids: int) -> NDArray[np.uint32]:
    words = np.zeros((VOCAB + 40) // 32, dtype=np.uint32)
    for token in ids:
        words[token // 32] |= np.uint32(1 << token % 32)
    return words


@pytest.mark.parametrize("masked", [[0, 1, 2], [1], [2, 0]])
def test_only_what_is_allowed_stays(masked: list[int]) -> None:
    logits = torch.randn(3, VOCAB)
    before = logits.clone()
    ids = [0, 31, 32, 63, 64, VOCAB - 1]
    allow_only(logits, [(row, words_of(*ids, VOCAB + 3)) for row in masked])
    for row in range(3):
        if row in masked:
            assert logits[row].isfinite().nonzero().flatten().tolist() == ids
            assert torch.equal(logits[row, ids], before[row, ids])
        else:
            assert torch.equal(logits[row], before[row])


def test_bits_are_unpacked_alike_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, on the device that is here."""
    words = np.random.default_rng(0).integers(0, 1 << 32, size=(4, 3), dtype=np.uint32)
    expected, found = torch.zeros(4, VOCAB), torch.zeros(4, VOCAB)
    masks = list(enumerate(words))
    allow_only(expected, masks)
    monkeypatch.setattr("shared.model.sampler.masks._is_host", lambda _device: False)
    allow_only(found, masks)
    assert torch.equal(found, expected)
    assert 0 < int(found.isfinite().sum()) < found.numel()


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0.0},
        {"temperature": 5.0},
        {"temperature": 2.0, "top_k": 1},
        {"temperature": 2.0, "top_p": 0.1},
        {"temperature": 2.0, "min_p": 0.9},
        {"temperature": 0.0, "logit_bias": ((5, 100.0), (70, -100.0))},
        {"temperature": 1.0, "repetition_penalty": 100.0, "presence_penalty": 2.0},
    ],
)
def test_no_parameter_brings_back_what_is_forbidden(asked: dict[str, object]) -> None:
    params = SamplingParams(max_tokens=9, num_logprobs=1, **asked)  # type: ignore[arg-type]
    history = TokenHistory([70, 3], 1)
    logits = torch.randn(40, VOCAB, generator=torch.Generator().manual_seed(1))
    logits[:, 5] = 50
    raw = logits.log_softmax(dim=-1)
    rows = [Row(params, i, True, history, allowed=words_of(3, 40, 70)) for i in range(40)]
    free = Row(SamplingParams(max_tokens=9, temperature=0), 0)
    found = sample(torch.cat([logits, logits[:1]]).clone(), [*rows, free])
    assert {sampled.token for sampled in found[:-1]} <= {3, 40, 70}
    assert found[-1].token == 5
    for row, sampled in enumerate(found[:-1]):
        assert sampled.logprobs is not None
        assert sampled.logprobs.logprob == pytest.approx(float(raw[row, sampled.token]), abs=1e-4)
        assert sampled.logprobs.top[0][0] == 5, "log-probabilities are the model's own: before the mask"


def test_a_mask_alone_keeps_a_row_from_its_greatest_logit() -> None:
    row = Row(SamplingParams(max_tokens=9, temperature=0), 0)
    logits = torch.arange(VOCAB, dtype=torch.float32).unsqueeze(0)
    assert takes_best(row)
    assert not takes_best(row._replace(allowed=words_of(3)))
    assert sample(logits, [row._replace(allowed=words_of(3, 9))])[0].token == 9
