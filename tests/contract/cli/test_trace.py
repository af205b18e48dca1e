"""`prfaas trace`: the latest requests, and what one went through."""

import json

from tests.contract.cli.conftest import Prfaas
from tests.support.gateway import ScriptedSuite, prefills

LONG = "x" * 100  # above the offload threshold


async def test_the_latest_requests_are_listed_newest_first(prfaas: Prfaas) -> None:
    for question in ("one", "another"):
        await prfaas("chat", question, "--max-tokens", "5")
    done = await prfaas("trace", "--json", "--limit", "1")
    (latest,) = json.loads(done.stdout)["data"]
    assert (latest["prompt_tokens"], latest["completion_tokens"]) == (len("User: another\nAssistant:"), 5)
    shown = (await prfaas("trace")).stdout
    assert shown.index(latest["id"]) < shown.index(f" {len('User: one' + chr(10) + 'Assistant:')} ")
    assert shown.count("prefill-east") == 2


async def test_a_request_that_was_handed_over_is_drawn(suite: ScriptedSuite, prfaas: Prfaas) -> None:
    suite.prefill.behave = prefills(96)
    answer = json.loads((await prfaas("chat", LONG, "--max-tokens", "5", "--json")).stdout)
    told = json.loads((await prfaas("trace", answer["id"], "--json")).stdout)
    assert answer["id"].endswith(told["id"])
    done = await prfaas("trace", answer["id"])
    assert done.exit_code == 0
    for words in (told["id"], "waits for its turn", "prefill-east: called", "decode-west: until the first token"):
        assert words in done.stdout
    lines = [line for line in done.stdout.splitlines() if "━" in line and " s " in line]
    assert len(lines) >= 5


async def test_a_request_that_nobody_knows(prfaas: Prfaas) -> None:
    done = await prfaas("trace", "nobody/else")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no timeline of a request 'nobody/else'" in done.stderr
