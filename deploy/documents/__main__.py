"""What holds of the documentation: size, figures, links, paths, and commands that somebody runs.

`python -m deploy.documents` prints what is wrong with any page, by line; 1 if anything is. `PAGE...` checks some only.

A command stands in an indented block or in one fenced as `sh` or `python`, behind a comment that says who runs it:
`<!-- run by tests/suite/test_readme.py -->` names a file that contains the command or reads the page, and may go on
with `::test_name`; `<!-- not run: REASON -->` says why nobody can.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from deploy.documents.page import Page, Problem, pages
from deploy.documents.prose import figures, sizes, subjects
from deploy.documents.references import commands, links, paths

ROOT = Path(__file__).resolve().parents[2]
RULES: tuple[Callable[[Page], Iterator[Problem]], ...] = (sizes, figures, subjects, links, paths, commands)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="as docs/protocol.md; default: all")
    chosen = parser.parse_args().pages
    is_fine = True
    for page in pages(ROOT):
        if chosen and page.name not in chosen:
            continue
        for problem in sorted(problem for rule in RULES for problem in rule(page)):
            is_fine = False
            print(f"{page.name}:{problem.line}: {problem.text}", file=sys.stderr)
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
