"""Regenerates the committed code of shared/proto, or checks that it is current (`--check`)."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(out: Path) -> list[Path]:
    """Compiles every .proto from the repository's root into `out`; returns the new files, relative to `out`."""
    protos = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "shared/proto").glob("*.proto"))
    flags = [f"--{plugin}_out={out}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")]
    # protoc looks for the mypy plug-ins beside this interpreter, whether or not the environment is activated.
    plugins = [
        f"--plugin={tool}={Path(sys.executable).parent / tool}" for tool in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I.", *plugins, *flags, *protos], cwd=ROOT, check=True)
    return sorted(path.relative_to(out) for pattern in GENERATED for path in out.rglob(pattern))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        fresh = generate(out)
        if "--check" not in sys.argv:
            for path in fresh:
                shutil.copyfile(out / path, ROOT / path)
            return 0
        stale = [path for path in fresh if not _same(out / path, ROOT / path)]
    for path in stale:
        print(f"{path} is not what its .proto generates: run `make proto`", file=sys.stderr)
    return 1 if stale else 0


def _same(fresh: Path, committed: Path) -> bool:
    return committed.exists() and fresh.read_bytes() == committed.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
