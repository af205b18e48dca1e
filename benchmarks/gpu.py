"""The engines on one GPU: right, and how near to what it can do. `--device cpu --tiny` is the same in miniature.

Sections: correctness (logits against SDPA in float32, however a prompt is cut), prefill, decode (each beside the
device's measured limits), emission (KV copied to the host behind the next layer), room (KV between the device and
memory that a pool has mapped, too), suite (prefill and decode on the GPU in two processes, everything else on its
CPUs), choice (what the router chooses beside what could be chosen), load (many requests at once, with a prefill worker
and without). Weights are random, in the shape of real models. The shapes of suite and choice can be run one by one
(`--shape`), and their prefill worker on a device of its own.
"""

import argparse
import sys
from dataclasses import replace

import torch

from benchmarks import harness
from benchmarks.device import choice, correctness, decode, emission, first_token, limits, load, prefill, room
from benchmarks.device.shapes import FULL, SMALL, config_of, random_weights, transformer
from benchmarks.harness import Report
from shared.model.attention.select import select_attention

SECTIONS = ("correctness", "prefill", "decode", "emission", "room", "suite", "choice", "load")
OF_PROCESSES = ("suite", "choice", "load")
NEED_MODEL = {"prefill": prefill.measure, "decode": decode.measure, "emission": emission.measure}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--attention", default="auto", choices=("auto", "sdpa", "flash"), help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="tiny models: shows that it works")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="may be repeated; default: all")
    shapes = [shape.name for plan in (FULL, SMALL) for shape in plan.served]
    parser.add_argument(
        "--shape", action="append", choices=shapes, help="of suite and choice; may be repeated; default: all"
    )
    parser.add_argument("--prefill-device", type=torch.device, help="of suite and choice; default: that of --device")
    parser.add_argument("--way", action="append", choices=tuple(load.WAYS), help="of load; may be repeated")


def measure(options: argparse.Namespace) -> Report:
    device, plan = torch.device(options.device), SMALL if options.tiny else FULL
    attention = select_attention(options.attention, device)
    sections = options.only or [section for section in SECTIONS if section not in OF_PROCESSES or not options.tiny]
    report = Report(settings={"device": device.type, "attention": attention.name, "tiny": options.tiny})
    if "correctness" in sections:
        _add(report, "correctness", correctness.measure(plan, device, attention))
    if NEED_MODEL.keys() & set(sections):
        measured = limits.measure(device, tiny=options.tiny)
        _add(report, "limits", Report([measured.row()]))
        config = config_of(plan.config)
        model = transformer(config, random_weights(config, torch.bfloat16, device), attention)
        for section in (name for name in NEED_MODEL if name in sections):
            limits.free(device)
            _add(report, section, NEED_MODEL[section](plan, config, model, attention, measured))
        del model
        limits.free(device)
    if "room" in sections:
        _add(report, "room", Report(room.measure(device, room.SMALL_ROOM if options.tiny else room.FULL_ROOM)))
    served = tuple(shape for shape in plan.served if not options.shape or shape.name in options.shape)
    chosen = replace(plan, served=served)
    if "choice" in sections:
        _add(report, "choice", choice.measure(chosen, device, options.attention, options.prefill_device))
    if "suite" in sections:
        _add(report, "suite", first_token.measure(chosen, device, options.attention, options.prefill_device))
    if "load" in sections:
        _add(report, "load", load.measure(plan, device, options.attention, options.way or tuple(load.WAYS)))
    return report


def _add(report: Report, section: str, found: Report) -> None:
    report.rows += [{"section": section, **row} for row in found.rows]
    report.checks += found.checks


if __name__ == "__main__":
    sys.exit(harness.main("gpu", measure, add_options, description=__doc__))
