"""The program `prfaas`: says what is missing before it begins, so that nobody is met by a traceback of imports."""

import sys

OLDEST_PYTHON = (3, 11)
PROGRAM = "prfaas"


def main():  # type: ignore[no-untyped-def]  # an old Python shall get as far as the message
    if sys.version_info < OLDEST_PYTHON:
        needed, found = (".".join(map(str, version[:2])) for version in (OLDEST_PYTHON, sys.version_info))
        sys.stderr.write("prfaas: Python %s or newer is needed; this is %s, %s\n" % (needed, found, sys.executable))  # noqa: UP031
        return 1
    try:
        from deploy.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "psutil"):
            raise
        sys.stderr.write(f"prfaas: the package {error.name} is missing: pip install 'prfaas[cli]'\n")
        return 1
    return app(prog_name=PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
