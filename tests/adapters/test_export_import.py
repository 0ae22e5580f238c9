"""export_state and import_state of each adapter: behaviour specific to its framework."""

import numpy as np
import pytest

from gravity_core import Gravity, State


def module(name, framework):
    """Import an adapter or skip with a reason."""
    pytest.importorskip(framework, reason=f"{name} needs {framework}")
    return pytest.importorskip(name, reason=f"{name} needs {framework}")


def same(a, b):
    return (a.t, a.dtypes, a.hyperparameters) == (b.t, b.dtypes, b.hyperparameters) and [
        v.tobytes() for v in a.velocities
    ] == [v.tobytes() for v in b.velocities]


def refuses(call, argument):
    with pytest.raises(TypeError, match=f"^{argument} must be a gravity_.* got "):
        call()


@pytest.mark.parametrize("wrong", [None, {}, "run.npz"], ids=str)
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax", "keras"])
def test_what_is_no_state_is_refused(framework, wrong):
    if framework == "numpy":
        refuses(lambda: Gravity().import_state(wrong, [np.ones(3)]), "state")
    elif framework == "torch":
        adapter, torch = module("gravity_torch", "torch"), pytest.importorskip("torch")
        optimizer = adapter.Gravity(parameters(torch, 3))
        refuses(lambda: adapter.import_state(optimizer, wrong), "state")
    elif framework == "jax":
        adapter = module("gravity_jax", "jax")
        state = adapter.gravity().init(np.ones(3))
        refuses(lambda: adapter.import_state(state, wrong), "state")
    else:
        adapter, keras = module("gravity_tf", "keras"), pytest.importorskip("keras")
        optimizer = adapter.Gravity()
        optimizer.build([keras.Variable(np.ones(3))])
        refuses(lambda: adapter.import_state(optimizer, wrong), "state")


def test_another_optimizer_is_refused_by_torch():
    adapter, torch = module("gravity_torch", "torch"), pytest.importorskip("torch")
    for wrong in (torch.optim.SGD(parameters(torch, 3)), adapter.Gravity, None):
        refuses(lambda wrong=wrong: adapter.export_state(wrong), "optimizer")
        refuses(lambda wrong=wrong: adapter.import_state(wrong, None), "optimizer")
        refuses(lambda wrong=wrong: adapter.diagnose(wrong), "optimizer")


def test_another_optimizer_is_refused_by_keras():
    adapter, keras = module("gravity_tf", "keras"), pytest.importorskip("keras")
    wrapper = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    for wrong in (keras.optimizers.Adam(), wrapper, adapter.Gravity, None):
        refuses(lambda wrong=wrong: adapter.export_state(wrong), "optimizer")
        refuses(lambda wrong=wrong: adapter.import_state(wrong, None), "optimizer")


# PyTorch


@pytest.fixture
def torch():
    module("gravity_torch", "torch")
    return pytest.importorskip("torch", reason="gravity_torch needs torch")


def parameters(torch, *shapes, dtype=None):
    return [torch.nn.Parameter(torch.ones(s, dtype=dtype)) for s in shapes]


def step(torch, optimizer, gradients):
    for p, g in gradients.items():
        p.grad = torch.full_like(p, g)
    optimizer.step()
    optimizer.zero_grad()


def test_torch_counts_each_parameter_by_itself(torch, tmp_path):
    from gravity_torch import Gravity as Torch
    from gravity_torch import export_state, import_state

    one, two = parameters(torch, 3, 2, 4), parameters(torch, 3, 2, 4)
    optimizer, resumed = Torch(one, seed=5), Torch(two)
    step(torch, optimizer, {one[0]: 1.0, one[2]: 2.0})
    step(torch, optimizer, {one[0]: 3.0})
    state = export_state(optimizer)
    assert state.t == (2, 0, 1)
    assert one[1] not in optimizer.state  # the export created no state
    reference = Gravity(seed=5)
    reference.init([np.ones(n, np.float32) for n in (3, 2, 4)])
    assert np.array_equal(state.velocities[1], reference.velocity[1])  # the V₀ of its first step

    state.save(tmp_path / "s")
    import_state(resumed, State.load(tmp_path / "s"))
    with torch.no_grad():
        for a, b in zip(one, two, strict=True):
            b.copy_(a)
    step(torch, optimizer, dict(zip(one, (1.0, -2.0, 0.5), strict=True)))
    step(torch, resumed, dict(zip(two, (1.0, -2.0, 0.5), strict=True)))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
        assert optimizer.state[a]["step"] == resumed.state[b]["step"]
    assert same(export_state(optimizer), export_state(resumed))


def test_different_torch_groups_are_exported_one_at_a_time(torch):
    from gravity_torch import Gravity as Torch
    from gravity_torch import export_state, import_state

    params = parameters(torch, 3, 2, 4)
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.5, "weight_decay": 0.1}]
    optimizer = Torch(groups, lr=0.2)
    step(torch, optimizer, dict.fromkeys(params, 1.0))
    with pytest.raises(ValueError, match=r"lr must be the same in all .* got 0.2 and 0.5; pass"):
        export_state(optimizer)
    for group in (2, -1, "0", True, 1.0):
        with pytest.raises(ValueError, match=r"group must be None or in \[0, 2\), got"):
            export_state(optimizer, group=group)
    first, second = (export_state(optimizer, group=i) for i in range(2))
    assert [v.shape for v in second.velocities] == [(2,), (4,)]
    assert second.hyperparameters["learning_rate"] == 0.5

    fresh = parameters(torch, 3, 2, 4)
    other = Torch([{"params": fresh[:1]}, {"params": fresh[1:]}], lr=0.9)
    import_state(other, second, group=1)
    assert fresh[0] not in other.state
    assert other.param_groups[0]["lr"] == 0.9
    import_state(other, first, group=0)
    assert same(export_state(other, group=0), first)
    assert same(export_state(other, group=np.int64(1)), second)
    step(torch, optimizer, dict.fromkeys(params, 1.0))
    step(torch, other, dict.fromkeys(fresh, 1.0))
    assert torch.equal(other.state[fresh[2]]["velocity"], optimizer.state[params[2]]["velocity"])


@pytest.mark.parametrize("fails", [False, True], ids=["loads", "a hook of the user raises"])
def test_the_states_of_other_torch_groups_stay_as_they_are(torch, fails):
    """Also a V that load_state_dict would round or, as it overflows a half type, refuse."""
    from gravity_torch import Gravity as Torch
    from gravity_torch import import_state

    params = parameters(torch, 3, 2, 4, 5)
    optimizer = Torch([{"params": params[:1]}, {"params": params[1:3]}, {"params": params[3:]}])
    step(torch, optimizer, dict.fromkeys(params[:3], 0.3))  # the last has no state
    _, rounded, overflowing, _ = params
    rounded.data, overflowing.data = rounded.data.bfloat16(), overflowing.data.half()
    optimizer.state[overflowing]["velocity"][0] = 1e30
    kept = {p: dict(optimizer.state[p]) for p in params[1:3]}
    before = {p: {name: x.clone() for name, x in kept[p].items()} for p in kept}
    state = State(4, [np.full(3, 7, np.float32)])

    def hook(optimizer):
        raise KeyError("of the user")

    if fails:
        optimizer.register_load_state_dict_post_hook(hook)
        with pytest.raises(KeyError, match="of the user"):
            import_state(optimizer, state, group=0)
    else:
        import_state(optimizer, state, group=0)
    assert optimizer.state[params[0]]["velocity"].tolist() == [7, 7, 7]
    assert set(optimizer.state) == set(params[:3])
    for p in kept:
        for name, x in optimizer.state[p].items():
            assert x is kept[p][name]
            assert torch.equal(x, before[p][name])


def test_torch_keeps_its_own_options_and_layout(torch):
    from gravity_torch import Gravity as Torch
    from gravity_torch import import_state

    w = torch.nn.Parameter(torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last))
    optimizer = Torch([w], lr=torch.tensor(0.1), maximize=True, foreach=False)
    v = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    import_state(optimizer, State(4, [v], {"learning_rate": 0.5, "beta": 0.3}))
    group = optimizer.param_groups[0]
    assert isinstance(group["lr"], torch.Tensor)
    assert (group["lr"], group["beta"], group["maximize"]) == (0.5, 0.3, True)
    assert optimizer.state[w]["velocity"].stride() == w.stride()
    assert np.array_equal(optimizer.state[w]["velocity"].numpy(), v)


def test_torch_accepts_every_t_that_its_counter_can_hold(torch):
    from gravity_torch import Gravity as Torch
    from gravity_torch import export_state, import_state

    torch.set_default_dtype(torch.float64)
    try:
        optimizer = Torch(parameters(torch, 3, dtype=torch.float32))
        import_state(optimizer, State(2**24, [np.ones(3, np.float32)]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert export_state(optimizer).t == 2**24
    (state,) = optimizer.state.values()
    assert state["step"].dtype == torch.float32


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            State(2**24 + 1, [np.ones(3, np.float32)]),
            "t must be at most 16777216, the limit of this optimizer, got 16777217",
        ),
        (State(1, []), "velocities must be one per parameter, 1, got 0"),
        (State(1, [np.ones(3)]), r"velocities\[0\] must be float32 of shape \(3,\), .* float64"),
        (State(1, [np.ones((1, 3), np.float32)]), r"velocities\[0\] .* got float32 of shape \(1, "),
    ],
)
def test_torch_refuses_an_unsuitable_state_and_stays_unchanged(torch, state, message):
    from gravity_torch import Gravity as Torch
    from gravity_torch import export_state, import_state

    optimizer = Torch(parameters(torch, 3), lr=0.4)
    before = export_state(optimizer)
    with pytest.raises(ValueError, match=message):
        import_state(optimizer, state)
    assert same(export_state(optimizer), before)


def test_complex_parameters_go_through_torch_jax_and_numpy(torch):
    jax = pytest.importorskip("jax", reason="the hand-over goes through jax")
    from gravity_jax import export_state, gravity, import_state
    from gravity_torch import Gravity as Torch
    from gravity_torch import export_state as export_torch
    from gravity_torch import import_state as import_torch

    w = np.asarray([1 + 2j, -3j], np.complex64)
    stay = Gravity(seed=4)
    expected = [w.copy()]
    for _ in range(3):
        stay.step(expected, [2 * expected[0]])

    start = Gravity(seed=4)
    here = [w.copy()]
    start.step(here, [2 * here[0]])
    params = [torch.nn.Parameter(torch.tensor(here[0]))]
    second = Torch(params, foreach=False)
    import_torch(second, start.export_state())
    params[0].grad = 2 * params[0].detach()
    second.step()
    state = export_torch(second)
    assert state.dtypes == ("complex64",)
    third = gravity(**state.hyperparameters)
    leaf = jax.numpy.asarray(params[0].detach().numpy())
    opt_state = import_state(third.init(leaf), state)
    updates, opt_state = third.update(2 * leaf, opt_state, leaf)
    final = export_state(opt_state, **state.hyperparameters)
    assert final.t == 3
    assert final.velocities[0].tobytes() == stay.velocity[0].tobytes()
    assert np.asarray(leaf + updates).tobytes() == expected[0].tobytes()


# JAX


@pytest.fixture
def jax():
    module("gravity_jax", "jax")
    return pytest.importorskip("jax", reason="gravity_jax needs jax")


STATE = State(5, [np.float32([1, 2]), np.float32([[3]])], {"learning_rate": 0.2, "seed": 9})


def wrappers():
    import optax

    from gravity_jax import gravity

    def schedule(count):
        return 0.2 / (1 + count)

    return {
        "chain": optax.chain(optax.clip(1.0), gravity(schedule)),
        "masked": optax.masked(gravity(schedule), True),
        "if finite": optax.apply_if_finite(gravity(schedule), 3),
        "multi steps": optax.MultiSteps(gravity(schedule), 2),
        "injected": optax.inject_hyperparams(gravity)(learning_rate=schedule),
    }


@pytest.mark.parametrize("name", ["chain", "masked", "if finite", "multi steps", "injected"])
def test_jax_finds_gravity_inside_wrappers(jax, name):
    from gravity_jax import ScaleByGravityState, export_state, import_state

    params = {"a": jax.numpy.ones(2), "b": jax.numpy.ones((1, 1))}
    fresh = wrappers()[name].init(params)
    opt_state = import_state(fresh, STATE)
    assert jax.tree.structure(opt_state) == jax.tree.structure(fresh)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(opt_state)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(fresh)
    ]
    assert same(export_state(opt_state, **STATE.hyperparameters), STATE)

    counts = []

    def visit(node):
        if type(node).__name__ in (
            "ScaleByScheduleState",
            "InjectStatefulHyperparamsState",
            ScaleByGravityState.__name__,
        ):
            counts.append(int(node.count))
        if isinstance(node, (tuple, dict)):
            for child in node.values() if isinstance(node, dict) else node:
                visit(child)

    visit(opt_state)
    assert counts == [5, 5]  # the counts of the schedule and of Gravity


def test_jax_continues_its_schedule(jax):
    import optax

    from gravity_jax import export_state, gravity, import_state

    schedule = optax.linear_schedule(0.4, 0.0, 10)
    decay = optax.linear_schedule(0.5, 0.0, 10)
    optimizer, w = gravity(schedule, weight_decay=decay), jax.numpy.ones(3)
    state = optimizer.init(w)

    def steps(n, w, state):
        for _ in range(n):
            updates, state = optimizer.update(2 * w, state, w)
            w = optax.apply_updates(w, updates)
        return w, state

    middle, state = steps(4, w, state)
    exported = export_state(state, learning_rate=schedule, weight_decay=decay)
    assert exported.hyperparameters["weight_decay"] == pytest.approx(0.3)
    assert exported.hyperparameters["learning_rate"] == pytest.approx(0.24)
    assert exported.hyperparameters["velocity_std"] == 0.01 / 0.4
    moved = import_state(optimizer.init(w), exported)
    assert np.array_equal(steps(3, middle, moved)[0], steps(3, middle, state)[0])


def test_jax_refuses_ambiguous_or_unsuitable_states(jax):
    import optax

    from gravity_jax import export_state, gravity, import_state

    w = jax.numpy.ones(2)
    with pytest.raises(ValueError, match="opt_state must hold one ScaleByGravityState, got 0"):
        export_state(optax.sgd(0.1).init(w))
    two = optax.chain(gravity(), gravity()).init(w)
    with pytest.raises(ValueError, match="opt_state must hold one ScaleByGravityState, got 2"):
        import_state(two, STATE)
    with pytest.raises(TypeError, match=r"hyperparameters must be among .* got 'lr'"):
        export_state(gravity().init(w), lr=0.1)
    with pytest.raises(ValueError, match="velocities must be one per parameter, 1, got 2"):
        import_state(gravity().init(w), STATE)
    wide = gravity(velocity_dtype="float16").init(w)
    with pytest.raises(ValueError, match=r"velocities\[0\] must be float16 .* got float32"):
        import_state(wide, State(1, [np.ones(2, np.float32)]))
    largest = 2**31 - 1
    taken = import_state(gravity().init(w), State(largest, [np.ones(2, np.float32)]))
    assert export_state(taken).t == largest
    for t in (2**31, 2**70):
        with pytest.raises(ValueError, match=f"t must be at most {largest}, .* got {t}"):
            import_state(gravity().init(w), State(t, [np.ones(2, np.float32)]))
    with pytest.raises(ValueError, match=r"must be one number .* got \(1, 2\)"):
        import_state(gravity().init([w, w]), State((1, 2), [np.ones(2, np.float32)] * 2))


# Keras


@pytest.fixture
def keras():
    module("gravity_tf", "tensorflow")
    return pytest.importorskip("keras", reason="gravity_tf needs keras")


def test_keras_must_be_built(keras):
    from gravity_tf import Gravity as Keras
    from gravity_tf import export_state, import_state

    with pytest.raises(ValueError, match=r"optimizer must be built: call optimizer\.build"):
        export_state(Keras())
    with pytest.raises(ValueError, match=r"optimizer must be built: call optimizer\.build"):
        import_state(Keras(), STATE)


def test_keras_counts_updates_and_not_gradients(keras):
    from gravity_tf import Gravity as Keras
    from gravity_tf import export_state, import_state

    w = keras.Variable(np.ones(2, np.float32))
    optimizer = Keras(gradient_accumulation_steps=3)
    optimizer.build([w])
    gradient = keras.ops.ones(2)
    for _ in range(6):
        optimizer.apply([gradient])
    assert export_state(optimizer).t == 2
    optimizer.apply([gradient])
    with pytest.raises(ValueError, match=r"between two updates, got 1 of 3 gradients accumulated"):
        export_state(optimizer)
    state, reference = State(7, [np.zeros(2, np.float32)]), Gravity()
    import_state(optimizer, state)
    assert int(optimizer.iterations) == 7
    before = np.array(w.numpy())
    optimizer.apply([gradient])  # the import resets the accumulation, so this is the first of three
    assert np.array_equal(w.numpy(), before)
    after = [before.copy()]
    reference.import_state(state, after)
    reference.step(after, [np.ones(2, np.float32)])
    assert same(export_state_after(optimizer, gradient, 2), reference.export_state())
    assert np.array_equal(w.numpy(), after[0])


def export_state_after(optimizer, gradient, times):
    from gravity_tf import export_state

    for _ in range(times):
        optimizer.apply([gradient])
    return export_state(optimizer)


@pytest.mark.parametrize("kind", ["schedule", "callable", "assigned"])
def test_keras_keeps_its_schedule(keras, kind):
    from gravity_tf import Gravity as Keras
    from gravity_tf import export_state, import_state

    rate = keras.optimizers.schedules.PolynomialDecay(0.5, 8, end_learning_rate=0.0)
    if kind == "callable":
        variable = keras.Variable(0.25)
        rate = lambda: variable  # noqa: E731
    optimizer = Keras(0.5 if kind == "assigned" else rate)
    optimizer.learning_rate = rate
    optimizer.build([keras.Variable(np.ones(2, np.float32))])
    state = State(4, [np.ones(2, np.float32)], {"weight_decay": 0.1, "first_step": 0, "beta": 0.5})
    import_state(optimizer, state)
    found = export_state(optimizer)
    assert found.t == 4
    expected = state.hyperparameters | {"learning_rate": 0.25}
    assert found.hyperparameters == expected


def test_keras_continues_the_training_of_another_model(keras):
    from gravity_tf import Gravity as Keras
    from gravity_tf import export_state, import_state

    x = np.random.default_rng(0).uniform(size=(32, 2)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)

    def model():
        made = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        made.compile(optimizer=Keras(learning_rate=0.2), loss="mse")
        return made

    one, two = model(), model()
    one.fit(x, y, epochs=2, verbose=0, shuffle=False)
    two.set_weights(one.get_weights())
    two.optimizer.build(two.trainable_variables)
    import_state(two.optimizer, export_state(one.optimizer))
    for m in (one, two):
        m.fit(x, y, epochs=2, verbose=0, shuffle=False)
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (State(1, [np.float32([1, 2])] * 2), "velocities must be one per parameter, 1, got 2"),
        (State(2**63, [np.ones(2, np.float32)]), f"t must be at most {2**63 - 1}, .* got {2**63}"),
        (State(1, [np.ones(2)], {"beta": 0.1}), r"velocities\[0\] must be float32 .* got float64"),
    ],
)
def test_keras_refuses_an_unsuitable_state_and_stays_unchanged(keras, state, message):
    from gravity_tf import Gravity as Keras
    from gravity_tf import export_state, import_state

    optimizer = Keras(learning_rate=0.4)
    optimizer.build([keras.Variable(np.ones(2, np.float32))])
    before = export_state(optimizer)
    with pytest.raises(ValueError, match=message):
        import_state(optimizer, state)
    assert same(export_state(optimizer), before)
