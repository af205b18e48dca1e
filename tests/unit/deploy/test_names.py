"""One name, one thing: a public class name occurs once in the repository."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("services", "shared", "simulator", "deploy", "benchmarks", "tests/support")


def public_classes() -> dict[str, list[str]]:
    """Return where each public class of the top level is defined; generated code is left out."""
    found: dict[str, list[str]] = defaultdict(list)
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_pb2" in path.name:
                continue
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(str(path.relative_to(ROOT)))
    return found


def test_a_public_class_name_occurs_once() -> None:
    classes = public_classes()
    assert len(classes) > 300, "the folders are not where this test looks for them"
    assert {name: places for name, places in classes.items() if len(places) > 1} == {}


def test_no_class_has_the_name_of_a_type_that_everybody_knows() -> None:
    taken = {"Sequence", "Mapping", "Iterator", "Callable", "Path", "Queue", "Task", "Future", "Lock", "Event"}
    assert public_classes().keys() & taken == set()
