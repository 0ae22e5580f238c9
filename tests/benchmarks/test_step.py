"""The step benchmark: its shapes, its arithmetic and its command, on tiny tensors."""

import json
import math
import subprocess
import sys

import pytest
from click.testing import CliRunner

from benchmarks import jax_step, shapes, step
from benchmarks.memory import peak_extra_bytes


def test_shapes_equal_those_of_the_models():
    totals = {name: (len(case), sum(map(math.prod, case))) for name, case in shapes.CASES.items()}
    # ResNet-50 and GPT-2 small have 25,557,032 and 124,439,808 parameters as published.
    assert totals["resnet50"] == (161, 25_557_032)
    assert totals["gpt2"] == (148, 124_439_808)
    assert totals["16M"] == (1, 2**24)
    assert totals["1000x1000"] == (1000, 1_000_000)


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


@pytest.mark.parametrize(
    ("backend", "ours", "rows"),
    [
        ("numpy", "gravity_core.Gravity", 3),
        ("torch", "gravity_torch.Gravity()", 5),
        ("jax", "gravity_jax.gravity()", 3),
    ],
)
def test_command(backend, ours, rows, tmp_path, monkeypatch):
    baseline = "optax" if backend == "jax" else "torch"
    pytest.importorskip(baseline, reason="the baseline is its Adam")
    monkeypatch.setenv("NPROC", "1")  # jax_step sets it
    monkeypatch.setitem(shapes.CASES, "16M", [(8, 8), (8,)])
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
    assert ours in done.output


def test_a_user_defined_optimizer_is_timed(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="the table is torch's")
    monkeypatch.setitem(shapes.CASES, "16M", [(8, 8), (8,)])
    source = "import torch\nclass Other(torch.optim.SGD): pass\n"
    (tmp_path / "other.py").write_text(source)
    spec = f"{tmp_path / 'other.py'}:Other"
    arguments = ["--case", "16M", "--rounds", "2", "--json", str(tmp_path / "step.json")]
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


def test_half_types_are_timed(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="the dtypes are torch's")
    from benchmarks import torch_step

    monkeypatch.setitem(shapes.CASES, "16M", [(8, 8), (8,)])
    path = tmp_path / "step.json"
    arguments = ["--case", "16M", "--rounds", "2", "--dtype", "bfloat16"]
    done = CliRunner().invoke(step.main, ["--backend", "torch", *arguments, "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert json.loads(path.read_text())["dtype"] == "bfloat16"
    for p in torch_step.parameters([(2, 3), ()], "bfloat16"):
        assert p.dtype == p.grad.dtype == torch.bfloat16
    done = CliRunner().invoke(step.main, ["--backend", "tf", *arguments])
    assert done.exit_code == 2
    assert "--dtype is for --backend torch, got tf" in done.output


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
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(path.read_text())["results"]["16M"]
    assert next(iter(results)) == "keras.optimizers.Adam()"
    assert results["gravity_tf.Gravity()"]["ratio"] > 0


def test_compile_times_of_jax(monkeypatch):
    pytest.importorskip("optax", reason="the baseline is optax's Adam")
    monkeypatch.setenv("NPROC", "1")
    monkeypatch.setitem(shapes.CASES, "16M", [(8, 8), (8,)])
    done = CliRunner().invoke(jax_step.main, ["--case", "16M", "--rounds", "2"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line[:24].strip() for line in lines] == [
        "optax.adam()",
        "gravity_jax.gravity()",
        "the plain formula",
    ]
    assert lines[0].split()[1] == "1.00"


def test_an_unwritable_file_is_refused_before_the_timing(tmp_path):
    arguments = ["--backend", "numpy", "--json", str(tmp_path / "none" / "step.json")]
    done = CliRunner().invoke(step.main, arguments)
    assert done.exit_code == 2
    assert "none" in done.output


def test_extra_memory_is_the_peak_of_one_call():
    torch = pytest.importorskip("torch", reason="measures torch's allocator")
    x = torch.ones(1000, 1000)  # four million bytes
    assert peak_extra_bytes(lambda: x.add_(1)) < 1000
    three_temporaries = peak_extra_bytes(lambda: ((x + 1) * (x + 2)).sum())
    assert 12_000_000 <= three_temporaries < 12_001_000
