"""The values of constants and of settings' defaults in the code, so that no page tells an old one."""

import ast
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from math import isclose
from pathlib import Path

from deploy.documents.page import CONSTANT_NAME

_SCALES = {"µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "%": 0.01}
_SCALES |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_QUANTITY = re.compile(r"([\d,]+(?:\.\d+)?) ?(\S*)")
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.LShift: lambda left, right: int(left) << int(right),
    ast.Pow: operator.pow,
}


def is_told_right(root: Path, name: str, told: str) -> bool:
    """Return whether `name` is a constant or setting of services or shared, and `told`, if it is a quantity, its value.

    A unit that is no unit of time or size ("blocks") counts as one.
    """
    values = values_in(root).get(name)
    if values is None:
        return False
    quantity = _QUANTITY.fullmatch(told)
    if quantity is None or not values:
        return True
    number = float(quantity[1].replace(",", "")) * _SCALES.get(quantity[2], 1)
    return any(isclose(number, value) for value in values)


@cache
def values_in(root: Path) -> Mapping[str, frozenset[float]]:
    """Return each constant and each variable of settings with the values that it has in some module, if they are
    numbers; times in seconds, sizes in bytes.
    """
    values: dict[str, set[float]] = defaultdict(set)
    for folder in ("services", "shared", "simulator"):
        for path in sorted((root / folder).rglob("*.py")):
            for name, node in _named(ast.parse(path.read_text())):
                value = _number(node)
                values[name] |= set() if value is None else {value * (1e-3 if name.endswith("_MS") else 1)}
    return {name: frozenset(found) for name, found in values.items()}


def _named(tree: ast.Module) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield the module's constants, and the defaults of settings by their variables."""
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                if CONSTANT_NAME.fullmatch(name):
                    yield name, node.value
            case ast.Call(func=ast.Name(id="setting"), args=[ast.Constant(value=str(name)), *defaults]):
                yield name, defaults[0] if defaults else None
            case _:
                pass


def _number(node: ast.expr | None) -> float | None:
    """Evaluate arithmetic of numbers; None for anything else."""
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            numbers = _number(left), _number(right)
            return None if numbers[0] is None or numbers[1] is None else _OPERATORS[type(op)](numbers[0], numbers[1])
        case _:
            return None
