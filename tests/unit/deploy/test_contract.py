"""Numbers of the wire contract that would change their meaning are found."""

from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from deploy.contract import RESERVED, Contract, contract, extended, problems, read, write

PROTO = """
syntax = "proto3";
package p;
message Block {
  reserved 4, 5;
  uint64 size_bytes = 1;
  repeated Codec codecs = 2;
  message Inner { bytes data = 1; }
}
enum Codec { reserved 7; RAW = 0; LZ4 = 1; }
"""
KNOWN = {
    "p.Block": {1: "uint64 size_bytes", 2: "repeated p.Codec codecs", 4: RESERVED, 5: RESERVED},
    "p.Block.Inner": {1: "bytes data"},
    "p.Codec": {0: "RAW", 1: "LZ4", 7: RESERVED},
}


def compiled(folder: Path, old: str = "", new: str = "") -> Contract:
    """Return the contract of the file above, with one text in place of another."""
    (folder / "p.proto").write_text(PROTO.replace(old, new))
    assert protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={folder}/set", f"{folder}/p.proto"]) == 0
    return contract(FileDescriptorSet.FromString((folder / "set").read_bytes()).file)


def test_messages_enumerations_and_reserved_numbers_are_read(tmp_path: Path) -> None:
    assert compiled(tmp_path) == KNOWN


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("uint64 size_bytes = 1;", "", "p.Block: 1 (uint64 size_bytes) is gone and not reserved"),
        ("uint64 size_bytes", "uint32 size_bytes", "p.Block: 1 was uint64 size_bytes and is uint32 size_bytes"),
        ("size_bytes = 1", "num_bytes = 1", "p.Block: 1 was uint64 size_bytes and is uint64 num_bytes"),
        ("repeated Codec", "Codec", "p.Block: 2 was repeated p.Codec codecs and is p.Codec codecs"),
        ("reserved 4, 5;", "reserved 4; bool hot = 5;", "p.Block: 5 was reserved and is bool hot"),
        ("bytes data", "string data", "p.Block.Inner: 1 was bytes data and is string data"),
        ("LZ4 = 1", "ZSTD = 1", "p.Codec: 1 was LZ4 and is ZSTD"),
        ("reserved 7;", "", "p.Codec: 7 (reserved) is gone and not reserved"),
    ],
)
def test_a_number_that_means_something_else_is_a_problem(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert problems(KNOWN, compiled(tmp_path, old, new)) == [problem]


@pytest.mark.parametrize(
    ("old", "new", "name", "number", "meaning"),
    [
        ("uint64 size_bytes = 1;", "reserved 1;", "p.Block", 1, RESERVED),
        ("LZ4 = 1;", "LZ4 = 1; ZSTD = 2;", "p.Codec", 2, "ZSTD"),
        ("bytes data = 1;", "bytes data = 1; bool is_last = 2;", "p.Block.Inner", 2, "bool is_last"),
    ],
)
def test_what_is_added_or_retired_extends_the_contract(
    tmp_path: Path, old: str, new: str, name: str, number: int, meaning: str
) -> None:
    now = compiled(tmp_path, old, new)
    assert problems(KNOWN, now) == []
    longer = extended(KNOWN, now)
    assert longer == {**KNOWN, name: {**KNOWN[name], number: meaning}}
    write(longer, tmp_path / "contract.json")
    assert read(tmp_path / "contract.json") == longer


def test_a_message_that_is_gone_keeps_its_numbers(tmp_path: Path) -> None:
    now = compiled(tmp_path, "message Inner { bytes data = 1; }", "")
    assert problems(KNOWN, now) == []
    assert extended(KNOWN, now) == KNOWN
