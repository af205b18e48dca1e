"""Streams a completion with nothing but the standard library: server-sent events are lines that begin with `data: `."""

import argparse
import json
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen


def stream(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a streamed completion. Raises `urllib.error.HTTPError` when it is refused."""
    data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    request = Request(f"{url}/v1/completions", data, {"Content-Type": "application/json"})
    with urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                yield json.loads(line.removeprefix(b"data: "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="The capital of France is")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the gateway")
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()

    for chunk in stream(options.url, {"prompt": options.prompt, "max_tokens": options.max_tokens}):
        for choice in chunk["choices"]:
            print(choice["text"], end="", flush=True)
        if usage := chunk.get("usage"):  # in the last chunk
            print(f"\n[{usage['completion_tokens']} tokens]")


if __name__ == "__main__":
    main()
