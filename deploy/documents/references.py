"""Rules of what pages point at: links, paths, definitions, and commands that somebody runs."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from deploy.documents.page import Page, Problem, line_of

_SOURCE = re.compile(r"(?:\.ci|benchmarks|deploy|docs|services|shared|tests)/[\w./*-]+(?::[\w.]+)?")
_MODULE = re.compile(r"python -m ((?:benchmarks|deploy|services|shared)[\w.]*)")
_MARK = re.compile(r"<!-- (?:run by (?P<path>[\w./-]+?)(?:::(?P<name>\w+))?|not run: (?P<reason>\S.*)) -->")


def links(page: Page) -> Iterator[Problem]:
    """Relative links lead to a file, and to a heading of it."""
    for token, line, _ in page.inlines:
        for child in token.children or ():
            target = str(child.attrs.get("href") or child.attrs.get("src") or "")
            if not target or "://" in target or target.startswith("mailto:"):
                continue
            name, _, anchor = target.partition("#")
            path = (page.path.parent / name).resolve() if name else page.path
            if not path.exists():
                yield Problem(line, f"a link to nothing: {target}")
            elif anchor and anchor not in anchors(path):
                yield Problem(line, f"a link to no heading: {target}")


def anchors(path: Path) -> set[str]:
    """Return the names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def paths(page: Page) -> Iterator[Problem]:
    """Paths in backticks exist; so do `path.py:Class.method` and the module of `python -m`."""
    for token, line, _ in page.inlines:
        for child in token.children or ():
            is_path = child.type == "code_inline" and _SOURCE.fullmatch(child.content)
            if is_path and not source_exists(page.root, child.content):
                yield Problem(line, f"a path to nothing: {child.content}")
    for number, text in enumerate(page.text.splitlines(), 1):
        for module in _MODULE.findall(text):
            base = page.root / module.replace(".", "/")
            if not (base.with_suffix(".py").exists() or (base / "__main__.py").exists()):
                yield Problem(number, f"no module to run: {module}")


def source_exists(root: Path, text: str) -> bool:
    """Return whether a path, which may have stars, leads to a file or folder, and its name to a definition in it."""
    name, _, symbol = text.partition(":")
    found = list(root.glob(name.rstrip("/")))
    return bool(found) and (not symbol or symbol in definitions(found[0]))


@cache
def definitions(path: Path) -> frozenset[str]:
    """Return the classes, functions and constants that a module defines, and methods as `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ClassDef():
                functions = (item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
                names |= {node.name, *(f"{node.name}.{function.name}" for function in functions)}
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.Assign():
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case _:
                pass
    return frozenset(names)


def commands(page: Page) -> Iterator[Problem]:
    """Each block of commands says who runs it."""
    for before, token in zip([None, *page.tokens], page.tokens, strict=False):
        if token.type == "code_block" or (token.type == "fence" and token.info in ("sh", "python")):
            mark = _MARK.search(before.content) if before is not None and before.type == "html_block" else None
            if mark is None:
                yield Problem(line_of(token), "a command of which nothing says who runs it")
            elif mark["path"] and (problem := unproven(page, mark["path"], mark["name"], token.content)):
                yield Problem(line_of(token), problem)


def unproven(page: Page, path: str, name: str | None, block: str) -> str | None:
    """Return why a file does not show that a block works; None when it runs each line of it, or reads the page."""
    if not (page.root / path).exists():
        return f"nothing can be run by {path}: there is no such file"
    text = (page.root / path).read_text()
    if name is not None and f"def {name}(" not in text:
        return f"{path} has no {name}"
    if Path(page.name).name in text:
        return None
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    missing = [line for line in lines if line and line not in text]
    return f"{path} neither reads this page nor runs {missing[0]!r}" if missing else None
