"""`prfaas chat` against a gateway: one question, from stdin, as JSON, in a terminal."""

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import pytest

from shared.errors import WorkerLost
from shared.proto import prfaas_pb2 as pb
from tests.contract.cli.conftest import Prfaas
from tests.support.gateway import Call, ScriptedSuite, bytes_of, ids_of, raises, says
from tests.support.suite import ROOT
from tests.support.waiting import until


def asked(suite: ScriptedSuite) -> list[str]:
    return [bytes_of(call.request.token_ids).decode() for call in suite.decode.calls]


async def test_an_answer_goes_to_stdout_and_its_figures_to_stderr(suite: ScriptedSuite, prfaas: Prfaas) -> None:
    done = await prfaas("chat", "hi", "--max-tokens", "5", "--system", "Be brief.")
    assert (done.exit_code, done.stdout) == (0, "hello\n")
    assert re.fullmatch(
        r"\[\d+ prompt tokens, \d+ of them cached; first text after \d+\.\d\d s; 5 tokens in \d+\.\d\d s; "
        r"cut off at the limit\]\n",
        done.stderr,
    )
    assert asked(suite) == ["System: Be brief.\nUser: hi\nAssistant:"]


async def test_quiet_has_no_figures(prfaas: Prfaas) -> None:
    done = await prfaas("chat", "hi", "--max-tokens", "5", "-q")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "hello\n", "")


@pytest.mark.parametrize("arguments", [[], ["-"]])
async def test_a_question_may_come_from_stdin(suite: ScriptedSuite, prfaas: Prfaas, arguments: list[str]) -> None:
    done = await prfaas("chat", *arguments, "--max-tokens", "5", input="a long\ntext\n")
    assert (done.exit_code, done.stdout) == (0, "hello\n")
    assert asked(suite) == ["User: a long\ntext\n\nAssistant:"]


async def test_an_empty_stdin_asks_nothing(suite: ScriptedSuite, prfaas: Prfaas) -> None:
    done = await prfaas("chat", input=" \n")
    assert (done.exit_code, done.stderr) == (2, "prfaas: stdin is empty: nothing to ask\n")
    assert asked(suite) == []


async def test_json_is_the_whole_answer_with_its_figures(prfaas: Prfaas) -> None:
    done = await prfaas("chat", "hi", "--max-tokens", "5", "--json")
    answer = json.loads(done.stdout)
    assert (done.exit_code, done.stderr) == (0, "")
    assert (answer["text"], answer["completion_tokens"], answer["finish_reason"]) == ("hello", 5, "length")
    assert 0 < answer["ttft_s"] <= answer["duration_s"]
    assert answer["cached_tokens"] <= answer["prompt_tokens"] == len("User: hi\nAssistant:")


async def test_a_refusal_is_told_in_the_gateways_words(prfaas: Prfaas) -> None:
    done = await prfaas("chat", "x" * 5000)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("prfaas: ")
    assert "2048" in done.stderr


async def test_an_answer_that_breaks_off_is_no_success(suite: ScriptedSuite, prfaas: Prfaas) -> None:
    async def breaks(_call: Call) -> AsyncIterator[pb.Tokens]:
        yield pb.Tokens(ids=ids_of("he"))
        raise ValueError("out of luck")

    suite.decode.behave = breaks
    done = await prfaas("chat", "hi")
    assert done.exit_code == 1
    assert done.stdout == "he"
    assert "prfaas: the answer broke off: " in done.stderr


class Terminal:
    """A `prfaas chat` that runs in a terminal of its own."""

    def __init__(self, url: str, *arguments: str) -> None:
        self._fd, terminal = pty.openpty()
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "chat", "--gateway", url, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        os.set_blocking(self._fd, False)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    async def shows(self, text: str) -> None:
        """Wait until the text is there; what stands before it counts no more."""
        await until(lambda: self._read() and text in self.shown)
        self.shown = self.shown.partition(text)[2]

    def _read(self) -> bool:
        with suppress(BlockingIOError, OSError):  # the latter: it has ended
            self.shown += os.read(self._fd, 65536).decode(errors="replace")
        return True

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, 30)

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def terminal(url: str, *arguments: str) -> Iterator[Terminal]:
    running = Terminal(url, *arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        running.close()


async def test_a_conversation_remembers_what_was_said_and_ends_with_ctrl_d(suite: ScriptedSuite, url: str) -> None:
    suite.decode.behave = says("fine")
    with terminal(url, "--max-tokens", "4") as chat:
        await chat.shows("> ")
        chat.type("how are you\n")
        await chat.shows("fine")
        await chat.shows("4 tokens in ")
        await chat.shows("> ")
        chat.type("\nand now\n")
        await chat.shows("fine")
        await chat.shows("> ")
        chat.type("\x04")
        assert await chat.ended() == 0
    assert asked(suite)[1] == "User: how are you\nAssistant: fine\nUser: and now\nAssistant:"


async def test_ctrl_c_ends_an_answer_and_the_conversation_goes_on(suite: ScriptedSuite, url: str) -> None:
    suite.decode.behave = says("tick " * 300, pause_s=0.05)
    with terminal(url, "-q") as chat:
        await chat.shows("> ")
        chat.type("count\n")
        await chat.shows("tick ")
        chat.process.send_signal(signal.SIGINT)
        await chat.shows("[ended]")
        await until(lambda: suite.decode.calls[0].cancelled)
        suite.decode.behave = says("fine")
        await chat.shows("> ")
        chat.type("again\n")
        await chat.shows("fine")
        await chat.shows("> ")
        chat.type("a line that was beg")
        await chat.shows("beg")
        chat.process.send_signal(signal.SIGINT)  # at the prompt: only the line that was begun is dropped
        await chat.shows("> ")
        chat.type("\x04")
        assert await chat.ended() == 0
    assert re.fullmatch(r"User: count\nAssistant: (tick ?)+\w*\nUser: again\nAssistant:", asked(suite)[1])


async def test_a_failure_ends_no_conversation(suite: ScriptedSuite, url: str) -> None:
    suite.decode.behave = raises(WorkerLost("gone"))
    with terminal(url, "-q") as chat:
        await chat.shows("> ")
        chat.type("hi\n")
        await chat.shows("prfaas: ")
        await chat.shows("> ")
        chat.type("\x04")
        assert await chat.ended() == 0


async def test_ctrl_c_ends_a_single_question_with_130(suite: ScriptedSuite, url: str) -> None:
    suite.decode.behave = says("tick " * 300, pause_s=0.05)
    with terminal(url, "count") as chat:
        await chat.shows("tick ")
        chat.process.send_signal(signal.SIGINT)
        assert await chat.ended() == 130
        await until(lambda: suite.decode.calls[0].cancelled)
