"""From the sections of a file to what the planner takes. A problem names the file, the key and the reason."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.gateway.plan.schema import (
    CapacityFile,
    HardwareSection,
    Lengths,
    LikeSection,
    ListSection,
    LogNormalSection,
    PolynomialSection,
    PrfaasSection,
    Profile,
    TableSection,
)
from services.gateway.plan.trace import column_of
from services.gateway.routing.planning.case import (
    Averaging,
    DecodePoint,
    PdCluster,
    PlanningCase,
    PrfaasCluster,
    WideLink,
    fastest_decode,
)
from services.gateway.routing.planning.lengths import EmpiricalLengths, LengthDistribution, TruncatedLogNormal
from services.gateway.routing.planning.profiles import (
    LengthProfile,
    PolynomialProfile,
    ScaledProfile,
    TabulatedProfile,
    require_positive,
)
from shared.errors import SettingsError

MAX_THRESHOLDS = 100_000
MAX_DIVISIONS = 10_000_000
"""Of a search: a float each."""


@dataclass(frozen=True, slots=True)
class FileBuilder:
    """Builds the planner's types from the sections of the file at `path`."""

    path: Path

    @contextmanager
    def at(self, key: str) -> Iterator[None]:
        """Turn a ValueError of the planner's types into a `SettingsError` that names the key."""
        try:
            yield
        except ValueError as error:
            raise SettingsError(f"{self.path}: {key}: {error}") from None

    def case(self, file: CapacityFile) -> PlanningCase:
        """Return the case that a file describes. Raises `SettingsError`."""
        lengths = self._lengths(file.lengths)
        self._check_search(file, lengths)
        with self.at("prfaas"):
            candidates = _candidates(file.prfaas)
        return PlanningCase(
            lengths=lengths,
            output_tokens=file.requests.output_tokens,
            kv_bytes=self._over(lengths, "model.kv_bytes", file.model.kv_bytes),
            prfaas=PrfaasCluster(self._prefill_s(file, "prfaas", file.prfaas.hardware, lengths), candidates),
            pd=PdCluster(
                self._prefill_s(file, "pd", file.pd.hardware, lengths), self._decode_point(file), file.pd.instances
            ),
            link=WideLink(file.link.capacity_gbit_s, file.link.usable_share),
            averaging=Averaging(file.averaging),
        )

    def profile(self, key: str, section: Profile, others: Mapping[str, HardwareSection] | None = None) -> LengthProfile:
        """Return the profile of a section; `others` are the hardware whose prefill time it may be likened to."""
        with self.at(key):
            profile = self._unscaled(section, others or {})
            return profile if section.scale == 1 else ScaledProfile(profile, section.scale)

    def _unscaled(self, section: Profile, others: Mapping[str, HardwareSection]) -> LengthProfile:
        if isinstance(section, PolynomialSection):
            return PolynomialProfile(tuple(section.coefficients), section.unit_tokens)
        if isinstance(section, TableSection):
            if section.fit_degree is not None:
                return PolynomialProfile.fit(section.tokens, section.values, section.fit_degree)
            return TabulatedProfile(tuple(section.tokens), tuple(section.values))
        return self._likened(section, others)

    def _likened(self, section: LikeSection, others: Mapping[str, HardwareSection]) -> LengthProfile:
        other = others.get(section.like)
        if other is None or isinstance(other.prefill_s, LikeSection):
            raise ValueError(f"like must name hardware with a prefill time of its own, not {section.like!r}")
        return self.profile(f"hardware.{section.like}.prefill_s", other.prefill_s)

    def _over(
        self,
        lengths: LengthDistribution,
        key: str,
        section: Profile,
        others: Mapping[str, HardwareSection] | None = None,
    ) -> LengthProfile:
        """Return a profile that is positive at all lengths."""
        profile = self.profile(key, section, others)
        with self.at(key):
            require_positive(profile, lengths.weighted(np.empty(0)).tokens)
        return profile

    def _prefill_s(self, file: CapacityFile, section: str, name: str, lengths: LengthDistribution) -> LengthProfile:
        if name not in file.hardware:
            known = ", ".join(sorted(file.hardware))
            raise SettingsError(f"{self.path}: {section}.hardware: no hardware is called {name!r}; there is {known}")
        return self._over(lengths, f"hardware.{name}.prefill_s", file.hardware[name].prefill_s, file.hardware)

    def _decode_point(self, file: CapacityFile) -> DecodePoint:
        """Return the best batch of the PD hardware, which exists."""
        section = file.hardware[file.pd.hardware].decode
        with self.at(f"hardware.{file.pd.hardware}.decode"):
            if section is None:
                raise ValueError("is required of the PD cluster's hardware")
            return fastest_decode(_points(section.batch, section.step_s), file.slo.time_per_output_token_s)

    def _lengths(self, section: Lengths) -> LengthDistribution:
        match section:
            case LogNormalSection():
                with self.at("lengths"):
                    return TruncatedLogNormal(section.mu, section.sigma, section.min_tokens, section.max_tokens)
            case ListSection():
                return EmpiricalLengths.of(section.tokens)
            case _:
                trace = self.path.parent / section.file
                with self.at(f"lengths.file: {trace}"):
                    try:
                        return EmpiricalLengths.of(column_of(trace, section.column))
                    except OSError as error:
                        raise ValueError(f"cannot be read: {error.strerror}") from None

    def _check_search(self, file: CapacityFile, lengths: LengthDistribution) -> None:
        """Refuse a grid that would fill the memory."""
        with self.at("search.step_tokens"):
            num_thresholds = lengths.max_tokens / file.search.step_tokens + 2
            num_prfaas = file.prfaas.max_instances or 1
            if num_thresholds > MAX_THRESHOLDS or num_thresholds * num_prfaas * file.pd.instances > MAX_DIVISIONS:
                raise ValueError("the grid is too fine for these lengths and instances")


def _candidates(section: PrfaasSection) -> tuple[int, ...]:
    if (section.instances is None) == (section.max_instances is None):
        raise ValueError("must have either instances or max_instances")
    if section.instances is not None:
        return (section.instances,)
    return tuple(range(1, (section.max_instances or 0) + 1))


def _points(batches: Sequence[int], steps_s: Sequence[float]) -> list[DecodePoint]:
    if len(batches) != len(steps_s):
        raise ValueError(f"{len(batches)} batches have {len(steps_s)} step times")
    return [DecodePoint(batch, step_s) for batch, step_s in zip(batches, steps_s, strict=True)]
