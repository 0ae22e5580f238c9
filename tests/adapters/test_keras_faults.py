"""gravity_tf.Gravity under faults: nothing moves unless everything can, and calls do not mix."""

import threading

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="gravity_tf needs keras")

from keras import ops  # noqa: E402

from gravity_core import Gravity as Reference  # noqa: E402
from gravity_core import State  # noqa: E402
from gravity_tf import Gravity, export_state, import_state  # noqa: E402
from tests.support.keras_helpers import arrays, assert_same, make_variables, to_numpy  # noqa: E402

BACKEND = keras.backend.backend()
SHAPES = [(2,), (3,)]


def trained(dtype="float32", **options):
    """Return an optimizer after one step, its variables, and everything that must not change."""
    variables = make_variables(arrays(0, dtype, SHAPES))
    optimizer = Gravity(**options)
    optimizer.build(variables)
    optimizer.apply(tensors(arrays(1, dtype, SHAPES)))
    return optimizer, variables, [*variables, *optimizer.variables]


def tensors(values):
    return [ops.convert_to_tensor(v) for v in values]


def apply(optimizer, variables, gradients):
    optimizer.apply(gradients)


def apply_gradients(optimizer, variables, gradients):
    optimizer.apply_gradients(zip(gradients, variables, strict=True))


def apply_statelessly(optimizer, variables, gradients):
    state, weights = ([v.value for v in vs] for vs in (optimizer.variables, variables))
    optimizer.stateless_apply(state, gradients, weights)


WAYS = [apply, apply_gradients] + [apply_statelessly] * (BACKEND != "tensorflow")


def bad_gradients():
    yield "shape", lambda: ops.ones(4), ValueError, r"have the variable's shape \(3,\), got \(4,\)"
    yield "broadcast", lambda: ops.ones(1), ValueError, r"shape \(3,\), got \(1,\)"
    yield "complex", lambda: ops.cast(ops.ones(3), "complex64"), ValueError, "be real"
    yield "bool", lambda: ops.ones(3, "bool"), TypeError, "tensor of numbers, got dtype bool"
    yield "text", lambda: np.array(["a", "b", "c"]), TypeError, "be a tensor of numbers, got"
    yield "object", lambda: object(), TypeError, "be a tensor of numbers, got"
    yield "ragged", lambda: [1.0, [2.0]], TypeError, "be a tensor of numbers, got"
    masked = np.ma.masked_array(np.ones(3, np.float32), [True, False, False])
    yield "masked", lambda: masked, TypeError, "be a tensor of numbers, got MaskedArray"
    yield (
        "matrix",
        lambda: np.ones((1, 3)).view(np.matrix),
        TypeError,
        "be a tensor of numbers, got matrix",
    )


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "weight_decay": 0.1}])
def test_a_bad_gradient_in_the_last_place_moves_nothing(way, options):
    optimizer, variables, everything = trained(**options)
    before = to_numpy(everything)
    for _, gradient, error, message in bad_gradients():
        with pytest.raises(error, match=f"^the gradient of w1 must .*{message}"):
            way(optimizer, variables, [ops.ones(2), gradient()])
        assert_same(everything, before)


def test_messages_give_the_path_of_a_variable():
    """Each layer may have a kernel: its name alone would not tell them apart."""
    layer = keras.layers.Dense(2, name="head", use_bias=False)
    layer.build((None, 3))
    optimizer = Gravity()
    optimizer.build(layer.trainable_variables)
    with pytest.raises(ValueError, match=r"^the gradient of head/kernel must have the"):
        optimizer.apply([ops.ones(4)])
    with pytest.raises(TypeError, match=r"^the gradient of head/kernel must be a tensor"):
        optimizer.apply([ops.ones((3, 2), "bool")])
    rows = keras.layers.Layer(name="table").add_weight(
        (2,), "zeros", "int32", trainable=False, name="rows"
    )
    with pytest.raises(TypeError, match=r"^table/rows must be floating"):
        Gravity().build([rows])


@pytest.mark.parametrize("every", [None, 2])
def test_a_negative_t_moves_nothing(every):
    optimizer, variables, everything = trained(gradient_accumulation_steps=every, weight_decay=0.1)
    next(v for v in optimizer.variables if v.name == "iteration").assign(-9)
    before = to_numpy(everything)
    for way in WAYS:
        with pytest.raises(ValueError, match=r"^iteration must be an integer >= 0, got -[59]$"):
            way(optimizer, variables, [ops.ones(2), ops.ones(3)])
        assert_same(everything, before)


def test_integers_are_gradients():
    optimizer, variables, _ = trained(gradient_accumulation_steps=2)
    other, same, _ = trained(gradient_accumulation_steps=2)
    for _ in range(2):
        optimizer.apply([ops.ones(2, "int32"), ops.ones(3, "int32")])
        other.apply([ops.ones(2), ops.ones(3)])
    assert_same(variables, to_numpy(same))


def test_an_array_mapped_from_a_file_is_a_gradient(tmp_path):
    optimizer, _, everything = trained()
    other, _, same = trained()
    mapped = np.memmap(tmp_path / "gradient", np.float32, "w+", shape=(3,))
    mapped[:] = 1
    optimizer.apply([ops.ones(2), mapped])
    other.apply([ops.ones(2), ops.ones(3)])
    assert_same(everything, to_numpy(same))


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_gradients_may_have_another_dtype_than_their_variables(dtype, every):
    optimizer, _, everything = trained(gradient_accumulation_steps=every)
    other, _, same = trained(gradient_accumulation_steps=every)
    for _ in range(2):
        optimizer.apply([ops.ones(2), ops.convert_to_tensor(np.ones(3, dtype))])
        other.apply([ops.ones(2), ops.ones(3)])
    assert_same(everything, to_numpy(same))


def test_gradients_and_variables_may_be_views_of_dicts():
    gradients = dict(zip("ab", tensors(arrays(1, shapes=SHAPES)), strict=True))
    variables = dict(zip("ab", make_variables(arrays(0, shapes=SHAPES)), strict=True))
    Gravity().apply(gradients.values(), variables.values())
    assert_same(list(variables.values()), to_numpy(trained()[1]))


# Loading


def bad_values():
    count = r"iteration must be an integer >= 0 that fits int\d+"
    yield 3, np.ones(7, np.float32), r"w1_velocity must be .* shape \(3,\), got float32 of .*\(7,\)"
    yield 3, np.array(["a", "b", "c"]), r"w1_velocity must be an array of numbers .* got str"
    yield 0, np.array(-5), rf"{count}, got array\(-5\)"
    yield 0, np.array(2.5), rf"{count}, got array\(2.5\)"
    yield 0, np.array(2**63, np.uint64), rf"{count}, got"
    if BACKEND != "tensorflow":
        yield 0, np.array(2**31 + 5), rf"{count}, got"
    yield 3, np.full(3, 1 + 5j), "w1_velocity must be real, got complex128"
    yield 1, np.array(-1.0), r"learning_rate must be a finite number >= 0, got array\(-1.\)"
    yield 1, np.array(1e39), r"learning_rate must be finite in float32, got 1e\+39"
    yield 3, np.full(3, 1e300), r"w1_velocity must be finite in float32, got 1e\+300"
    masked = np.ma.masked_array(np.ones(3, np.float32), [True, False, False])
    yield 3, masked, "w1_velocity must be an array without a mask, got masked_array"
    yield 1, np.array(np.nan), r"learning_rate must be a finite number >= 0, got array\(nan\)"


@pytest.mark.parametrize("method", ["load_own_variables", "set_weights"])
def test_what_cannot_be_loaded_changes_nothing(method):
    optimizer, _, everything = trained()
    before = to_numpy(everything)
    store = {str(i): v + 5 for i, v in enumerate(to_numpy(optimizer.variables))}
    load = getattr(optimizer, method)
    as_given = (lambda s: list(s.values())) if method == "set_weights" else dict
    for place, value, message in bad_values():
        with pytest.raises(ValueError, match=message):
            load(as_given(store | {str(place): value}))
        assert_same(everything, before)
    load(as_given(store))
    assert_same(optimizer.variables, list(store.values()))
    load(as_given({name: value.tolist() for name, value in store.items()}))
    assert_same(optimizer.variables, list(store.values()))


@pytest.mark.parametrize(
    ("dtype", "value"), [("float16", 65_520), ("bfloat16", 3.4e38), ("complex64", 1e39j)]
)
def test_a_velocity_that_overflows_changes_nothing(dtype, value):
    optimizer = Gravity()
    optimizer.build([keras.Variable(np.zeros(2), dtype=dtype)])
    before = to_numpy(optimizer.variables)
    with pytest.raises(ValueError, match=f"velocity must be finite in {dtype}, got"):
        optimizer.set_weights([*before[:-1], np.array([1, value])])
    assert_same(optimizer.variables, before)
    infinite = np.array([1, np.inf]).astype(before[-1].dtype)
    optimizer.set_weights([*before[:-1], infinite])  # it is no number that was lost
    assert_same(optimizer.variables, [*before[:-1], infinite])


def test_a_file_without_a_variable_changes_nothing():
    optimizer, _, everything = trained()
    before = to_numpy(everything)
    store = {str(i): v + 5 for i, v in enumerate(to_numpy(optimizer.variables))}
    store["x"] = store.pop("3")
    with pytest.raises(ValueError, match="3 is missing"):
        optimizer.load_own_variables(store)
    with pytest.raises(ValueError, match="there must be 4 values, got 3"):
        optimizer.set_weights(list(store.values())[:3])
    assert_same(everything, before)


def test_export_and_import_reach_into_a_loss_scale_optimizer():
    wrapper = keras.optimizers.LossScaleOptimizer(Gravity(0.5))
    wrapper.build(make_variables(arrays(0, shapes=SHAPES)))
    import_state(wrapper, State(7, arrays(1, shapes=SHAPES), {"learning_rate": 0.25}))
    assert (export_state(wrapper).t, export_state(wrapper.inner_optimizer).t) == (7, 7)
    assert export_state(wrapper).hyperparameters["learning_rate"] == 0.25
    for other in (
        keras.optimizers.Adam(),
        keras.optimizers.LossScaleOptimizer(Gravity().__class__),
    ):
        with pytest.raises(TypeError, match=r"^optimizer must be a gravity_tf.Gravity.* got"):
            import_state(other, State(0, []))


# Threads


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras has no stateless_apply on TensorFlow")
def test_stateless_calls_of_two_threads_do_not_mix():
    optimizer, variables, _ = trained()
    gradients = tensors(arrays(2, shapes=SHAPES))

    def call(t):
        state = [ops.convert_to_tensor(np.asarray(t, "int32")), *optimizer.variables[1:]]
        state = [getattr(v, "value", v) for v in state]
        weights = [v.value for v in variables]
        weights, state = optimizer.stateless_apply(state, gradients, weights)
        return [x.tobytes() for x in to_numpy([*weights, *state])]

    alone = {t: call(t) for t in (1, 100_000)}
    assert alone[1] != alone[100_000]
    together = threading.Barrier(2)
    found = {1: [], 100_000: []}

    def repeat(t):
        together.wait()
        found[t] += [call(t) for _ in range(40)]

    threads = [threading.Thread(target=repeat, args=(t,)) for t in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {t: [got == alone[t] for got in results] for t, results in found.items()} == {
        t: [True] * 40 for t in found
    }


def test_a_step_keeps_nothing_on_the_optimizer():
    optimizer, before = trained()[0], []

    def changed(*_):
        assert [n for n, v in vars(optimizer).items() if before[0].get(n, optimizer) is not v] == []
        called.append(True)

    called = []
    optimizer.update_step = changed
    before.append(dict(vars(optimizer)))
    optimizer.apply(tensors(arrays(1, shapes=SHAPES)))
    assert called == [True, True]
    changed()


# Numbers


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.longdouble])
def test_a_number_means_the_same_as_in_the_reference(kind):
    names = ["learning_rate", "alpha", "beta", "weight_decay"]
    given = Gravity(**dict.fromkeys(names, kind("0.3")))
    plain, reference = (make(**dict.fromkeys(names, 0.3)) for make in (Gravity, Reference))
    for optimizer in (plain, reference):
        assert given.velocity_std == optimizer.velocity_std
        assert [getattr(given, n) for n in names[1:]] == [getattr(optimizer, n) for n in names[1:]]
    assert given.get_config() == plain.get_config()
    given.learning_rate = kind("0.7")
    given.build(make_variables(arrays(0, shapes=SHAPES)))
    assert export_state(given).hyperparameters["learning_rate"] == 0.7


@pytest.mark.parametrize("bad", [None, "1", True, 1j, 10**400, float("nan"), [0.1], np.ones(1)])
def test_what_is_no_number_is_refused_by_name(bad):
    for name in ("learning_rate", "alpha", "beta", "weight_decay", "velocity_std"):
        if bad is None and name in ("weight_decay", "velocity_std"):
            continue  # None means none
        with pytest.raises(ValueError, match=f"^{name} must be .* got"):
            Gravity(**{name: bad})
        with pytest.raises(ValueError, match=f"^{name} must be .* got"):
            setattr(Gravity(), name, bad)


@pytest.mark.parametrize("rate", [1e39, 1e300, np.longdouble("1e39")])
def test_a_rate_that_overflows_the_dtype_of_keras_is_refused(rate):
    with pytest.raises(ValueError, match=r"^learning_rate must be finite in float32, got"):
        Gravity(rate, velocity_std=0.1)
    optimizer, _, everything = trained()
    before, config = to_numpy(everything), optimizer.get_config()
    state = State(5, arrays(3, shapes=SHAPES), {"learning_rate": float(rate), "beta": 0.5})
    for assign in (
        lambda: setattr(optimizer, "learning_rate", rate),
        lambda: import_state(optimizer, state),
    ):
        with pytest.raises(ValueError, match=r"^learning_rate must be finite in float32, got"):
            assign()
        assert_same(everything, before)
        assert optimizer.get_config() == config
    largest = float(np.finfo(np.float32).max)
    optimizer.learning_rate = largest
    assert float(optimizer.learning_rate) == largest


class Falling(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that turns negative at t = 1."""

    def __call__(self, step):
        return 0.5 - ops.cast(step, "float32")


@pytest.mark.parametrize("decay", [None, 0.1])
def test_a_schedule_that_turns_negative_moves_nothing(decay):
    optimizer, _, everything = trained(learning_rate=Falling(), weight_decay=decay)
    before = to_numpy(everything)
    with pytest.raises(
        ValueError, match=r"^learning_rate must be a finite number >= 0, got .*-0\.5"
    ):
        optimizer.apply(tensors(arrays(2, shapes=SHAPES)))
    assert_same(everything, before)


def test_decay_is_a_float64_wherever_it_comes_from():
    """On TensorFlow, ops.cast takes a plain float through float32."""
    imported, assigned = Gravity(), Gravity()
    imported.build(make_variables(arrays(0, shapes=SHAPES)))
    import_state(imported, State(0, arrays(1, shapes=SHAPES), {"weight_decay": 0.1}))
    assigned.weight_decay = 0.1
    for optimizer in (imported, assigned, Gravity(weight_decay=0.1)):
        decay = optimizer.weight_decay
        assert decay == 0.1
        if BACKEND == "tensorflow":
            assert float(ops.cast(decay, "float64")) == 0.1
        else:
            assert isinstance(decay, np.float64) == (BACKEND == "torch")


def test_torch_compiles_a_plain_decay(monkeypatch):
    """torch.compile takes no np.float64."""
    monkeypatch.setattr("gravity_tf._rates.is_compiling", lambda: BACKEND == "torch")
    assert (type(Gravity(weight_decay=0.1).weight_decay) is float) == (BACKEND != "tensorflow")


@pytest.mark.parametrize("how", [{}, {"seed": 3}])
def test_a_failure_while_v0_is_drawn_leaves_the_optimizer_unbuilt(how):
    variables = make_variables(arrays(0, shapes=SHAPES))
    optimizer, other = (Gravity(velocity_std=1e-40, **how) for _ in range(2))
    before = len(optimizer.variables)
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        optimizer.build(variables)
    assert (optimizer.built, len(optimizer.variables)) == (False, before)
    for each in (optimizer, other):
        each.build(make_variables(arrays(0, shapes=SHAPES)))
    for mine, others in zip(optimizer.variables, other.variables, strict=True):
        assert np.array_equal(*map(ops.convert_to_numpy, (mine, others)))
