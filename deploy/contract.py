"""Checks that no number of the wire contract changes its meaning: `python -m deploy.contract [--extend]`.

contract.json holds each number of each message and enumeration that was ever in use. A number keeps its name and type,
or it is `reserved` for good; processes of two releases understand one another then.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

ROOT = Path(__file__).resolve().parent.parent
SNAPSHOT = ROOT / "deploy/contract.json"
RESERVED = "reserved"

Contract = dict[str, dict[int, str]]
"""By message or enumeration: what each number stands for, `RESERVED` where it must stand for nothing."""


def contract(files: Iterable[FileDescriptorProto]) -> Contract:
    """Return what the numbers of some compiled .proto files stand for now."""
    found: Contract = {}
    for file in files:
        for message in file.message_type:
            _add_message(found, file.package, message)
        for enum in file.enum_type:
            _add_enum(found, file.package, enum)
    return found


def problems(known: Contract, now: Contract) -> list[str]:
    """Return what breaks readers of older messages. What is no longer there at all is missed by no field."""
    found = []
    for name, numbers in known.items():
        for number, meaning in numbers.items() if name in now else ():
            new = now[name].get(number)
            if new is None:
                found.append(f"{name}: {number} ({meaning}) is gone and not reserved")
            elif new not in (meaning, RESERVED):
                found.append(f"{name}: {number} was {meaning} and is {new}")
    return found


def extended(known: Contract, now: Contract) -> Contract:
    """Return all that is known with all that is new. There are no `problems`."""
    return {name: {**known.get(name, {}), **now.get(name, {})} for name in sorted({*known, *now})}


def read(path: Path = SNAPSHOT) -> Contract:
    loaded: Mapping[str, Mapping[str, str]] = json.loads(path.read_text())
    return {name: {int(number): meaning for number, meaning in numbers.items()} for name, numbers in loaded.items()}


def write(known: Contract, path: Path = SNAPSHOT) -> None:
    sorted_numbers = {name: dict(sorted(numbers.items())) for name, numbers in known.items()}
    path.write_text(json.dumps(sorted_numbers, indent=2) + "\n")


def compiled() -> list[FileDescriptorProto]:
    """Return the descriptors in the committed generated code."""
    found = []
    for path in sorted((ROOT / "shared/proto").glob("*_pb2.py")):
        descriptor: FileDescriptor = import_module(f"shared.proto.{path.stem}").DESCRIPTOR
        found.append(FileDescriptorProto.FromString(descriptor.serialized_pb))
    return found


def _add_message(found: Contract, scope: str, message: DescriptorProto) -> None:
    name = f"{scope}.{message.name}"
    found[name] = {number: RESERVED for span in message.reserved_range for number in range(span.start, span.end)}
    found[name] |= {field.number: _meaning(field) for field in message.field}
    for nested in message.nested_type:
        _add_message(found, name, nested)
    for enum in message.enum_type:
        _add_enum(found, name, enum)


def _add_enum(found: Contract, scope: str, enum: EnumDescriptorProto) -> None:
    name = f"{scope}.{enum.name}"
    # An enumeration's ranges include their end, a message's do not.
    found[name] = {number: RESERVED for span in enum.reserved_range for number in range(span.start, span.end + 1)}
    found[name] |= {value.number: value.name for value in enum.value}


def _meaning(field: FieldDescriptorProto) -> str:
    kind = field.type_name.removeprefix(".") or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    repeated = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    return f"{repeated}{kind} {field.name}"


def main() -> int:
    known, now = read(), contract(compiled())
    found = problems(known, now)
    if not found and "--extend" in sys.argv:
        write(extended(known, now))
    elif not found and extended(known, now) != known:
        found = ["deploy/contract.json lacks what is new: run `make proto`"]
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
