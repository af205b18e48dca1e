"""`benchmarks.gpu` in miniature: the same sections on the CPU, and what its figures count."""

import json
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from benchmarks import gpu, harness
from benchmarks.device.load import WAYS, step_counters
from benchmarks.device.prefill import computed_operations
from benchmarks.device.serving import procfile
from benchmarks.device.shapes import config_of
from benchmarks.roofline import LLAMA_8B, prefill
from services.decode.meter import StepMeter
from shared.metrics import Metrics


def test_it_runs_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--tiny", "--json", str(found)]
    assert harness.main("gpu", gpu.measure, gpu.add_options, arguments) == 0
    content = json.loads(found.read_text())
    assert content["settings"]["attention"] == "PyTorch SDPA"
    sections = {"correctness", "limits", "prefill", "decode", "emission", "room"}
    assert {row["section"] for row in content["rows"]} == sections
    assert [row["error"] for row in content["rows"] if "error" in row] == []
    assert all(row["is_right"] for row in content["rows"] if "is_right" in row)
    assert content["checks"]
    assert all(check["met"] for check in content["checks"])
    assert "correctness" in capsys.readouterr().out


def test_a_prefill_worker_computes_nothing_after_the_last_keys_and_values() -> None:
    config = config_of({**LLAMA_8B, "num_hidden_layers": 1})
    only_kv = 2.0 * config.hidden_size * 6144 * 100
    assert computed_operations(config, 100) == pytest.approx(only_kv)
    assert computed_operations(config_of(LLAMA_8B), 100) < prefill(config_of(LLAMA_8B), 100).operations


def test_a_suite_without_prefill_does_not_wait_for_one() -> None:
    ports = dict.fromkeys(("broker", "pool_east", "pool_west", "prefill", "decode", "gateway"), 1)
    ports |= {"status0": 10, "status1": 11, "status2": 12, "status3": 13}
    whole, alone = (procfile(ports, "", "", WAYS[way]).splitlines() for way in ("handed over", "decode alone"))
    assert len(whole) == len(alone) + 2
    assert whole[-1].endswith("--also 10 11 12 13")
    assert alone[-1].endswith("--also 11 13")
    assert not any("services.prefill" in line for line in alone)


def test_what_is_read_of_steps_is_what_decode_says() -> None:
    metrics = Metrics()
    StepMeter(metrics)
    assert step_counters(generate_latest(metrics.registry).decode()) == {
        "steps": 0,
        "steps_s": 0,
        "outside_s": 0,
        "tail_tokens": 0,
    }
