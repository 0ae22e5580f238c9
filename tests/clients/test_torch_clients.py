"""The recipes of docs/recipes/torch.md, with the real libraries, on CPUs and without a network.

Each runs in processes of its own; this module imports none of the libraries.
"""

import shutil
import subprocess
import sys

import pytest

from tests.support import clients
from tests.support.torch_clients import LIBRARIES, SCAFFOLDS

PAGE = "torch.md"
BLOCKS = clients.blocks(PAGE)
LINES = clients.lines(PAGE)
PROCESSES = {"lightning.pytorch.strategies": 2}

# Writes what the recipe trained: one file per process.
SAVE = """
import os
torch.save([p.detach() for p in {model}.parameters()], f"weights-{{os.environ['RANK']}}.pt")
"""
LOSE = """
import gravity_torch
load = gravity_torch.Gravity.load_state_dict

def lose(optimizer, state_dict):
    load(optimizer, state_dict)
    for values in optimizer.state.values():
        if "velocity" in values:
            values["velocity"].zero_()

gravity_torch.Gravity.load_state_dict = lose
"""
COMPARE = """
import torch
first, second = (torch.load(f"weights-{rank}.pt") for rank in (0, 1))
assert first
for a, b in zip(first, second, strict=True):
    assert torch.equal(a, b)
    assert a.isfinite().all()
"""


def test_the_page_has_the_recipes_and_the_lines():
    assert set(BLOCKS) == {
        "transformers",
        "accelerate",
        "lightning",
        "lightning.pytorch.cli",
        "lightning.pytorch.strategies",
        "fastai.basics",
        "timm",
        "skorch",
    }
    assert set(LINES) == set(SCAFFOLDS) == set(LIBRARIES)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_recipe_resumes_bit_for_bit(name, tmp_path):
    clients.skip_without(*BLOCKS[name].needs)
    clients.run(BLOCKS[name].code, tmp_path, processes=PROCESSES.get(name, 1))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_recipe_notices_a_lost_velocity(name, tmp_path):
    clients.skip_without(*BLOCKS[name].needs)
    with pytest.raises(AssertionError, match=r"assert torch\.equal\(a, b\)"):
        clients.run(LOSE + BLOCKS[name].code, tmp_path, processes=PROCESSES.get(name, 1))


@pytest.mark.parametrize(
    ("name", "model", "changes"),
    [
        ("transformers", "resumed.model", {}),
        ("accelerate", "model", {}),
        ("lightning", "resumed", {'"cpu"': '"cpu", strategy="ddp", devices=2'}),
    ],
)
def test_two_processes_stay_equal_and_resume_bit_for_bit(name, model, changes, tmp_path):
    clients.skip_without(*BLOCKS[name].needs)
    code = BLOCKS[name].code
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    check = "\nassert torch.distributed.get_world_size() == 2\n"
    clients.run(code + check + SAVE.format(model=model), tmp_path, processes=2)
    clients.run(COMPARE, tmp_path)


@pytest.mark.parametrize("library", LINES)
def test_a_line_of_the_table_trains(library, tmp_path):
    modules, options = LIBRARIES[library]
    clients.skip_without(*modules)
    if library == "DeepSpeed" and not (shutil.which("c++") and shutil.which("ninja")):
        pytest.skip("DeepSpeed compiles an extension: it needs a C++ compiler and ninja")
    code = SCAFFOLDS[library].replace("LINE", LINES[library])
    clients.run(code, tmp_path, **options)


# What the pages say of the libraries


@pytest.mark.parametrize(
    ("name", "argument", "rate"),
    [
        ("transformers.TrainingArguments", "learning_rate", 5e-5),
        ("stable_baselines3.PPO", "learning_rate", 3e-4),
        ("fastai.learner.Learner", "lr", 1e-3),
        ("skorch.NeuralNet", "lr", 0.01),
    ],
)
def test_the_default_rates_are_those_of_the_page(name, argument, rate, tmp_path):
    module, _, function = name.rpartition(".")
    clients.skip_without(module)
    code = f"""
import inspect
from {module} import {function}
default = inspect.signature({function}.__init__).parameters["{argument}"].default
assert default == {rate}, default
"""
    clients.run(code, tmp_path)


def test_the_rate_of_the_arguments_does_not_arrive_in_transformers(tmp_path):
    clients.skip_without("transformers", "accelerate")
    code = BLOCKS["transformers"].code.replace("max_steps=6", "max_steps=6, learning_rate=0.7")
    clients.run(code, tmp_path)  # it asserts the rate 0.1


def test_the_decay_of_the_arguments_arrives_in_transformers(tmp_path):
    clients.skip_without("transformers", "accelerate")
    check = """
assert {group["weight_decay"] for group in whole.optimizer.param_groups} == {0.01, 0.0}
assert whole.optimizer.param_groups[0]["lr"] < 0.1  # the schedule
"""
    clients.run(BLOCKS["transformers"].code + check, tmp_path)


def test_fastai_fine_tunes_with_the_map_and_not_without(tmp_path):
    clients.skip_without("fastai")
    check = """
run = learner()
with run.no_logging():
    run.fine_tune(1, base_lr=0.1)
assert run.opt.hypers[0]["mom"] != 0.9 and "beta" not in run.opt.hypers[0]
gravity = partial(OptimWrapper, opt=partial(Gravity, velocity_std=0.1))
try:
    learner().fit_one_cycle(1, lr_max=0.1)
except KeyError as error:
    assert "mom" in error.args[0]
else:
    raise AssertionError("fastai sets mom without the map: change the page")
"""
    clients.run(BLOCKS["fastai.basics"].code + check, tmp_path)


def test_wsam_without_velocity_std_changes_sigma_and_says_so(tmp_path):
    clients.skip_without("pytorch_optimizer")
    code = SCAFFOLDS["pytorch_optimizer"].replace("LINE", LINES["pytorch_optimizer"])
    setup = code[: code.index(LINES["pytorch_optimizer"])]
    check = """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    optimizer = WSAM(model, model.parameters(), Gravity, lr=0.1)
assert abs(optimizer.param_groups[0]["velocity_std"] - 0.1) > 1
(warning,) = (str(w.message) for w in caught if "velocity_std" in str(w.message))
assert "another library wrote alpha" in warning
"""
    clients.run(setup + check, tmp_path)


# The helpers


def test_collection_imports_no_library():
    code = f"import sys, {__name__}\nprint(*sys.modules)"
    modules = set(
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=clients.ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    )
    assert "tests.support.clients" in modules
    assert not modules & {"torch", *(block.needs[0] for block in BLOCKS.values())}
    assert not modules & {name for names, _ in LIBRARIES.values() for name in names}


def test_a_failing_block_fails(tmp_path):
    with pytest.raises(AssertionError, match="1 == 2"):
        clients.run("assert 1 == 2", tmp_path)


def test_a_warning_of_gravity_fails(tmp_path):
    code = "import torch, gravity_torch\ngravity_torch.Gravity([torch.ones(2)], lr=0.0)"
    with pytest.raises(AssertionError, match="velocity_std"):
        clients.run(code, tmp_path)
