"""Entries between a device and memory that another process has mapped too: registered with CUDA, and not.

Parts: registering (seconds a GB), bare copies, the stager's ways out of pages and into them, checksums in threads. Each
is measured by itself, and says why where it cannot be. `python -m benchmarks.device.room` needs no other benchmark.
"""

import argparse
import ctypes
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.device import checksums
from benchmarks.device.checksums import MIB, Row, mapped, speed
from shared.engine.stage import Arrival, Departure, memory_for, select_stager
from shared.kv.payloads import addresses_of, digests

_GB = 1e9
BATCH_BYTES = 32 * MIB
"""What the publisher writes into room at once."""
SETTLE_S = 120.0


@dataclass(frozen=True)
class RoomPlan:
    """How much is moved."""

    mapped_bytes: int
    num_entries: int
    block_tokens: int
    repetitions: int


FULL_ROOM = RoomPlan(2 << 30, 4096, 64, 5)
SMALL_ROOM = RoomPlan(128 * MIB, 64, 4, 2)
NUM_HEADS, HEAD_DIM = 8, 128


def measure(device: torch.device, plan: RoomPlan) -> list[Row]:
    """Return the rows of all parts; a part that fails is a row that says so."""
    parts: dict[str, Callable[[], list[Row]]] = {
        "checksums": lambda: checksums.measure(plan.num_entries, plan.repetitions),
        "registering a memfd": lambda: _registering(device, plan, shared=True),
        "registering private memory": lambda: _registering(device, plan, shared=False),
        "bare copies": lambda: _bare_copies(device, plan),
        "pages to slots, registered": lambda: _stager(device, plan, is_registered=True),
        "pages to slots, not registered": lambda: _stager(device, plan, is_registered=False),
    }
    rows: list[Row] = []
    for name, part in parts.items():
        try:
            found: list[Row] = [{"part": name, **row} for row in part()]
        except Exception as error:  # noqa: BLE001 - the other parts are worth having
            found = [{"part": name, **_failed(error, device)}]
        for row in found:
            print(json.dumps(row), flush=True)
        rows += found
    return rows


def _registering(device: torch.device, plan: RoomPlan, *, shared: bool) -> list[Row]:
    if device.type != "cuda":
        return []
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    rows: list[Row] = []
    torch.zeros(1, device=device)
    for piece_mib in (8, 64, 512):
        with mapped(plan.mapped_bytes, shared=shared) as memory:
            address, piece = _address(memory), piece_mib * MIB
            starts = range(address, address + plan.mapped_bytes, piece)
            registered: list[int] = []
            try:
                started = time.perf_counter()
                for start in starts:
                    _check(runtime.cudaHostRegister(start, min(piece, address + plan.mapped_bytes - start), 1))
                    registered.append(start)
                registering_s = time.perf_counter() - started
            finally:
                started = time.perf_counter()
                for start in registered:
                    _check(runtime.cudaHostUnregister(start))
                unregistering_s = time.perf_counter() - started
        rows.append(
            {
                "piece_mib": piece_mib,
                "register_s_per_gb": round(registering_s / plan.mapped_bytes * _GB, 4),
                "unregister_s_per_gb": round(unregistering_s / plan.mapped_bytes * _GB, 4),
            }
        )
    return rows


def _bare_copies(device: torch.device, plan: RoomPlan) -> list[Row]:
    """Copies of 32 MiB in one stream, by the memory on the host's side."""
    rows: list[Row] = []
    batch = torch.randint(256, (min(BATCH_BYTES, plan.mapped_bytes // 4),), dtype=torch.uint8, device=device)
    for name in ("pinned", "memfd, registered", "memfd, not registered", "memfd, through pinned memory"):
        try:
            rows.append({"host": name, **_copied(device, plan, batch, name)})
        except Exception as error:  # noqa: BLE001 - the others are worth having
            rows.append({"host": name, **_failed(error, device)})
    return rows


def _copied(device: torch.device, plan: RoomPlan, batch: torch.Tensor, name: str) -> Row:
    size, is_gpu = batch.numel(), device.type == "cuda"
    with ExitStack() as stack:
        count = 8
        if name == "pinned":
            host = torch.empty(count * size, dtype=torch.uint8, pin_memory=is_gpu)
        else:
            memory = stack.enter_context(mapped(count * size, shared=True))
            host = torch.frombuffer(memory, dtype=torch.uint8)
            if name == "memfd, registered" and is_gpu:
                runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
                _check(runtime.cudaHostRegister(_address(memory), count * size, 1))
                stack.callback(runtime.cudaHostUnregister, _address(memory))
        pinned = torch.empty(size, dtype=torch.uint8, pin_memory=is_gpu)
        targets = [host[i * size : (i + 1) * size] for i in range(count)]

        def out() -> None:
            for target in targets:
                if name == "memfd, through pinned memory":
                    pinned.copy_(batch, non_blocking=True)
                    _wait(device)
                    target.copy_(pinned)
                else:
                    target.copy_(batch, non_blocking=True)
            _wait(device)

        def back() -> None:
            for target in targets:
                if name == "memfd, through pinned memory":
                    pinned.copy_(target)
                    batch.copy_(pinned, non_blocking=True)
                    _wait(device)
                else:
                    batch.copy_(target, non_blocking=True)
            _wait(device)

        return {
            "to_host_gb_per_s": speed(out, count * size, plan.repetitions),
            "to_device_gb_per_s": speed(back, count * size, plan.repetitions),
        }


def _stager(device: torch.device, plan: RoomPlan, *, is_registered: bool) -> list[Row]:
    """The engine's own ways: what `PagePublisher` and `PageFetch` have the stager do, batch by batch."""
    shape = (2, plan.num_entries, plan.block_tokens, NUM_HEADS, HEAD_DIM)
    blocks = torch.randint(2**15, shape, dtype=torch.int16, device=device).view(torch.bfloat16)
    size = blocks[:, 0].numel() * blocks.element_size()
    total, at_once = plan.num_entries * size, max(1, BATCH_BYTES // size)
    batches = [range(first, min(plan.num_entries, first + at_once)) for first in range(0, plan.num_entries, at_once)]
    headers = [bytes([i % 251]) * 40 for i in range(plan.num_entries)]
    length = -(-total // (64 * MIB)) * 64 * MIB
    rows: list[Row] = []
    with closing(memory_for(device)) as memory, mapped(length, shared=True) as content:
        if is_registered:
            [address] = addresses_of([content])
            memory.grow(address, length)
            rows.append({"registered_bytes": memory.settle(SETTLE_S), "of_bytes": length})
        stager = select_stager(device, memory)
        whole = [content[i * size : (i + 1) * size] for i in range(plan.num_entries)]
        apart = random.Random(0).sample(whole, len(whole))

        def place(slots: Sequence[memoryview], digest: Callable[..., list[int]]) -> None:
            for part in batches:
                chosen = slots[part.start : part.stop]
                stager.place([Departure(None, blocks, part, chosen, headers[part.start : part.stop])], digest)

        def land(slots: Sequence[memoryview]) -> None:
            for part in batches:
                stager.land([Arrival(slots[i].toreadonly(), blocks, i) for i in part])

        for name, slots in (("adjacent", whole), ("scattered", apart)):
            rows.append(
                {
                    "slots": name,
                    "entry_kib": size // 1024,
                    "place_gb_per_s": speed(partial(place, slots, _no_digests), total, plan.repetitions),
                    "place_and_digest_gb_per_s": speed(partial(place, slots, digests), total, plan.repetitions),
                    "land_gb_per_s": speed(partial(land, slots), total, plan.repetitions),
                }
            )
        wanted = bytes(blocks[:, 5].contiguous().cpu().view(torch.uint8).numpy().data)
        rows[-1]["is_right"] = bytes(apart[5]) == wanted

        def stage() -> None:
            for part in batches:
                for _ in stager.stage(None, blocks, part):
                    pass

        rows.append({"slots": "none: as messages", "stage_gb_per_s": speed(stage, total, plan.repetitions)})
        del whole, apart
    return rows


def _no_digests(_: Sequence[bytes], payloads: Sequence[bytes | memoryview]) -> list[int]:
    return [0] * len(payloads)


def _failed(error: Exception, device: torch.device) -> Row:
    """Return what a part failed with, when its error does not stick to this thread's next kernel any more."""
    with suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
        _wait(device)
    return {"error": f"{type(error).__name__}: {error}"[:300]}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _check(status: object) -> None:
    if int(status) != 0:  # type: ignore[call-overload]
        raise OSError(f"CUDA says {status}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="little memory: shows that it works")
    parser.add_argument("--json", help="where the rows go, too")
    options = parser.parse_args()
    rows = measure(torch.device(options.device), SMALL_ROOM if options.tiny else FULL_ROOM)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
