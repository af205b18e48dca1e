"""Conversations over one system prompt: how guidellm is told to hold them, and what it says of each request."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.model.files.catalog import ModelFiles


@dataclass(frozen=True)
class ConversationLoad:
    """Each of `users` has one conversation. All share the system prompt; a turn carries all turns before it."""

    users: int = 16
    turns: int = 4
    system_tokens: int = 2000
    input_tokens: int = 100
    output_tokens: int = 64

    @property
    def num_requests(self) -> int:
        return self.users * self.turns

    @property
    def most_tokens(self) -> int:
        """Tokens of a conversation at its end, with room for the chat template's own."""
        template_tokens = 32
        return self.system_tokens + self.turns * (self.input_tokens + self.output_tokens + template_tokens)


QUICK = ConversationLoad(users=4, turns=2, system_tokens=300, input_tokens=30, output_tokens=8)


@dataclass(frozen=True)
class AnsweredTurn:
    """One answered request by guidellm's clock. `itl_ms` is the mean of its times between tokens."""

    turn: int
    ttft_ms: float
    itl_ms: float | None
    prompt_tokens: int
    cached_tokens: int | None  # None: the server does not say
    output_tokens: int


@dataclass(frozen=True)
class HeldConversations:
    """What guidellm found: the answered requests, the number of all others, and when the load began and ended."""

    requests: tuple[AnsweredTurn, ...]
    num_failed: int
    began: float  # seconds since the epoch
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def command(guidellm: Path, load: ConversationLoad, url: str, files: ModelFiles, seed: int, result: Path) -> list[str]:
    """Return guidellm's command line. The converted model's folder has the tokeniser that makes the prompts."""
    data = f"prompt_tokens={load.input_tokens},output_tokens={load.output_tokens},turns={load.turns}"
    data += f",prefix_tokens={load.system_tokens},prefix_count=1"
    return [
        *(str(guidellm), "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={url},model={files.name}"),
        *("--tokenizer", f"kind=hf_auto,model={files.path}"),
        *("--profile", f"kind=concurrent,streams={load.users}"),
        *("--constraint", f"kind=max_requests,count={load.num_requests}"),
        *("--data", f"kind=synthetic_text,{data}"),
        *("--seed", f"kind=static,value={seed}"),
        *("--output", f"kind=json,path={result}"),
    ]


def read(result: Path, load: ConversationLoad) -> HeldConversations:
    """Read guidellm's JSON. An answer with another number of tokens than asked for counts as failed."""
    (benchmark,) = json.loads(result.read_text())["benchmarks"]
    answered = [_request(found) for found in benchmark["requests"]["successful"]]
    whole = tuple(request for request in answered if request.output_tokens == load.output_tokens)
    return HeldConversations(whole, load.num_requests - len(whole), benchmark["start_time"], benchmark["end_time"])


def cached_share(requests: Sequence[AnsweredTurn]) -> float | None:
    """Return the part of all prompt tokens that the server had cached; None if it does not say."""
    known = [request.cached_tokens for request in requests if request.cached_tokens is not None]
    if not known:
        return None
    return sum(known) / sum(request.prompt_tokens for request in requests)


def _request(found: dict[str, Any]) -> AnsweredTurn:
    return AnsweredTurn(
        turn=found["info"]["turn_index"],
        ttft_ms=found["time_to_first_token_ms"],
        itl_ms=found["inter_token_latency_ms"],
        prompt_tokens=found["prompt_tokens"],
        cached_tokens=found["cached_tokens"],
        output_tokens=found["output_tokens"],
    )
