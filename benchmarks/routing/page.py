"""The page of results, written by the command that measures."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from benchmarks.routing.cases import AZURE_LOAD, BURSTY_LOAD, CUT, CUT_LOAD, DIP, LOAD, STEP_FACTOR, TTFT_FACTOR
from benchmarks.routing.contestants import OURS, PAPERS
from benchmarks.routing.judging import GAIN_CASES, GAIN_PERCENT, Interval, Judged
from benchmarks.routing.trials import TUNING_SEED, WINDOW_SHARE, TrialOutcome

INTRODUCTION = f"""# Routing policies compared

The simulator runs all [policies](../routing/policies.md) behind the seam of the gateway, on the
same requests, workers and links. This page, its JSON and its plot are written by
`python -m benchmarks.routing {{command}}`.

- *Goodput* is requests per second that finished within both SLOs. TTFT of a request without a first
  token counts as infinite. The first {100 * WINDOW_SHARE:.0f} % of the arrivals do not count.
- Cases (a) to (c) and (g) are the planner's answer for the paper: 4 H200 and 8 H20 instances, 3 of
  the latter for prefill, at {100 * LOAD:.0f} % of the rate that the planner says is sustained. (b) has
  {100 * BURSTY_LOAD:.0f} % on average, (e) {100 * AZURE_LOAD:.0f} %, (g) {100 * CUT_LOAD:.0f} %.
  (d) and (e) divide the same instances anew for their uncached lengths. (f) has 300 prefill and 200
  decode workers in each of four datacenters.
- An SLO is {TTFT_FACTOR:g} times the planner's P90 of TTFT in an empty system, and {STEP_FACTOR:.2f} times its
  decode step. In (f) TTFT may be 20 s.
- The links of (c) have a tenth from second {DIP[0]:.0f} to {DIP[1]:.0f}, those of (g) nothing from
  {CUT[0]:.0f} to {CUT[1]:.0f}.
- Each rival's parameters are those of a grid that had most goodput in the same case with seed
  {TUNING_SEED}. The grid is in `benchmarks/routing/contestants.py`. `{OURS}` has no parameters.
- Figures are means over seeds {{seeds}}, with 95 % intervals by Student's t. TTFTs are medians over
  seeds. A difference is paired by seeds. Each seed of (d) and (e) is another part of the trace.
  {{traces}}
- With any policy decode workers keep the SLO between tokens, as `PRFAAS_INTER_TOKEN_S` does.
- Constants of `{OURS}`, loads and SLOs were chosen on seeds from 100 on, which are not reported.
- *Link* is the mean use of the nominal capacity of the links to decode's datacenters.
"""


def page(cases: Sequence[Judged], command: str, seeds: Sequence[int], traces: str) -> str:
    """Return the page as Markdown."""
    lines = [INTRODUCTION.format(command=command, seeds=f"{seeds[0]} to {seeds[-1]}", traces=traces)]
    lines += ["![Requests within their SLO](routing.png)", "", "## Ours and the rivals", "", *_verdicts(cases), ""]
    lines += [f"- ({case.letter}): {case.contestants[0].case.title}" for case in cases]
    lines += ["", "## Goodput, requests per second", "", *_matrix(cases[:4], _goodput), ""]
    lines += [*_matrix(cases[4:], _goodput), ""] if cases[4:] else []
    lines += ["## TTFT, median / 99th percentile, s", "", *_matrix(cases, _ttft), ""]
    lines += ["## Use of links, %", "", *_matrix(cases, _link), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _verdicts(cases: Sequence[Judged]) -> Iterator[str]:
    yield f"Targets: `{OURS}` at least equals the best rival everywhere, and has {GAIN_PERCENT:g} % more goodput than"
    yield f"`{PAPERS}` in {', '.join(f'({letter})' for letter in GAIN_CASES)}. Bold: missed."
    yield ""
    yield f"| case | best rival | `{OURS}` over it, % | `{PAPERS}`, tuned | `{OURS}` over it, % |"
    yield "|---|---|---:|---|---:|"
    for case in cases:
        best, paper = case.best_rival, case.of(PAPERS)
        gain, over = case.gain_percent(best), case.gain_percent(paper)
        is_short = case.letter in GAIN_CASES and over.mean < GAIN_PERCENT
        yield (
            f"| ({case.letter}) | `{best.name}` | {_bold(gain.text(1), gain.mean + gain.half < 0)} "
            f"| t = {paper.options['offload_threshold_tokens']:,} | {_bold(over.text(1), is_short)} |"
        )


def _matrix(cases: Sequence[Judged], cell: Callable[[TrialOutcome], str]) -> Iterator[str]:
    """Yield a table of all policies by all cases."""
    yield "| policy | " + " | ".join(f"({case.letter})" for case in cases) + " |"
    yield "|---" + "|---:" * len(cases) + "|"
    for one in cases[0].contestants:
        yield f"| `{one.name}` | " + " | ".join(cell(case.of(one.name)) for case in cases) + " |"


def _goodput(one: TrialOutcome) -> str:
    return Interval.of(one.values("goodput_per_s")).text(2 if one.case.letter != "f" else 0)


def _ttft(one: TrialOutcome) -> str:
    return f"{_seconds(one, 'ttft_p50_s', 1)} / {_seconds(one, 'ttft_p99_s', 0)}"


def _link(one: TrialOutcome) -> str:
    return f"{100 * statistics.fmean(one.values('link_share')):.1f}"


def _seconds(one: TrialOutcome, name: str, digits: int) -> str:
    median = statistics.median(one.values(name))
    return f"{median:.{digits}f}" if math.isfinite(median) else "-"


def _bold(text: str, is_missed: bool) -> str:
    return f"**{text}**" if is_missed else text
