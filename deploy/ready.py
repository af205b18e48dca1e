"""The last process of the Procfile: waits until the suite answers a real request, says so in one line, then idles."""

import argparse
import json
import signal
import sys
import time
from urllib.error import URLError
from urllib.request import Request, urlopen

POLL_S = 0.1
QUESTION = "The capital of France is"


def curl_line(gateway: str, model: str) -> str:
    body = json.dumps({"model": model, "prompt": QUESTION, "max_tokens": 32})
    return f"curl {gateway}/v1/completions -H 'Content-Type: application/json' -d '{body}'"


def answers(url: str, body: dict[str, object] | None = None, timeout_s: float = 10.0) -> dict[str, object] | None:
    """The JSON answer ({} when it is something else) of a request that succeeded; None when it did not."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=timeout_s) as response:
            raw = response.read()
    except (URLError, OSError):
        return None
    try:
        parsed = json.loads(raw)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def wait(gateway: str, others: list[str], limit_s: float) -> str | None:
    """Returns the model's name once every part is ready and one token was generated; None when time is up."""
    waiting = [*(f"{other}/readyz" for other in others), f"{gateway}/health"]
    give_up_at = time.monotonic() + limit_s
    while time.monotonic() < give_up_at:
        waiting = [url for url in waiting if answers(url) is None]
        if not waiting and (models := answers(f"{gateway}/v1/models")):
            name = str(models["data"][0]["id"])  # type: ignore[index]
            if answers(f"{gateway}/v1/completions", {"model": name, "prompt": QUESTION, "max_tokens": 1}):
                return name
        time.sleep(POLL_S)
    print(f"not ready after {limit_s:.0f} s; still waiting for {', '.join(waiting) or 'a first answer'}")
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gateway", required=True, help="the gateway's URL")
    parser.add_argument("--also", nargs="*", default=[], help="status ports on this machine that must be ready too")
    parser.add_argument("--limit-s", type=float, default=180.0)
    options = parser.parse_args()
    started = time.monotonic()
    model = wait(options.gateway, [f"http://127.0.0.1:{port}" for port in options.also], options.limit_s)
    if model is None:
        return 1
    spent_s = time.monotonic() - started
    print(f"ready after {spent_s:.1f} s: {options.gateway} serves {model}; try: {curl_line(options.gateway, model)}")
    sys.stdout.flush()
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
