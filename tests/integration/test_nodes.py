"""Pools of several nodes: answers equal the reference whatever joins, leaves or dies, and only its share moves."""

import asyncio

import pytest

from shared.kv.rendezvous import owner
from tests.support.engines import Node, TwoDatacenters, two_datacenters
from tests.support.tiny import MODELS, greedy_reference, prompt

NUM_LAYERS = 4


def published(dcs: TwoDatacenters, node: Node) -> float:
    return node.metric("entries_published_total")


def pulled(dcs: TwoDatacenters, node: Node) -> float:
    return sum(node.metric("pulled_entries_total", peer=peer) for peer in dcs.addresses("east"))


def shares(dcs: TwoDatacenters, dc: str, prompts: list[list[int]]) -> dict[str, float]:
    """How many entries of these prompts each node of a pool owns."""
    model = dcs.decode.model
    assert model is not None
    nodes = dcs.addresses(dc)
    keys = {key for tokens in prompts for key in model.keys(tokens[:-1], "")}
    owners = [owner(key, nodes) for key in keys]
    return {node: float(NUM_LAYERS * owners.count(node)) for node in nodes}


@pytest.mark.parametrize("name", MODELS)
async def test_three_nodes_are_one_pool(name: str) -> None:
    async with two_datacenters(name, num_nodes=3) as dcs:
        tokens = prompt(577)
        first = await dcs.generate(tokens, 70)
        assert first.ids == greedy_reference(name, tokens, 70)
        assert first.prefill_computed == 576
        await dcs.assert_idle()
        assert {node.address: published(dcs, node) for node in dcs.nodes["east"]} == shares(dcs, "east", [tokens])
        conversation = tokens + first.ids + prompt(10, seed=5)
        again = await dcs.generate(conversation, 4, prefill=False, wait_ms=0)
        assert again.cached(len(conversation)) == 646  # all but the last token generated
        assert again.ids == greedy_reference(name, conversation, 4)


async def test_a_node_that_leaves_or_joins_moves_its_share_alone() -> None:
    async with two_datacenters("llama", num_nodes=3) as dcs:
        prompts = [prompt(577, seed=seed) for seed in range(4)]

        async def serve_again() -> tuple[dict[str, float], dict[str, float]]:
            """Prefill, and read in the west; return how many entries each node was sent, and how many it pulled."""
            written = {node.address: published(dcs, node) for node in dcs.nodes["east"]}
            crossed = {node.address: pulled(dcs, node) for node in dcs.nodes["west"]}
            for tokens in prompts:
                assert await dcs.prefill_only(tokens) in (0, 576)
                await dcs.pull_west(tokens[:576])
            return (
                {node.address: published(dcs, node) - written[node.address] for node in dcs.nodes["east"]},
                {node.address: pulled(dcs, node) - crossed[node.address] for node in dcs.nodes["west"]},
            )

        before = shares(dcs, "east", prompts), shares(dcs, "west", prompts)
        assert await serve_again() == before
        assert await serve_again() == (dict.fromkeys(before[0], 0), dict.fromkeys(before[1], 0))
        for dc in ("east", "west"):
            victim = dcs.nodes[dc][1]
            await dcs.kill(dc, victim)
            dcs.forget(dc, victim)
        after = shares(dcs, "east", prompts), shares(dcs, "west", prompts)
        # The device still has what the dead node of the east had: it is sent again, and nothing else is.
        assert await serve_again() == tuple(_growth(*change) for change in zip(before, after, strict=True))
        newcomers = await dcs.join("east"), await dcs.join("west")
        last = shares(dcs, "east", prompts), shares(dcs, "west", prompts)
        moved = await serve_again()
        for node, now, share in zip(newcomers, moved, last, strict=True):
            assert now == {address: share[address] if address == node.address else 0.0 for address in now}
        for tokens in prompts:
            assert (await dcs.generate(tokens)).ids == greedy_reference("llama", tokens, 8)
        await dcs.assert_idle()


def _growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {node: share - before[node] for node, share in after.items()}


@pytest.mark.parametrize("dc", ["east", "west"])
async def test_requests_go_on_while_nodes_die_and_join(dc: str) -> None:
    async with two_datacenters("gemma3", num_nodes=3) as dcs:
        prompts = [prompt(200 + 61 * seed, seed=seed) for seed in range(8)]

        async def ask(number: int) -> None:
            tokens = prompts[number % 8]
            result = await dcs.generate(tokens, 12, wait_ms=120_000)
            assert result.ids == greedy_reference("gemma3", tokens, 12), f"request {number}"

        victim = dcs.nodes[dc][2]
        async with asyncio.TaskGroup() as requests:
            for number in range(4):
                requests.create_task(ask(number))
            await asyncio.sleep(0.1)
            await dcs.kill(dc, victim)
            for number in range(4, 8):  # their plans still name it
                requests.create_task(ask(number))
        dcs.forget(dc, victim)
        async with asyncio.TaskGroup() as requests:
            for number in range(8, 12):
                requests.create_task(ask(number))
            await dcs.join(dc)
            for number in range(12, 16):
                requests.create_task(ask(number))
        await dcs.assert_idle()


async def test_a_whole_pool_that_is_down_still_gives_answers() -> None:
    async with two_datacenters("llama", num_nodes=2) as dcs:
        for node in dcs.nodes["west"]:
            await dcs.kill("west", node)
        tokens = prompt(333)
        result = await dcs.generate(tokens)
        assert result.decode_computed == 333
        assert result.ids == greedy_reference("llama", tokens, 8)
