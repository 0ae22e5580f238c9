"""The step benchmark: its shapes, its arithmetic and its command, on tiny tensors."""

import importlib.util
import json
import math
import subprocess
import sys

import pytest
from click.testing import CliRunner

from benchmarks import jax_step, shapes, step
from benchmarks.profiling import peak_extra_bytes
from benchmarks.traffic import COPY, Traffic
from tests.support.limits import HANG

TINY = [(8, 8), (8,)]
CASE = ["--case", "16M", "--rounds", "2"]


@pytest.fixture
def tiny(monkeypatch):
    """Make the tensors of the case 16M, and those of the copy, small."""
    monkeypatch.setitem(shapes.CASES, "16M", TINY)
    if importlib.util.find_spec("torch"):
        monkeypatch.setattr("benchmarks.torch_step.COPIED", 2**10)


def test_shapes_equal_those_of_the_models():
    totals = {name: (len(case), sum(map(math.prod, case))) for name, case in shapes.CASES.items()}
    # ResNet-50 and GPT-2 small have 25,557,032 and 124,439,808 parameters as published.
    assert totals["resnet50"] == (161, 25_557_032)
    assert totals["gpt2"] == (148, 124_439_808)
    assert totals["16M"] == (1, 2**24)
    assert totals["1000x1000"] == (1000, 1_000_000)
    assert totals["100-groups"][0] == 100


def test_contenders_take_turns_and_warm_up():
    order = []
    contenders = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = step.measure(contenders, rounds=4)
    rounds = [order[i : i + 3] for i in range(0, 18, 3)]
    assert all(sorted(names) == list("abc") for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    assert [len(times) for times in seconds.values()] == [4, 4, 4]


def test_ratios_are_of_medians_with_quartiles_over_rounds():
    summary = step.summarise({"base": [1.0, 2.0, 4.0], "other": [3.0, 4.0, 4.0]})
    assert summary["base"]["ratio"] == 1.0
    assert summary["other"]["ratio"] == 2.0
    assert summary["other"]["quartiles"] == [1.0, 3.0]  # the quartiles of 3, 2 and 1


def test_times_are_compared_with_a_copy():
    seconds = {"base": [2.0, 2.0], "other": [4.0, 4.0], COPY: [0.5, 0.5]}
    traffic = Traffic(elements=10, moved={"base": 28, "other": 24}, copied=100)
    summary = step.summarise(seconds, traffic)
    assert summary[COPY]["bytes_per_second"] == 200
    assert summary["base"]["picoseconds_per_element"] == 0.2e12
    assert summary["base"]["bytes_per_element"] == 40  # 200 bytes per second, for 0.2 seconds
    assert summary["base"]["share_of_limit"] == 28 / 40
    assert summary["other"]["share_of_limit"] == 24 / 80
    del seconds["other"]
    unknown = step.summarise(seconds, Traffic(elements=10, moved={}, copied=100))
    assert "share_of_limit" not in unknown["base"]


def test_runs_are_merged_into_medians_and_the_range_of_the_ratio():
    runs = [{"a": {"ratio": x, "quartiles": [x - 1, x + 1]}} for x in (4.0, 2.0, 5.0)]
    expected = {"ratio": 4.0, "quartiles": [3.0, 5.0], "range": [2.0, 5.0]}
    assert step.over_runs(runs) == {"a": expected}


def test_the_algorithms_move_the_bytes_of_their_tensors():
    pytest.importorskip("torch", reason="the contenders are torch's")
    from benchmarks import torch_step

    single, half = (torch_step.traffic([(3, 4), ()], t) for t in ("float32", "bfloat16"))
    assert single.elements == 13
    assert single.moved[torch_step.ADAM] == 28
    assert single.moved[torch_step.SGD] == 20
    assert single.moved[torch_step.DEFAULT] == 24
    assert half.moved[torch_step.DEFAULT] == 12
    assert single.moved.keys() <= torch_step.optimizers().keys()


def test_groups_have_one_tensor_each(monkeypatch):
    torch = pytest.importorskip("torch", reason="the groups are torch's")
    from benchmarks import torch_step

    made = []
    monkeypatch.setattr(torch_step, "COPIED", 2**10)
    make = {"mine": lambda params: made.append(torch.optim.SGD(params)) or made[-1]}
    for grouped in (False, True):
        torch_step.contenders([(2,), (3,)], 1, make, grouped=grouped, only=["mine"])
    sizes = [[len(g["params"]) for g in optimizer.param_groups] for optimizer in made]
    assert sizes == [[2], [1, 1]]


@pytest.mark.parametrize(
    ("backend", "ours", "rows"),
    [
        ("numpy", "gravity_core.Gravity", 3),
        ("torch", "gravity_torch.Gravity()", 5),
        ("jax", "gravity_jax.gravity()", 3),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_command(backend, ours, rows, tmp_path, monkeypatch):
    baseline = "optax" if backend == "jax" else "torch"
    pytest.importorskip(baseline, reason="the baseline is its Adam")
    monkeypatch.setenv("NPROC", "1")  # jax_step sets it
    path = tmp_path / "step.json"
    arguments = ["--backend", backend, "--case", "16M", "--rounds", "3", "--json", str(path)]
    done = CliRunner().invoke(step.main, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(path.read_text())
    results = report["results"]["16M"]
    assert len(results) >= rows
    assert all(math.isfinite(r["ratio"]) and r["ratio"] > 0 for r in results.values())
    assert results[ours]["quartiles"][0] <= results[ours]["quartiles"][1]
    assert backend in report["versions"]
    assert any("pytorch_optimizer" in row for row in results) == (
        backend == "torch" and "pytorch_optimizer" in report["versions"]
    )
    assert report["device"] == ("cpu" if backend == "torch" else None)  # GPUs are hidden
    assert report["load_average"].keys() == {"start", "end"}
    assert ours in done.output
    assert COPY not in done.output


@pytest.mark.usefixtures("tiny")
def test_steps_are_left_out_by_name(tmp_path):
    pytest.importorskip("torch", reason="the baseline is its Adam")
    path = tmp_path / "step.json"
    arguments = ["--backend", "numpy", *CASE, "--without", "torch", "--json", str(path)]
    done = CliRunner().invoke(step.main, arguments)
    assert done.exit_code == 0, done.output
    names = list(json.loads(path.read_text())["results"]["16M"])
    assert len([name for name in names if "torch" in name]) == 1  # the baseline
    assert "gravity_core.Gravity" in names


@pytest.mark.usefixtures("tiny")
def test_runs_are_repeated(tmp_path):
    pytest.importorskip("torch", reason="the copy is torch's")
    path = tmp_path / "step.json"
    arguments = ["--backend", "torch", *CASE, "--runs", "2", "--json", str(path)]
    done = CliRunner().invoke(step.main, [*arguments, "--case", "100-groups"])
    assert done.exit_code == 0, done.output
    assert "range of 2 runs" in done.output
    report = json.loads(path.read_text())
    assert report["runs"] == 2
    for case, results in report["results"].items():
        for name, row in results.items():
            assert row["range"][0] <= row["ratio"] <= row["range"][1]
            if name != COPY:
                assert ("bytes_per_element" in row) == (case == "16M")
    assert report["results"]["16M"][COPY]["bytes_per_second"] > 0
    done = CliRunner().invoke(step.main, ["--backend", "numpy", "--case", "100-groups"])
    assert done.exit_code == 2
    assert "--case 100-groups is for --backend torch, got numpy" in done.output


@pytest.mark.usefixtures("tiny")
def test_a_user_defined_optimizer_is_timed(tmp_path):
    pytest.importorskip("torch", reason="the table is torch's")
    source = "import torch\nclass Other(torch.optim.SGD): pass\n"
    (tmp_path / "other.py").write_text(source)
    spec = f"{tmp_path / 'other.py'}:Other"
    arguments = [*CASE, "--json", str(tmp_path / "step.json")]
    run = CliRunner().invoke
    done = run(step.main, ["--backend", "torch", "--also", spec, *arguments])
    assert done.exit_code == 0, done.output
    assert spec in json.loads((tmp_path / "step.json").read_text())["results"]["16M"]
    done = run(step.main, ["--backend", "torch", "--also", f"{spec}s", *arguments])
    assert done.exit_code == 2
    assert "has no Others" in done.output
    done = run(step.main, ["--backend", "jax", "--also", spec, *arguments])
    assert done.exit_code == 2
    assert "--also is for --backend torch, got jax" in done.output


@pytest.mark.usefixtures("tiny")
def test_half_types_are_timed(tmp_path):
    torch = pytest.importorskip("torch", reason="the dtypes are torch's")
    from benchmarks import torch_step

    path = tmp_path / "step.json"
    arguments = [*CASE, "--dtype", "bfloat16"]
    done = CliRunner().invoke(step.main, ["--backend", "torch", *arguments, "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert json.loads(path.read_text())["dtype"] == "bfloat16"
    for p in torch_step.parameters([(2, 3), ()], "bfloat16"):
        assert p.dtype == p.grad.dtype == torch.bfloat16
    done = CliRunner().invoke(step.main, ["--backend", "tf", *arguments])
    assert done.exit_code == 2
    assert "--dtype is for --backend torch, got tf" in done.output


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tf", "tf_jit"])
def test_command_of_tensorflow(backend, tmp_path):
    pytest.importorskip("tensorflow", reason="the baseline is Keras's Adam")
    path = tmp_path / "step.json"
    code = (
        "from benchmarks import shapes, step\n"
        "shapes.CASES['16M'] = [(8, 8), (8,)]\n"
        f"step.main(['--backend', '{backend}', '--case', '16M', '--json', {str(path)!r}])"
    )
    # In its own process, because threads must be set before TensorFlow's first operation.
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(path.read_text())["results"]["16M"]
    assert next(iter(results)) == "keras.optimizers.Adam()"
    assert results["gravity_tf.Gravity()"]["ratio"] > 0


@pytest.mark.usefixtures("tiny")
def test_compile_times_of_jax(monkeypatch):
    pytest.importorskip("optax", reason="the baseline is optax's Adam")
    monkeypatch.setenv("NPROC", "1")
    done = CliRunner().invoke(jax_step.main, CASE)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line[:24].strip() for line in lines] == [
        "optax.adam()",
        "gravity_jax.gravity()",
        "the plain formula",
    ]
    assert lines[0].split()[1] == "1.00"


def test_an_unwritable_file_is_refused_before_the_timing(tmp_path):
    (tmp_path / "file").touch()
    arguments = ["--backend", "numpy", "--json", str(tmp_path / "file" / "step.json")]
    done = CliRunner().invoke(step.main, arguments)
    assert done.exit_code == 2
    assert "step.json" in done.output.replace("\n", "")


def test_extra_memory_is_the_peak_of_one_call():
    torch = pytest.importorskip("torch", reason="measures torch's allocator")
    x = torch.ones(1000, 1000)  # four million bytes
    assert peak_extra_bytes(lambda: x.add_(1)) < 1000
    three_temporaries = peak_extra_bytes(lambda: ((x + 1) * (x + 2)).sum())
    assert 12_000_000 <= three_temporaries < 12_001_000
