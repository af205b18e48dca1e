"""Peak memory of a fresh process that prefills one long prompt and streams it to a pool elsewhere."""

from pathlib import Path

from benchmarks.engine.emission import prefill
from benchmarks.engine.node import open_prefill
from benchmarks.engine.pool import feeding_pool
from benchmarks.harness import Report, Row, at_most
from benchmarks.peers.protocol import Prompts
from benchmarks.roofline import kv_bytes
from shared.config import load
from shared.engine.settings import EngineSettings
from shared.model.files.catalog import ensure_weights

NUM_TOKENS, QUICK_NUM_TOKENS = 32_000, 2_048
LIMIT_MB = 400.0


async def measure(quick: bool) -> Report:
    """The peak is of resident memory, from the start of the process; weights are mapped and count once touched."""
    settings = load(EngineSettings)
    async with feeding_pool(settings.model, settings.dtype) as pool, open_prefill(pool.address) as node:
        model, before = node.host.model, _resident("VmRSS")
        num_tokens = QUICK_NUM_TOKENS if quick else min(NUM_TOKENS, model.max_model_len - 1) // 64 * 64
        emission = await prefill(node, Prompts(4).draw(num_tokens))
        peak = _resident("VmHWM")
        weights = ensure_weights(model.files, settings.dtype).stat().st_size
        kv = kv_bytes(model.config, num_tokens)
    rest = peak - weights - kv
    row: Row = {
        "model": model.files.name,
        "prompt_tokens": num_tokens,
        "seconds": round(emission.seconds, 2),
        "ready_rss_mb": _mb(before),
        "peak_rss_mb": _mb(peak),
        "weights_mb": _mb(weights),
        "kv_mb": _mb(kv),
        "rest_mb": _mb(rest),
    }
    name = f"{model.files.name}: peak RSS of a {num_tokens}-token prompt, less weights and its KV"
    return Report([row], [at_most(name, rest / 1e6, LIMIT_MB, "MB")])


def _resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _mb(count: float) -> float:
    return round(count / 1e6, 1)
