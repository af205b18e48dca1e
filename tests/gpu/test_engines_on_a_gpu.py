"""What only a GPU shows: run by `pytest -m gpu tests/gpu` where there is one."""

import random
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from math import lcm
from typing import Any

import pytest
import torch

from benchmarks.device.checksums import MIB, mapped
from benchmarks.device.shapes import GEMMA_270M, SMOLLM2_135M, config_of, random_weights, transformer
from shared.engine.stage import Arrival, CudaStager, Departure, memory_for
from shared.kv.payloads import addresses_of, digests
from shared.model.attention.select import select_attention
from shared.model.layers.batch import Batch, Span
from shared.model.pages.kv import PagedKv
from shared.model.sampler.penalties import TokenHistory
from shared.model.sampler.sampling import Row, sample
from shared.sampling.params import SamplingParams
from tests.support.entries import entry_bytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
DEVICE = torch.device("cuda")

PARAMS = (
    SamplingParams(max_tokens=4, temperature=0.0),
    SamplingParams(max_tokens=4, temperature=0.8, seed=1),
    SamplingParams(max_tokens=4, temperature=1.2, top_p=0.9, top_k=50, seed=2),
    SamplingParams(max_tokens=4, temperature=0.7, min_p=0.05, seed=3, num_logprobs=3),
    SamplingParams(max_tokens=4, presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.3, seed=4),
    SamplingParams(max_tokens=4, temperature=0.0, logit_bias=((7, 50.0),)),
)


def test_tokens_are_those_that_the_cpu_draws() -> None:
    logits = 4 * torch.randn(len(PARAMS), 128256, generator=torch.Generator().manual_seed(0))
    rng = random.Random(0)
    tokens = [rng.randrange(128256) for _ in range(50)]

    def rows() -> list[Row]:
        histories = [TokenHistory(tokens, 20) if params.has_penalties else None for params in PARAMS]
        return [Row(p, 50, history=history) for p, history in zip(PARAMS, histories, strict=True)]

    on_cpu, on_gpu = sample(logits.clone(), rows()), sample(logits.to(DEVICE), rows())
    assert [one.token for one in on_gpu] == [one.token for one in on_cpu]


def pages(num_blocks: int) -> torch.Tensor:
    return torch.randn(2, num_blocks, 64, 8, 128, device=DEVICE).to(torch.bfloat16)


def entries(blocks: torch.Tensor, numbers: Sequence[int]) -> list[bytes]:
    return [entry_bytes(blocks[:, i]) for i in numbers]


@pytest.mark.parametrize("numbers", [range(300), range(299, -1, -2)])
def test_what_is_staged_beside_the_model_is_what_it_had_computed(numbers: Sequence[int]) -> None:
    """Pages are changed before the mark, and other work keeps the device busy meanwhile."""
    stager, blocks = CudaStager(DEVICE), pages(300)
    before = entries(blocks, numbers)
    matrix = torch.randn(4096, 4096, device=DEVICE)
    for _ in range(20):
        matrix = (matrix @ matrix).clamp(-1, 1)
    blocks.add_(1)
    mark = stager.mark()
    for _ in range(20):
        matrix = (matrix @ matrix).clamp(-1, 1)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(bytes(raw) for raw in stager.stage(mark, blocks, numbers)))
    reader.start()
    reader.join()
    torch.cuda.synchronize()
    assert found != before
    assert found == entries(blocks, numbers)


def test_what_has_landed_is_seen_by_what_is_submitted_afterwards() -> None:
    stager, source, target = CudaStager(DEVICE), pages(40), pages(40)
    numbers = [*range(20), 39, *range(20, 39)]
    stager.land([Arrival(raw, target, i) for raw, i in zip(entries(source, numbers), numbers, strict=True)])
    assert torch.equal(target, source)


@pytest.mark.parametrize("is_registered", [True, False])
def test_entries_go_into_mapped_memory_and_come_back_but_for_the_corrupt_ones(is_registered: bool) -> None:
    """256 KiB each, in slots over three pieces, side by side and apart."""
    source, target, size = pages(600), torch.zeros_like(pages(600)), 256 * 1024
    numbers = [*range(300), *range(599, 299, -1)]
    with closing(memory_for(DEVICE)) as memory, mapped(192 * MIB, shared=True) as content:
        if is_registered:
            [address] = addresses_of([content])
            memory.grow(address, len(content))
            assert memory.settle(60) == len(content)
        stager = CudaStager(DEVICE, memory)
        slots = [content[i * size : (i + 1) * size] for i in numbers]
        headers = [i.to_bytes(40, "big") for i in range(len(numbers))]
        source.add_(1)
        [checksums] = stager.place([Departure(stager.mark(), source, numbers, slots, headers)], digests)
        torch.cuda.synchronize()
        assert [bytes(slot) for slot in slots] == entries(source, numbers)
        assert checksums == digests(headers, slots)
        slots[7][5] ^= 1
        slots[431][-1] ^= 128
        arrivals = [Arrival(slot, target, number) for slot, number in zip(slots, numbers, strict=True)]
        assert stager.land_sealed(arrivals, headers, checksums, digests) == [i not in (7, 431) for i in range(600)]
        for number in (numbers[7], numbers[431]):
            assert not target[:, number].any()
            source[:, number] = 0
        assert torch.equal(target, source)
        del slots, arrivals


@pytest.mark.parametrize("shape", [SMOLLM2_135M, GEMMA_270M], ids=["smollm2", "gemma3"])
def test_a_step_that_stores_nothing_reads_its_own_token_from_the_pages(shape: Mapping[str, Any]) -> None:
    """Pages that others read do not change; what is computed is what a step that writes the same would compute."""
    attention = select_attention("auto", DEVICE)
    config = config_of({**shape, "num_hidden_layers": 6, "vocab_size": 8192})
    model = transformer(config, random_weights(config, torch.bfloat16, DEVICE), attention)
    kv = PagedKv(config.kv_layout(64, "bfloat16"), 128, lcm(64, attention.page_tokens), DEVICE)
    ids = torch.arange(768, device=DEVICE)
    reservation = kv.reserve([], len(ids))
    assert reservation is not None

    def last(stores: bool) -> torch.Tensor:
        batch = Batch.build([Span(reservation.tables, len(ids) - 1, 1, stores)], kv.page_tokens, DEVICE)
        return model.forward(ids[-1:], batch, kv).clone()

    model.forward(ids, Batch.build([Span(reservation.tables, 0, len(ids))], kv.page_tokens, DEVICE), kv)
    written = last(stores=True)
    content = [kv.blocks_of(layer).clone() for layer in range(model.num_layers)]
    assert torch.equal(last(stores=False), written)
    assert all(torch.equal(kv.blocks_of(layer), before) for layer, before in enumerate(content))
    for layer in range(model.num_layers):
        kv.values_of(layer)[reservation.tables[kv.group_of(layer)][-1], -1] += 1
    assert not torch.equal(last(stores=False), written)
