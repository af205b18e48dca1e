"""The default model through real processes gives the tokens that `transformers` gives. The whole battery, both models
and codecs, is `python -m benchmarks.exactness`."""

import aiohttp
import pytest

from benchmarks.exactness import Client, Oracle, compare
from tests.support.suite import Suite

pytestmark = [pytest.mark.suite, pytest.mark.xdist_group("suite"), pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # transformers' own
async def test_greedy_tokens_equal_transformers(suite: Suite) -> None:
    oracle = Oracle("smollm2-135m-instruct")
    async with aiohttp.ClientSession() as session:
        rows = await compare(Client(session, suite.url), oracle, "raw", (1, 64, 65, 577), 700, 12)
    assert len(rows) == 4 + 3 + 8
    assert [row for row in rows if row["equal"] != row["tokens"]] == []
    assert {row["case"]: row["cached_tokens"] for row in rows if "cached" in str(row["case"])} == {
        "half cached": 320,
        "fully cached": 640,
    }
