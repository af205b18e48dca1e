"""The judgement of the shared-cache benchmark, on answers that were made up, and what starts its servers."""

import sys
from pathlib import Path

import pytest

from benchmarks.client import RequestOutcome
from benchmarks.peers.process import PeerFailed
from benchmarks.peers.servers import Servers, free_ports
from benchmarks.peers.sharing import Asked, checks, is_wrong, rows


def answer(ttft_s: float, *tokens: str, top: list[dict[str, float]] | None = None) -> RequestOutcome:
    likely = top or [{token: -0.1, "rare": -9.0} for token in tokens]
    return RequestOutcome(token_times_s=[ttft_s], tokens=list(tokens), top_logprobs=likely)


def test_a_text_is_wrong_where_it_leaves_what_was_likely() -> None:
    cold = answer(1.0, "a", "b", "c", top=[{"a": -0.1}, {"b": -0.7, "x": -0.9, "y": -2.0}, {"c": -0.1}])
    assert not is_wrong(cold, answer(0.1, "a", "b", "c"))
    assert not is_wrong(cold, answer(0.1, "a", "x", "z"))  # a near tie; what follows is another text
    assert is_wrong(cold, answer(0.1, "a", "y", "c"))
    assert is_wrong(cold, answer(0.1, "q"))  # not among the likeliest at all
    assert is_wrong(cold, answer(0.1, "a", "b"))


def test_b_is_compared_with_b() -> None:
    ours = {512: [Asked(answer(1.0, "a"), answer(0.1, "a"))], 2048: [Asked(answer(2.0, "a"), answer(0.4, "rare"))]}
    theirs = {512: [Asked(answer(1.0, "a"), answer(0.8, "a"))]}
    ratio, wrong = checks(ours, theirs)
    assert (ratio.value, ratio.met) == (0.125, True)
    assert (wrong.value, wrong.met) == (1, False)
    assert [check.name for check in checks(ours, {})] == ["wrong texts of our B"]
    first, second = rows("ours", ours)
    assert (first["same_texts"], first["wrong_texts"], first["a_cold_ms"]) == (1, 0, 1000.0)
    assert (second["same_texts"], second["wrong_texts"]) == (0, 1)


def test_servers_end_with_their_owner_and_failures_say_why(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with Servers(tmp_path) as servers:
        servers.start("page", (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"), {})
        servers.wait("page", f"http://127.0.0.1:{port}/")
        servers.start("broken", (sys.executable, "-c", "raise SystemExit('no such model')"), {})
        with pytest.raises(PeerFailed, match="no such model"):
            servers.wait("broken", f"http://127.0.0.1:{port}/nothing")
    (again,) = free_ports(1)
    assert again  # and the page's port is free
