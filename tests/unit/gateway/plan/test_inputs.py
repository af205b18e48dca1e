"""Files become cases; every problem names file, key and reason."""

import json
import math
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.plan.__main__ import answer_of
from services.gateway.plan.answers import CapacityAnswer, capacity_answer
from services.gateway.plan.inputs import FileBuilder
from services.gateway.plan.reading import checked
from services.gateway.plan.schema import CapacityFile
from services.gateway.routing.planning.case import Averaging, DecodePoint
from services.gateway.routing.planning.lengths import EmpiricalLengths, TruncatedLogNormal
from shared.errors import SettingsError
from tests.support.planning import by_hand
from tests.unit.gateway.plan.conftest import RIGHT, Write

LIST = 'kind = "list"\ntokens = [100, 200, 300, 600]'
KV = "coefficients = [0, 1_000_000]"
PREFILL = "coefficients = [0, 0, 1]\nunit_tokens = 100"
LIKE = '{ like = "fast", scale = 3 }'


def answer(path: Path) -> CapacityAnswer:
    found = answer_of(path)
    assert isinstance(found, CapacityAnswer)
    return found


def problem(path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        answer_of(path)
    return str(caught.value)


def test_a_file_is_the_case_that_it_describes(write: Write) -> None:
    case, expected = answer(write()).case, by_hand()
    tokens = np.array([100.0, 450.0])
    assert case.lengths == expected.lengths
    for ours, other in (
        (case.kv_bytes, expected.kv_bytes),
        (case.prfaas.prefill_s, expected.prfaas.prefill_s),
        (case.pd.prefill_s, expected.pd.prefill_s),
    ):
        assert ours(tokens) == pytest.approx(other(tokens))
    assert (case.prfaas.instances, case.pd.instances, case.pd.decode) == ((9,), 4, DecodePoint(2, 0.5))
    assert (case.link, case.output_tokens, case.averaging) == (expected.link, 10, Averaging.MEAN_TIME)


def test_a_table_is_interpolated_or_fitted(write: Write) -> None:
    table = "tokens = [100, 200, 400]\nvalues = [1, 4, 16]"
    lines = answer(write((PREFILL, table))).case.prfaas.prefill_s
    fitted = answer(write((PREFILL, f"{table}\nfit_degree = 2"))).case.prfaas.prefill_s
    assert lines(np.array([300.0])) == pytest.approx([10])
    assert fitted(np.array([300.0])) == pytest.approx([9])


def test_instances_can_be_searched_and_averaging_chosen(write: Write) -> None:
    head = ("\n[lengths]", '\naveraging = "T(E[L])"\n[lengths]')
    case = answer(write(head, ("instances = 9", "max_instances = 3"))).case
    assert case.prfaas.instances == (1, 2, 3)
    assert case.averaging is Averaging.TIME_OF_MEAN


def test_the_slo_chooses_the_decode_batch(write: Write) -> None:
    case = answer(write(("token_s = 0.5", "token_s = 0.7"))).case
    assert case.pd.decode == DecodePoint(9, 0.7)


def test_lengths_can_be_log_normal(write: Write) -> None:
    case = answer(write((LIST, 'kind = "lognormal"\nmu = 5\nsigma = 1\nmin_tokens = 1\nmax_tokens = 1000'))).case
    assert case.lengths == TruncatedLogNormal(5, 1, 1, 1000)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", '{"n": 300, "x": 1}\n\n{"n": 100}\n{"n": 300}\n{"n": 0}\n'),
        ("t.csv", "\ufeffn,x\n300,1\n100,2\n300,3\n0,4\n"),
    ],
)
def test_a_trace_lies_beside_its_file(write: Write, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    case = answer(write((LIST, f'kind = "trace"\nfile = "{name}"\ncolumn = "n"'))).case
    assert case.lengths == EmpiricalLengths((100.0, 300.0), (1, 2))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.jsonl", '{"n": 1}\n{"m": 1}\n', "line 2 has no 'n'"),
        ("t.jsonl", "[1]\n", "line 1 has no 'n'"),
        ("t.jsonl", '{"n": 1}\n{"n": \n', "line 2 is not JSON"),
        ("t.jsonl", '{"n": "many"}\n', "line 1: 'n' is no number of tokens: 'many'"),
        ("t.jsonl", '{"n": -4}\n', "line 1: 'n' is no number of tokens: -4"),
        ("t.jsonl", '{"n": null}\n', "no number of tokens: None"),
        ("t.jsonl", '{"n": 0}\n', "has no requests with uncached tokens"),
        ("t.jsonl", "", "has no requests with uncached tokens"),
        ("t.csv", "m\n1\n", "line 2 has no 'n'"),
        ("t.csv", "m,n\n1\n", "line 2: 'n' is no number of tokens: None"),
        ("t.csv", f"n\n{'9' * 200_000}\n", "is not CSV"),
        ("other.jsonl", "", "cannot be read: No such file or directory"),
    ],
)
def test_a_bad_trace_is_told_by_its_line(write: Write, tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    asked = "t.jsonl" if name == "other.jsonl" else name
    path = write((LIST, f'kind = "trace"\nfile = "{asked}"\ncolumn = "n"'))
    assert problem(path).startswith(f"{path}: lengths.file: {tmp_path / asked}: ")
    assert reason in problem(path)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("[link]\ncapacity_gbit_s = 8", "", "link: is required"),
        ("capacity_gbit_s = 8", "capacity_gbit_s = 0", "link.capacity_gbit_s: input should be greater than 0"),
        (
            "capacity_gbit_s = 8",
            "capacity_gbit_s = inf",
            "link.capacity_gbit_s: input should be less than or equal to 1000000000000000",
        ),
        ("capacity_gbit_s = 8", "capacity_gbit_s = 1e-300", "link.capacity_gbit_s: must be at least 1e-15"),
        ("capacity_gbit_s = 8", 'capacity_gbit_s = "8"', "link.capacity_gbit_s: input should be a valid number"),
        ("capacity_gbit_s = 8", "capacity_gbits = 8", "link.capacity_gbits: is not a known key"),
        ("instances = 4", "instances = 4.5", "pd.instances: input should be a valid integer"),
        ("instances = 4", "instances = 0", "pd.instances: input should be greater than or equal to 1"),
        ('"list"', '"normal"', "lengths: kind must be lognormal, list or trace"),
        ("tokens = [100, 200, 300, 600]", "tokens = []", "lengths.tokens: list should have at least 1 item"),
        (KV, "", "model.kv_bytes: must have `coefficients`, or `tokens` and `values`, or `like` and `scale`"),
        (KV, "tokens = [1, 2]", "model.kv_bytes.values: is required"),
        (KV, "tokens = [1, 2]\nvalues = [1, 2, 3]", "model.kv_bytes: 2 lengths have 3 values"),
        (KV, "tokens = [2, 1]\nvalues = [1, 2]", "model.kv_bytes: the lengths of a table must ascend"),
        (KV, "tokens = [1, 2]\nvalues = [1, -2]", "model.kv_bytes.values.1: input should be greater than 0"),
        (KV, "tokens = [1, 2]\nvalues = [1, 2]\nfit_degree = 2", "model.kv_bytes: 2 values determine no polynomial"),
        (KV, 'like = "fast"\nscale = 2', "model.kv_bytes: like must name hardware"),
        (KV, "coefficients = [5, -0.02]", "model.kv_bytes: must be positive, but is -1 at 300 tokens"),
        (PREFILL, "coefficients = [0]", "hardware.fast.prefill_s: must be positive, but is 0 at 100 tokens"),
        (LIKE, '{ like = "slow", scale = 3 }', "hardware.slow.prefill_s: like must name hardware"),
        (LIKE, '{ like = "none", scale = 3 }', "hardware.slow.prefill_s: like must name hardware"),
        (LIKE, '{ like = "fast" }', "hardware.slow.prefill_s.scale: is required"),
        ('[prfaas]\nhardware = "fast"', '[prfaas]\nhardware = "h9"', "prfaas.hardware: no hardware is called 'h9'"),
        ('[pd]\nhardware = "slow"', '[pd]\nhardware = "fast"', "hardware.fast.decode: is required of the PD cluster's"),
        ("step_s = [0.5, 0.7]", "step_s = [0.5]", "hardware.slow.decode: 2 batches have 1 step times"),
        ("token_s = 0.5", "token_s = 0.1", "hardware.slow.decode: no decode batch has a step of at most 0.1 s"),
        ("instances = 9", "", "prfaas: must have either instances or max_instances"),
        ("instances = 9", "instances = 9\nmax_instances = 9", "prfaas: must have either instances or max_instances"),
        ("step_tokens = 100", "step_tokens = 1e-4", "search.step_tokens: the grid is too fine"),
        (LIST, 'kind = "lognormal"\nmu = 5\nsigma = 1\nmin_tokens = 9\nmax_tokens = 9', "lengths: min_tokens must be"),
        ("\n[lengths]", '\naveraging = "L"\n[lengths]', "averaging: input should be 'E[T(L)]' or 'T(E[L])'"),
    ],
)
def test_a_wrong_key_is_told_with_its_reason(write: Write, before: str, after: str, expected: str) -> None:
    path = write((before, after))
    assert f"{path}: {expected}" in problem(path)


def test_all_wrong_keys_are_told_at_once(write: Write) -> None:
    path = write(("instances = 4", "instances = -1"), ("capacity_gbit_s = 8", "capacity_gbit_s = -1"))
    assert [line.split(": ")[1] for line in problem(path).splitlines()] == ["pd.instances", "link.capacity_gbit_s"]


def test_a_file_that_is_no_toml_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "case.toml"
    path.write_text("a = 1\nb = \n")
    assert problem(path).startswith(f"{path}: is not TOML: Invalid value (at line 2")
    path.write_bytes(b"\xff\xfe")
    assert problem(path) == f"{path}: is not text in UTF-8"
    assert problem(tmp_path / "none.toml") == f"{tmp_path / 'none.toml'}: cannot be read: No such file or directory"
    assert problem(tmp_path).endswith(": cannot be read: Is a directory")


def test_a_table_of_models_is_checked_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    head = 'kind = "egress"\ninstances = 2\ntokens = [1000, 2000]\n[link]\ncapacity_gbit_s = 100\n'
    path.write_text(head + "[models.a.kv_gbit_s]\ncoefficients = [1.0, -1.0]\nunit_tokens = 1000\n")
    assert problem(path) == f"{path}: models.a.kv_gbit_s: must be positive, but is 0 at 1,000 tokens"
    path.write_text(head)
    assert problem(path) == f"{path}: models: is required"


def leaves(table: Any, *above: str) -> list[tuple[str, ...]]:
    """Return where every table and value of TOML's data is."""
    below = (
        [place for key, value in table.items() for place in leaves(value, *above, key)]
        if isinstance(table, dict)
        else []
    )
    return [above, *below] if above else below


NUMBERS = [10**400, -(10**400), math.nan, math.inf, -1, 0, 1, 1e15, 1e-15, 1e308, 5e-324, -1e-300, True]
OTHERS = ["", "trace", [], [1], [1, 2], {}, {"kind": []}, {"tokens": [1, 2], "values": [1e-15, 1e15], "fit_degree": 1}]


@settings(max_examples=300)
@given(st.data())
def test_no_content_ends_in_another_error(data: st.DataObject) -> None:
    content = tomllib.loads(RIGHT)
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from(leaves(content)))
        table = content
        for key in above:
            table = table[key]
        table[last] = deepcopy(data.draw(st.sampled_from([*NUMBERS, *OTHERS])))
    refused = ""
    try:
        file = checked(Path("case.toml"), content)
        assert isinstance(file, CapacityFile)
        found = capacity_answer(file, FileBuilder(Path("case.toml")))
    except SettingsError as error:
        refused = str(error)
    else:
        json.dumps(found.to_json(), allow_nan=False)
        assert list(found.lines())
    assert all(line.startswith("case.toml: ") for line in refused.splitlines())
