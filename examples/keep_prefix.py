"""Computes a long system prompt ahead of time, keeps it in the pools, and asks questions that begin with it.

The KV blocks of a kept prefix are not evicted until its time is over or it is deleted.
"""

import argparse
import json
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

QUESTIONS = ("May I sell copies?", "Must I publish my changes?")


def ask(url: str, body: dict[str, Any] | None = None, method: str | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}, method=method)) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", nargs="?", type=Path, default=Path("LICENSE"), help="a text to ask about")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the gateway")
    options = parser.parse_args()

    text = options.document.read_text()[:4000]
    system = {"role": "system", "content": f"Answer questions about this text:\n{text}"}
    prefix = ask(f"{options.url}/v1/prefixes", {"messages": [system], "ttl_s": 600, "name": options.document.name})
    print(f"{prefix['id']}: {prefix['kept_tokens']} of {prefix['num_tokens']} tokens are kept for ten minutes")
    try:
        for question in QUESTIONS:
            messages = [system, {"role": "user", "content": question}]
            answer = ask(f"{options.url}/v1/chat/completions", {"messages": messages, "max_tokens": 32})
            usage = answer["usage"]
            cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
            print(f"{question} {answer['choices'][0]['message']['content']}")
            print(f"[{usage['prompt_tokens']} prompt tokens, {cached_tokens} of them cached]")
    finally:
        ask(f"{options.url}/v1/prefixes/{prefix['id']}", method="DELETE")


if __name__ == "__main__":
    main()
