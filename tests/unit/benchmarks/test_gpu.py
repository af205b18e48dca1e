"""`benchmarks.gpu` in miniature: the same sections on the CPU, and what its figures count."""

import json
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from benchmarks import gpu, harness
from benchmarks.device.asking import itls_together
from benchmarks.device.first_token import SuiteFigures, checks
from benchmarks.device.load import WAYS, step_counters
from benchmarks.device.prefill import computed_operations
from benchmarks.device.serving import procfile
from benchmarks.device.shapes import BLOCK_TOKENS, FULL, ServedShape, config_of
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
    settings = {"pool": "", "prefill_engine": "OF=prefill", "decode_engine": "OF=decode"}
    whole, alone = (procfile(ports, settings, WAYS[way], {}).splitlines() for way in ("handed over", "decode alone"))
    assert len(whole) == len(alone) + 2
    assert whole[-1].endswith("--also 10 11 12 13")
    assert alone[-1].endswith("--also 11 13")
    assert not any("services.prefill" in line for line in alone)
    (prefill_line,) = (line for line in whole if "services.prefill" in line)
    assert "OF=prefill" in prefill_line
    assert "OF=decode" not in prefill_line


def test_more_gateways_have_settings_and_ports_of_their_own_and_are_waited_for() -> None:
    ports = dict.fromkeys(("broker", "pool_east", "pool_west", "prefill", "decode", "gateway"), 1)
    ports |= {"status0": 10, "status1": 11, "status2": 12, "status3": 13, "gateway_other": 14}
    settings = {"pool": "", "prefill_engine": "", "decode_engine": ""}
    lines = procfile(ports, settings, (), {"other": "A=b"}).splitlines()
    assert lines[-2].startswith("gateway-other: exec env PRFAAS_DC=west PRFAAS_HTTP_PORT=14 A=b ")
    assert lines[-1].endswith("--also 10 11 12 13 14")


def test_what_is_read_of_steps_is_what_decode_says() -> None:
    metrics = Metrics()
    StepMeter(metrics)
    assert step_counters(generate_latest(metrics.registry).decode()) == {
        "steps": 0,
        "steps_s": 0,
        "outside_s": 0,
        "tail_tokens": 0,
    }


def test_latencies_count_while_a_whole_batch_runs() -> None:
    times = [[0.0, 1.0, 2.0, 4.0, 5.0], [1.5, 2.5, 3.5, 4.5]]
    assert itls_together(times, until=float("inf")) == [2.0, 1.0, 1.0, 1.0]
    assert itls_together(times, until=4.0) == [2.0, 1.0, 1.0]
    with pytest.raises(RuntimeError, match="same time"):
        itls_together([[0.0, 1.0], [1.5, 2.5]], until=float("inf"))


def test_targets_of_the_suite_compare_medians() -> None:
    shape = FULL.served[0]
    ttft_ms = {("streamed", 2048): 150.0, ("decode alone", 2048): 100.0, ("from the own pool", 8192): 251.0}
    ttft_ms |= {("streamed", 8192): 250.0, ("decode alone", 8192): 200.0}
    figures = SuiteFigures(ttft_ms=ttft_ms, itl_p99_ms={"undisturbed": 10.0, "handed over": 13.0})
    found = [(check.value, check.met) for check in checks(shape, figures)]
    assert found == [(1.5, True), (1.25, True), (0.251, False), (1.3, False)]


@pytest.mark.parametrize("shape", FULL.served, ids=lambda shape: shape.name)
def test_targets_are_of_lengths_that_are_asked_for(shape: ServedShape) -> None:
    assert {*shape.most_times_alone, *shape.most_from_pool_s} <= set(shape.lengths)
    assert config_of(shape.config).kv_layout(BLOCK_TOKENS, "bfloat16").entry_bytes(0) == shape.entry_bytes
