"""The serving benchmark without any server: guidellm's command and JSON, a turn under a stand-in for it, judgement."""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.load.asking import Asking
from benchmarks.load.servers import THEIRS, LoadServer
from benchmarks.peers.process import PeerFailed
from benchmarks.serving import judging
from benchmarks.serving.__main__ import add_options, measure
from benchmarks.serving.contestants import LLAMA, NAMES, ONE_BOX, UP, contestants
from benchmarks.serving.conversations import (
    AnsweredTurn,
    ConversationLoad,
    HeldConversations,
    cached_share,
    command,
    read,
)
from benchmarks.serving.turns import GuideLlm, ProcessorTimes, ServingTurn, nearest, turn
from shared.ids import ModelFingerprint
from shared.model.files.catalog import ModelFiles

LOAD = ConversationLoad(users=2, turns=2, system_tokens=100, input_tokens=10, output_tokens=4)
FILES = ModelFiles("tiny", Path("/models/tiny"), ModelFingerprint("0" * 64), Path("/models/tiny.gguf"), Path("/models"))

STAND_IN = """#!{python}
import json, sys, time
path = sys.argv[sys.argv.index("--output") + 1].split("path=")[1]
began = time.time()
ends = time.process_time() + {busy_s}
while time.process_time() < ends:
    pass
if {fails}:
    sys.exit("no such model")
result = dict(
    requests=dict(successful={answered}, errored=[], incomplete=[]),
    start_time=began, end_time=time.time() + 1e-3,
)
open(path, "w").write(json.dumps(dict(benchmarks=[result])))
"""


def answered(turn_index: int, output_tokens: int = 4, cached: int | None = 64) -> dict[str, object]:
    return {
        "info": {"turn_index": turn_index},
        "time_to_first_token_ms": 10.0 * (turn_index + 1),
        "inter_token_latency_ms": 2.0,
        "prompt_tokens": 128,
        "cached_tokens": cached,
        "output_tokens": output_tokens,
    }


def stand_in(folder: Path, found: list[dict[str, object]], busy_s: float = 0.0, fails: bool = False) -> Path:
    path = folder / "guidellm"
    path.write_text(STAND_IN.format(python=sys.executable, answered=found, busy_s=busy_s, fails=fails))
    path.chmod(0o755)
    return path


@pytest.fixture
def server() -> Iterator[LoadServer]:
    """A server that does nothing."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield LoadServer("idle", Asking("http://127.0.0.1:1", "tiny"), psutil.Process(process.pid))
        assert process.stdin is not None
        process.stdin.close()


def test_guidellm_is_told_of_all_lengths() -> None:
    told = command(Path("guidellm"), LOAD, "http://127.0.0.1:1", FILES, 7, Path("out.json"))
    options = dict(zip(told[3::2], told[4::2], strict=True))
    assert told[:3] == ["guidellm", "run", "--disable-console"]
    assert options["--backend"] == "kind=openai_http,target=http://127.0.0.1:1,model=tiny"
    assert options["--tokenizer"] == "kind=hf_auto,model=/models/tiny"
    assert options["--profile"] == "kind=concurrent,streams=2"
    assert options["--constraint"] == "kind=max_requests,count=4"
    assert options["--seed"] == "kind=static,value=7"
    data = "prompt_tokens=10,output_tokens=4,turns=2,prefix_tokens=100,prefix_count=1"
    assert options["--data"] == f"kind=synthetic_text,{data}"


def test_an_answer_of_another_length_and_a_missing_one_are_failures(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    successful = [answered(0), answered(1), answered(1, output_tokens=3)]
    found = {"requests": {"successful": successful}, "start_time": 100.0, "end_time": 102.5}
    result.write_text(json.dumps({"benchmarks": [found]}))
    held = read(result, LOAD)
    assert held.requests == (AnsweredTurn(0, 10.0, 2.0, 128, 64, 4), AnsweredTurn(1, 20.0, 2.0, 128, 64, 4))
    assert held.num_failed == 2
    assert held.seconds == 2.5


def test_a_server_that_says_nothing_of_its_cache_has_no_share() -> None:
    silent = AnsweredTurn(0, 1.0, None, 128, None, 4)
    assert cached_share([silent]) is None
    assert cached_share([AnsweredTurn(0, 1.0, None, 128, 32, 4), AnsweredTurn(1, 1.0, None, 128, 96, 4)]) == 0.5


def test_a_turn_counts_the_clients_time_apart_from_the_servers(tmp_path: Path, server: LoadServer) -> None:
    guidellm = stand_in(tmp_path, [answered(0), answered(1), answered(0), answered(1)], busy_s=1.0)
    found = turn(GuideLlm(guidellm, FILES, tmp_path), LOAD, 0, server)
    assert found.held.num_failed == 0
    assert len(found.held.requests) == 4
    assert 0.4 < found.client_cpu_s < 1.6
    assert found.cpu_s.total() < 0.2
    assert found.memory_mb.total() > 0


def test_the_last_words_of_a_client_that_fails_are_passed_on(tmp_path: Path, server: LoadServer) -> None:
    with pytest.raises(PeerFailed, match="no such model"):
        turn(GuideLlm(stand_in(tmp_path, [], fails=True), FILES, tmp_path), LOAD, 0, server)


def test_a_load_is_accounted_between_the_looks_next_to_its_ends() -> None:
    looks = [ProcessorTimes(at, Counter(), Counter(), 0.0) for at in (1.0, 2.0, 3.0)]
    assert nearest(looks, 2.4).at == 2.0
    assert nearest(looks, 9.0).at == 3.0


def served(seconds: float, ttft_ms: float, failed: int = 0) -> ServingTurn:
    requests = tuple(AnsweredTurn(index, ttft_ms * (2 - index), 5.0, 100, 50 * index, 4) for index in (0, 1))
    held = HeldConversations(requests, failed, 0.0, seconds)
    return ServingTurn(held, Counter({"decode": 1.5, "gateway": 0.5}), 0.25, 0.0, Counter({"decode": 100}))


def test_rows_show_speed_turns_and_costs() -> None:
    rows = judging.report({ONE_BOX: [served(2.0, 10.0), served(4.0, 30.0)]}).rows
    speed = rows[0]
    assert speed["tokens_per_s"] == 3.0
    assert speed["ttft_p50_ms"] == 25.0
    assert speed["cached_share"] == 0.25
    assert [(row["turn"], row["turn_ttft_p50_ms"], row["turn_cached_share"]) for row in rows if "turn" in row] == [
        (1, 40.0, 0.0),
        (2, 20.0, 0.5),
    ]
    (cost,) = (row for row in rows if "server_cores" in row)
    assert (cost["server_cores"], cost["client_cores"]) == (0.67, 0.08)
    assert [row["process"] for row in rows if "process" in row] == ["decode", "gateway"]


def test_our_single_box_is_held_against_each_other_server() -> None:
    checks = judging.report({ONE_BOX: [served(2.0, 10.0)], THEIRS: [served(1.0, 20.0, failed=1)]}).checks
    met = {check.name: check.met for check in checks}
    assert met == {
        f"{ONE_BOX}: requests that failed": True,
        f"{THEIRS}: requests that failed": False,
        f"{ONE_BOX}: tokens/s, times those of {THEIRS}": False,
        f"{ONE_BOX}: TTFT p50, times that of {THEIRS}": True,
        f"{ONE_BOX}: TTFT p99, times that of {THEIRS}": True,
    }


def test_a_server_that_answered_nothing_is_reported_and_not_compared() -> None:
    nothing = ServingTurn(HeldConversations((), 4, 0.0, 1.0), Counter(), 0.0, 0.0, Counter())
    report = judging.report({ONE_BOX: [served(2.0, 10.0)], LLAMA: [nothing]})
    assert {"server": LLAMA, "requests": 0, "failed": 4} in report.rows
    assert [check.name for check in report.checks if LLAMA in check.name] == [f"{LLAMA}: requests that failed"]


def test_contestants_without_a_program_say_how_to_name_it(tmp_path: Path) -> None:
    found = contestants(FILES, LOAD, tmp_path, None, None, threads=2)
    assert tuple(one.name for one in found) == NAMES
    assert {one.name: one.absent for one in found if one.opened is None} == {
        THEIRS: "say --vllm-python PATH",
        LLAMA: "say --llama-server PATH",
    }
    assert found[0].name == UP


def test_without_guidellm_nothing_is_started() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    add_options(parser)
    report = measure(parser.parse_args(["--quick", "--guidellm", "/nowhere/guidellm"]))
    assert report.rows == [{"client": "/nowhere/guidellm", "absent": "no such command: say --guidellm PATH"}]
    assert report.checks == []
