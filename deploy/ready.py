"""The last process of the Procfile: says when the suite answers a real request, and when it does so again."""

import argparse
import json
import math
import os
import sys
import time
from http.client import HTTPException
from urllib.error import URLError
from urllib.request import Request, urlopen

from deploy.up.trust import reached, trust

POLL_S = 0.1
WATCH_S = 1.0
EXIT_IN_VAIN = 2
"""Not ready in time: who started this need not try again."""

QUESTION = "The capital of France is"


def say(line: str) -> None:
    print(line, flush=True)


def curl_line(gateway: str, model: str) -> str:
    body = json.dumps({"model": model, "prompt": QUESTION, "max_tokens": 32})
    trusted = f"--cacert {os.environ.get('PRFAAS_CERTS')}/ca.pem " if gateway.startswith("https:") else ""
    return f"curl {trusted}{gateway}/v1/completions -H 'Content-Type: application/json' -d '{body}'"


def answers(url: str, body: dict[str, object] | None = None, timeout_s: float = 10.0) -> dict[str, object] | None:
    """Return the JSON answer ({} when it is something else) of a request that succeeded; None when it did not."""
    data = None if body is None else json.dumps(body).encode()
    try:
        request = Request(url, data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=timeout_s, context=trust(os.environ)) as response:
            raw = response.read()
    except (URLError, OSError, HTTPException):
        return None
    try:
        parsed = json.loads(raw)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def health_urls(gateway: str, others: list[str]) -> list[str]:
    return [*(f"{other}/readyz" for other in others), f"{gateway}/health"]


def wait(gateway: str, others: list[str], limit_s: float) -> str | None:
    """Return the model's name once every part is ready and one token was generated; None when time is up."""
    waiting = health_urls(gateway, others)
    give_up_at = time.monotonic() + limit_s
    while time.monotonic() < give_up_at:
        waiting = [url for url in waiting if answers(url) is None]
        if not waiting and (models := answers(f"{gateway}/v1/models")):
            name = str(models["data"][0]["id"])  # type: ignore[index]
            if answers(f"{gateway}/v1/completions", {"model": name, "prompt": QUESTION, "max_tokens": 1}):
                return name
        time.sleep(POLL_S)
    say(f"not ready after {limit_s:.0f} s; still waiting for {', '.join(waiting) or 'a first answer'}")
    return None


def watch(gateway: str, others: list[str]) -> float:
    """Wait until a part is not ready, then until all answer again; return the seconds in between."""
    while all(answers(url) is not None for url in health_urls(gateway, others)):
        time.sleep(WATCH_S)
    lost = time.monotonic()
    wait(gateway, others, math.inf)
    return time.monotonic() - lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gateway", required=True, help="the gateway's URL")
    parser.add_argument("--also", nargs="*", default=[], help="status ports on this machine that must be ready too")
    parser.add_argument("--limit-s", type=float, default=180.0)
    options = parser.parse_args()
    started = time.monotonic()
    gateway = reached(options.gateway, os.environ)
    others = [reached(f"http://127.0.0.1:{port}", os.environ) for port in options.also]
    model = wait(gateway, others, options.limit_s)
    if model is None:
        return EXIT_IN_VAIN
    spent_s = time.monotonic() - started
    say(f"ready after {spent_s:.1f} s: {gateway} serves {model}; try: {curl_line(gateway, model)}")
    while True:
        say(f"answers again after {watch(gateway, others):.1f} s")


if __name__ == "__main__":
    sys.exit(main())
