"""A Keras optimizer with given gradients, on the backend that Keras runs on."""

import numpy as np

from gravity_conformance.parity.grading import Grade, grade
from gravity_conformance.protocol import Replay, Step

SHAPES = [(3, 4), (), (0,), (2, 3, 3, 3), (70_000,)]


def arrays(number, dtype="float32", shapes=SHAPES):
    """Return dyadic numbers of nine bits; the sums and means of a few of them are exact."""
    rng = np.random.default_rng([7, number])
    return [np.asarray(rng.integers(-256, 257, s) / 64, dtype) for s in shapes]


def to_numpy(variables):
    from keras import ops

    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def velocities(optimizer):
    """Return the velocity variables, found by their public name."""
    return [v for v in optimizer.variables if v.path.endswith("_velocity")]


def keras_without(name, delete=delattr):
    """Remove a method from the base class, as a release of Keras may."""
    import keras

    for kind in keras.optimizers.Optimizer.__mro__:
        if name in vars(kind):
            delete(kind, name)
    assert not hasattr(keras.optimizers.Optimizer, name)


def make_variables(values, names=None):
    import keras

    names = names or [f"w{i}" for i in range(len(values))]
    return [
        keras.Variable(w, dtype=w.dtype.name, name=n) for w, n in zip(values, names, strict=True)
    ]


def applying(optimizer, variables):
    """Return a function that applies gradients of NumPy or the backend to the variables."""
    import keras
    from keras import ops

    def tensors(gradients):
        return [ops.convert_to_tensor(g) for g in gradients]

    optimizer.build(variables)
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return lambda gradients: optimizer.apply(tensors(gradients))
    if keras.backend.backend() != "jax":
        # On torch, Keras 3.10 skips every step unless it receives the variables.
        return lambda gradients: optimizer.apply(tensors(gradients), variables)

    def apply(gradients):  # on JAX, Keras has only the stateless way
        state, weights = ([v.value for v in vs] for vs in (optimizer.variables, variables))
        weights, state = optimizer.stateless_apply(state, tensors(gradients), weights)
        for variable, value in zip(
            [*optimizer.variables, *variables], [*state, *weights], strict=True
        ):
            variable.assign(value)

    return apply


def graded(
    optimizer, fed, effective=None, *, weights=None, wrap=lambda apply: apply, **options
) -> Grade:
    """Apply the gradients `fed`, and compare every update with the NumPy reference.

    `effective` has one list for each update: the gradients that Gravity should receive. `fed` may
    have several lists for each update.
    """
    weights = arrays(0) if weights is None else weights
    effective = fed if effective is None else effective
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    variables = make_variables(weights)
    apply = wrap(applying(optimizer, variables))
    calls, rest = divmod(len(fed), len(effective))
    assert rest == 0

    def steps():
        yield Step(to_numpy(velocities(inner)), to_numpy(variables))
        for number, gradients in enumerate(fed, start=1):
            apply(gradients)
            if number % calls == 0:
                yield Step(to_numpy(velocities(inner)), to_numpy(variables))

    return grade(Replay(weights, effective, options), steps())


def assert_same(a, b):
    assert len(a) == len(b) > 0
    assert all(np.array_equal(x, y) for x, y in zip(to_numpy(a), to_numpy(b), strict=True))


def run(optimizer, numbers=range(1, 4), weights=None, names=None, dtype="float32"):
    """Apply `arrays(number)` as gradients for each number; return the variables."""
    from keras import ops

    variables = make_variables(arrays(0, dtype) if weights is None else weights, names)
    optimizer.build(variables)
    for number in numbers:
        optimizer.apply([ops.convert_to_tensor(g) for g in arrays(number, dtype)])
    return variables


def perceptron(optimizer, **options):
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, activation="relu", name="hidden"),
            keras.layers.Dense(10, name="logits", dtype="float32"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], **options)
    return model


def fit(model, task, epochs, **options):
    return model.fit(
        task.x_train,
        task.y_train,
        batch_size=32,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        **options,
    )


BOUNDED = {"exact", "bounded"}


def expected_verdicts():
    """Return the verdicts that a replay may have on Keras's backend."""
    import keras

    # JAX and torch evaluate the coefficients in float32, from a counter on the device.
    return {"exact"} if keras.backend.backend() == "tensorflow" else BOUNDED
