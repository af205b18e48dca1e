"""The program `prfaas`: says what is missing before it begins, so that nobody is met by a traceback of imports."""

import sys

OLDEST_PYTHON = (3, 11)
PROGRAM = "prfaas"


def main() -> int:
    """Run a command. An old Python gets as far as the message: nothing that it lacks is used before."""
    if sys.version_info < OLDEST_PYTHON:
        needed, found = (".".join(map(str, version[:2])) for version in (OLDEST_PYTHON, sys.version_info))
        sys.stderr.write("prfaas: Python %s or newer is needed; this is %s, %s\n" % (needed, found, sys.executable))  # noqa: UP031
        return 1
    try:
        from deploy.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "psutil", "cryptography"):
            raise
        sys.stderr.write(f"prfaas: the package {error.name} is missing: pip install 'prfaas[cli]'\n")
        return 1
    app(prog_name=PROGRAM)
    return 0


if __name__ == "__main__":
    sys.exit(main())
