"""Prefill and decode side by side: the same work to every contestant in turn, ratios of medians against the targets."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from tqdm import tqdm

from benchmarks.harness import Check, Report, Row, Spread, alternate, at_least
from benchmarks.peers.found import LLAMA, OURS, TRANSFORMERS, VLLM, Contestant
from benchmarks.peers.process import PeerFailed, PeerProcess
from benchmarks.roofline import Limits, Sizes, Work, decode, prefill
from shared.model.files.config import ModelConfig

CHUNK_TOKENS = 512
"""Our default, for the bound of a prefill."""

WARM_UP = ({"do": "prefill", "tokens": 512}, {"do": "decode", "batch": 8, "context": 64, "steps": 4})


@dataclass(frozen=True)
class SpeedTask:
    """A prompt of `context` tokens (`steps` 0), or `steps` decode steps of `batch` sequences behind such a prompt."""

    context: int
    batch: int = 1
    steps: int = 0

    @property
    def name(self) -> str:
        return f"decode {self.batch} x {self.context}" if self.steps else f"prefill {self.context}"

    def tokens_per_s(self, peer: PeerProcess) -> float:
        """Let `peer` do it once. Raises `PeerFailed`."""
        if self.steps:
            return self.batch / peer.ask(do="decode", batch=self.batch, context=self.context, steps=self.steps)
        return self.context / peer.ask(do="prefill", tokens=self.context)

    def bound(self, config: ModelConfig, limits: Limits, sizes: Sizes) -> float:
        """Return tokens/s that the machine's limits allow."""
        if self.steps:
            return self.batch / decode(config, self.batch, self.context, sizes).least_seconds(limits)
        return self.context / self._prefill(config).least_seconds(limits)

    def _prefill(self, config: ModelConfig) -> Work:
        return prefill(config, self.context, CHUNK_TOKENS)


@dataclass(frozen=True)
class SpeedPlan:
    """What is measured, how often, and by whom."""

    tasks: tuple[SpeedTask, ...]
    ours_only: tuple[SpeedTask, ...]  # long contexts that targets compare with ourselves
    repetitions: int

    def within(self, max_context: int, repetitions: int | None = None) -> "SpeedPlan":
        """Return the part of the plan that a model of this context can do, with another number of rounds if given."""
        fits = [
            tuple(task for task in tasks if task.context + task.steps <= max_context)
            for tasks in (self.tasks, self.ours_only)
        ]
        return SpeedPlan(fits[0], fits[1], repetitions or self.repetitions)


FULL = SpeedPlan(
    (
        *(SpeedTask(context) for context in (512, 2048, 8000)),
        SpeedTask(512, batch=1, steps=48),
        SpeedTask(512, batch=8, steps=32),
    ),
    (SpeedTask(16384, batch=1, steps=32),),
    repetitions=5,
)
QUICK = SpeedPlan(
    (SpeedTask(512), SpeedTask(512, batch=1, steps=8), SpeedTask(512, batch=8, steps=8)), (), repetitions=2
)

Figures = Mapping[tuple[str, str], float]
"""Median tokens/s by contestant and task name."""


def measure(
    model: str, config: ModelConfig, contestants: Sequence[Contestant], plan: SpeedPlan, limits: Limits
) -> Report:
    """Run a plan. A contestant that is absent or fails gets a row that says so, and no figures."""
    report = Report()
    with ExitStack() as stack:
        peers = []
        for contestant in contestants:
            try:
                peers.append(stack.enter_context(_started(contestant)))
            except PeerFailed as error:
                report.rows.append({"model": model, "contestant": contestant.name, "absent": str(error)})
        figures: dict[tuple[str, str], float] = {}
        for task in (*plan.tasks, *plan.ours_only):
            able = [peer for peer in peers if peer.name in OURS or task not in plan.ours_only]
            bar = tqdm(total=0, desc=f"{model}, {task.name}", bar_format="{desc}", leave=False)
            found = alternate({peer.name: partial(_attempt, task, peer) for peer in able}, plan.repetitions)
            bar.close()
            for name, attempts in found.items():
                if failed := [attempt for attempt in attempts if isinstance(attempt, str)]:
                    report.rows.append({"model": model, "contestant": name, "absent": f"{task.name}: {failed[0]}"})
                    continue
                spread = Spread.of([attempt for attempt in attempts if isinstance(attempt, float)])
                figures[name, task.name] = spread.median
                report.rows.append(_row(model, config, task, name, spread, limits))
    report.checks = checks(model, figures, plan)
    return report


def _attempt(task: SpeedTask, peer: PeerProcess) -> float | str:
    """Return tokens/s, or what went wrong: one peer that fails at one task must not end the run."""
    try:
        return task.tokens_per_s(peer)
    except PeerFailed as error:
        return str(error)


def _started(contestant: Contestant) -> PeerProcess:
    if contestant.absent is not None:
        raise PeerFailed(contestant.absent)
    peer = PeerProcess(contestant.name, contestant.command, contestant.environ)
    try:
        for command in WARM_UP:
            peer.ask(**command)
    except BaseException:
        peer.close()
        raise
    return peer


def _row(model: str, config: ModelConfig, task: SpeedTask, name: str, spread: Spread, limits: Limits) -> Row:
    of_bound = None
    if name in OURS:
        sizes = Sizes(weight=1 if OURS[name] == "int8" else 2)
        of_bound = round(spread.median / task.bound(config, limits, sizes), 3)
    return {
        "model": model,
        "work": task.name,
        "contestant": name,
        **spread.cells("tokens_per_s", 1),
        "of_bound": of_bound,
        "repetitions": spread.repetitions,
    }


def checks(model: str, figures: Figures, plan: SpeedPlan) -> list[Check]:
    """Compare with the targets, as far as both sides of each were measured."""
    found = []
    for ours in OURS:
        for task in plan.tasks:
            own = figures.get((ours, task.name))
            if own is None:
                continue
            for others, factor in _targets(task):
                theirs = [figures[name, task.name] for name in others if (name, task.name) in figures]
                if theirs:
                    name = f"{model}, {ours}, {task.name}: times {' and '.join(others)}"
                    found.append(at_least(name, own / max(theirs), factor))
        found += _own_checks(model, ours, figures, plan)
    return found


def _targets(task: SpeedTask) -> list[tuple[tuple[str, ...], float]]:
    if not task.steps:
        return [((TRANSFORMERS, LLAMA), 1.3), ((VLLM,), 1.0)]
    if task.batch == 1:
        return [((LLAMA,), 1.0), ((VLLM,), 1.3), ((TRANSFORMERS,), 1.5)]
    return [((LLAMA,), 1.3)]


def _own_checks(model: str, ours: str, figures: Figures, plan: SpeedPlan) -> list[Check]:
    """Batch 8 against batch 1, and a long context against a short one, by our own figures."""
    found = []
    for task in (*plan.tasks, *plan.ours_only):
        if not task.steps:
            continue
        one = next(t for t in plan.tasks if t.steps and t.batch == 1)
        own, alone = figures.get((ours, task.name)), figures.get((ours, one.name))
        if own is None or alone is None or task == one:
            continue
        factor = 3.0 if task.batch > 1 else 0.7
        found.append(at_least(f"{model}, {ours}, {task.name}: times {one.name}", own / alone, factor))
    return found
