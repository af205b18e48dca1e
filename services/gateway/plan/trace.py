"""The lengths of a trace: one column of JSON lines or of a CSV file."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def column_of(path: Path, column: str) -> list[float]:
    """Return the lengths in a file's column, in tokens; a request without uncached tokens is left out.

    A name that ends in `.csv` is read as CSV with a header, any other as JSON lines. Raises ValueError, which names the
    line, for what is no length, and OSError.
    """
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    lengths = [_length(row, column, number) for number, row in rows]
    uncached = [length for length in lengths if length]
    if not uncached:
        raise ValueError("has no requests with uncached tokens")
    return uncached


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num} is not CSV: {error}") from None


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number} is not JSON: {error.msg}") from None


def _length(row: Any, column: str, number: int) -> float:
    if not isinstance(row, dict) or column not in row:
        raise ValueError(f"line {number} has no {column!r}")
    try:
        length = float(row[column])
    except (TypeError, ValueError):
        length = -1.0
    if not 0 <= length < float("inf"):
        raise ValueError(f"line {number}: {column!r} is no number of tokens: {row[column]!r}")
    return length
