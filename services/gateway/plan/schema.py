"""The form of the planner's files. An unknown key is an error: a mistyped one would be ignored in silence."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

# Bounds keep absurd numbers out of arithmetic: no product or quotient of a few of them leaves the range of floats.
MAX_NUMBER = 1e15
MAX_COUNT = 100_000


def _not_tiny(value: float) -> float:
    if value < 1 / MAX_NUMBER:
        raise ValueError(f"must be at least {1 / MAX_NUMBER:g}")
    return value


Finite = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Positive = Annotated[float, Field(gt=0, le=MAX_NUMBER), AfterValidator(_not_tiny)]
Share = Annotated[Positive, Field(le=1)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrNone = Annotated[int, Field(ge=0, le=MAX_COUNT)] | None


class Section(BaseModel):
    """A table of TOML. Strict: text is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PolynomialSection(Section):
    """scale * (c0 + c1 x + c2 x^2 ...) with x = tokens / unit_tokens."""

    coefficients: Annotated[list[Finite], Field(min_length=1, max_length=9)]
    unit_tokens: Positive = 1.0
    scale: Positive = 1.0


class TableSection(Section):
    """Measured values by length. With `fit_degree` a polynomial is fitted, without it lines connect the values."""

    tokens: Annotated[list[Positive], Field(min_length=2)]
    values: Annotated[list[Positive], Field(min_length=2)]
    fit_degree: Annotated[int, Field(ge=0, le=8)] | None = None
    scale: Positive = 1.0


class LikeSection(Section):
    """The profile of another hardware times a factor."""

    like: str
    scale: Positive


_PROFILES = {"coefficients": "<polynomial>", "tokens": "<table>", "like": "<like>"}
_LENGTHS = {"lognormal", "list", "trace"}


def _profile_kind(value: Any) -> str | None:
    return next((tag for key, tag in _PROFILES.items() if isinstance(value, dict) and key in value), None)


def _lengths_kind(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else None
    return f"<{kind}>" if isinstance(kind, str) and kind in _LENGTHS else None


Profile = Annotated[
    Annotated[PolynomialSection, Tag("<polynomial>")]
    | Annotated[TableSection, Tag("<table>")]
    | Annotated[LikeSection, Tag("<like>")],
    Discriminator(
        _profile_kind,
        custom_error_type="profile_kind",
        custom_error_message="must have `coefficients`, or `tokens` and `values`, or `like` and `scale`",
    ),
]


class LogNormalSection(Section):
    kind: Literal["lognormal"]
    mu: Finite
    sigma: Positive
    min_tokens: Positive
    max_tokens: Positive


class ListSection(Section):
    kind: Literal["list"]
    tokens: Annotated[list[Positive], Field(min_length=1)]


class TraceSection(Section):
    """A file of requests beside the TOML file: JSON lines, or CSV with a header."""

    kind: Literal["trace"]
    file: str
    column: str  # of uncached input tokens


Lengths = Annotated[
    Annotated[LogNormalSection, Tag("<lognormal>")]
    | Annotated[ListSection, Tag("<list>")]
    | Annotated[TraceSection, Tag("<trace>")],
    Discriminator(
        _lengths_kind, custom_error_type="lengths_kind", custom_error_message="kind must be lognormal, list or trace"
    ),
]


class RequestsSection(Section):
    output_tokens: Positive  # mean


class SloSection(Section):
    time_per_output_token_s: Positive
    ttft_p90_s: Positive | None = None


class ModelSection(Section):
    kv_bytes: Profile


class DecodeSection(Section):
    """Time of a decode step by the number of requests in it."""

    batch: Annotated[list[Count], Field(min_length=1)]
    step_s: Annotated[list[Positive], Field(min_length=1)]


class HardwareSection(Section):
    """One instance."""

    prefill_s: Profile
    decode: DecodeSection | None = None


class PrfaasSection(Section):
    """`instances` fixes N_prfaas, `max_instances` has it searched from 1."""

    hardware: str
    instances: Count | None = None
    max_instances: Count | None = None


class PdSection(Section):
    hardware: str
    instances: Count


class LinkSection(Section):
    capacity_gbit_s: Positive
    usable_share: Share = 1.0


class HomogeneousSection(Section):
    instances: Count


class SearchSection(Section):
    step_tokens: Positive = 128.0


class PublishedSection(Section):
    """Figures of others to stand beside ours, by the names of `CapacityPlan`."""

    threshold_tokens: Positive | None = None
    prfaas_instances: CountOrNone = None
    prefill_instances: CountOrNone = None
    decode_instances: CountOrNone = None
    long_share: Share | None = None
    long_tokens: Positive | None = None
    prfaas_per_s: Positive | None = None
    pd_prefill_per_s: Positive | None = None
    pd_decode_per_s: Positive | None = None
    requests_per_s: Positive | None = None
    ttft_mean_s: Positive | None = None
    ttft_p90_s: Positive | None = None
    egress_gbit_s: Positive | None = None


class PublishedTables(Section):
    """By the names of `Deployments`."""

    prfaas_pd: PublishedSection = PublishedSection()
    homogeneous_pd: PublishedSection = PublishedSection()
    naive_heterogeneous: PublishedSection = PublishedSection()


class CapacityFile(Section):
    """Two clusters, to be divided."""

    kind: Literal["capacity"] = "capacity"
    title: str = ""
    averaging: Literal["E[T(L)]", "T(E[L])"] = "E[T(L)]"
    lengths: Lengths
    requests: RequestsSection
    slo: SloSection
    model: ModelSection
    hardware: Annotated[dict[str, HardwareSection], Field(min_length=1)]
    prfaas: PrfaasSection
    pd: PdSection
    link: LinkSection
    homogeneous: HomogeneousSection | None = None
    search: SearchSection = SearchSection()
    published: PublishedTables | None = None


class KvThroughputSection(Section):
    kv_gbit_s: Profile  # of one instance


class EgressFile(Section):
    """Models of which only the KV throughput is known."""

    kind: Literal["egress"]
    title: str = ""
    instances: Count
    tokens: Annotated[list[Positive], Field(min_length=1)]
    link: LinkSection
    models: Annotated[dict[str, KvThroughputSection], Field(min_length=1)]
