"""From figures by seed to intervals and verdicts."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness import Check, Row
from benchmarks.routing.contestants import OURS, PAPERS
from benchmarks.routing.trials import TrialOutcome, finite

STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Quantiles of Student's t for a two-sided interval of 95 %, by the number of seeds."""
GAIN_CASES = "bcdg"
GAIN_PERCENT = 10.0
"""By how much ours is to beat the paper's static threshold there."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, and half the width of its 95 % interval."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        mean = statistics.fmean(values)
        if len(values) < 2 or not all(map(math.isfinite, values)):
            return cls(mean, math.inf)
        return cls(mean, STUDENT_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values)))

    def text(self, digits: int) -> str:
        return (
            f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"
            if math.isfinite(self.half)
            else f"{self.mean:.{digits}f}"
        )


@dataclass(frozen=True)
class Judged:
    """One case: all contestants, ours beside the best rival and beside the paper's threshold, seed by seed."""

    contestants: Sequence[TrialOutcome]

    @property
    def letter(self) -> str:
        return self.contestants[0].case.letter

    def of(self, name: str) -> TrialOutcome:
        return next(one for one in self.contestants if one.name == name)

    @property
    def best_rival(self) -> TrialOutcome:
        rivals = (one for one in self.contestants if one.name != OURS)
        return max(rivals, key=lambda one: statistics.fmean(one.values("goodput_per_s")))

    def gain_percent(self, rival: TrialOutcome) -> Interval:
        """Return the difference of ours to a rival, paired by seeds, in percent of the rival's mean goodput."""
        ours, theirs = self.of(OURS).values("goodput_per_s"), rival.values("goodput_per_s")
        mean = statistics.fmean(theirs)
        return Interval.of([100 * (mine - other) / mean for mine, other in zip(ours, theirs, strict=True)])

    def checks(self) -> list[Check]:
        best, gain = self.best_rival, self.gain_percent(self.best_rival)
        found = [
            Check(
                f"({self.letter}) goodput less that of the best rival, {best.name}",
                round(gain.mean, 1),
                f"not below 0 % by more than its interval, {gain.half:.1f}",
                gain.mean + gain.half >= 0,
            )
        ]
        if self.letter in GAIN_CASES:
            over = self.gain_percent(self.of(PAPERS))
            name = f"({self.letter}) goodput less that of {PAPERS}"
            found.append(Check(name, round(over.mean, 1), f">= {GAIN_PERCENT:g} %", over.mean >= GAIN_PERCENT))
        return found

    def rows(self) -> list[Row]:
        return [self._row(one) for one in self.contestants]

    def _row(self, one: TrialOutcome) -> Row:
        goodput, good = Interval.of(one.values("goodput_per_s")), Interval.of(one.values("good_share"))
        return {
            "case": self.letter,
            "policy": one.name,
            "options": ", ".join(f"{name}={value}" for name, value in one.options.items()),
            "goodput_per_s": round(goodput.mean, 3),
            "goodput_half": finite(round(goodput.half, 3)),
            "good_%": round(100 * good.mean, 1),
            "ttft_p50_s": finite(round(statistics.median(one.values("ttft_p50_s")), 3)),
            "ttft_p99_s": finite(round(statistics.median(one.values("ttft_p99_s")), 2)),
            "link_%": round(100 * statistics.fmean(one.values("link_share")), 1),
            "goodput_by_seed": " ".join(f"{value:.3f}" for value in one.values("goodput_per_s")),
        }
