"""Text in columns, and the names of the deployments in it."""

from collections.abc import Iterator, Sequence

TITLES = {
    "prfaas_pd": "PrfaaS-PD",
    "homogeneous_pd": "homogeneous PD",
    "naive_heterogeneous": "naive heterogeneous",
}
NONE = "-"


def number(value: float | None, form: str = ".2f") -> str:
    """Return a number as text, and what there is not as a dash."""
    return NONE if value is None else format(value, form)


def aligned(rows: Sequence[Sequence[str]], texts: int = 1) -> Iterator[str]:
    """Yield rows as lines: the first columns are text and begin together, the others are numbers and end together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if at < texts else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
