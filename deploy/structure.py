"""What holds of the tree: no circle of files, few floors of imports, no folder of many modules.

`python -m deploy.structure` prints the longest chain of imports of each package and what is wrong; 1 if anything is.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
MAX_MODULES = 15
MAX_FLOORS = {"services.gateway": 10, "services.cachepool": 10, "services.decode": 10, "services.prefill": 10}
"""Modules in the longest chain of imports inside a service, from `__main__` down."""

Imports = Mapping[str, frozenset[str]]


def imports_of(*packages: str) -> Imports:
    """Return what each module imports, imports for type checkers included, generated code left out."""
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=False, cache_dir=None)
    modules = [name for name in graph.modules if not name.startswith("shared.proto")]
    return {name: frozenset(graph.find_modules_directly_imported_by(name)) for name in modules}


def within(imports: Imports, package: str) -> Imports:
    """Return the part of the graph that lies inside a package."""
    inside = {name for name in imports if name == package or name.startswith(f"{package}.")}
    return {name: imports[name] & inside for name in inside}


def circle(imports: Imports) -> list[str] | None:
    """Return a circle of modules, its first one at the end again; None when there is none."""
    try:
        tuple(TopologicalSorter(imports).static_order())
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return None


def longest_chain(imports: Imports) -> list[str]:
    """Return the longest chain of imports, from the module that imports all the others down. There is no circle."""
    best: dict[str, list[str]] = {}
    for name in TopologicalSorter(imports).static_order():
        below = max((best[other] for other in sorted(imports.get(name, ()))), key=len, default=[])
        best[name] = [name, *below]
    return max((best[name] for name in sorted(best)), key=len, default=[])


def crowded(root: Path) -> dict[str, int]:
    """Return the folders of services and shared with too many modules, and how many they have."""
    paths = (path for package in ("services", "shared", "simulator") for path in (root / package).rglob("*.py"))
    modules = (path for path in paths if path.name != "__init__.py" and "proto" not in path.parts)
    counts = Counter(str(path.parent.relative_to(root)) for path in modules)
    return {folder: number for folder, number in counts.items() if number > MAX_MODULES}


def problems() -> Iterator[str]:
    imports = imports_of("services", "shared", "simulator")
    if (found := circle(imports)) is not None:
        yield f"a circle of files: {' -> '.join(found)}"
        return
    for package in (*MAX_FLOORS, "shared"):
        chain = longest_chain(within(imports, package))
        limit = MAX_FLOORS.get(package)
        names = " > ".join(name.removeprefix(f"{package}.") for name in chain)
        print(f"{package}: {len(chain)} floors{f' of at most {limit}' if limit else ''}: {names}")
        if limit is not None and len(chain) > limit:
            yield f"{package} has {len(chain)} floors of imports, more than {limit}"
    for folder, number in crowded(ROOT).items():
        yield f"{folder} has {number} modules, more than {MAX_MODULES}"


def main() -> int:
    found = list(problems())
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
