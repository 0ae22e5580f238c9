"""Configuration and state of gravity_tf.Gravity, on the backend that Keras runs on."""

import copy
import inspect
import pickle

import pytest

keras = pytest.importorskip("keras", reason="gravity_tf needs keras")


from gravity_conformance.parity.digits import digits_task  # noqa: E402
from gravity_tf import Gravity  # noqa: E402
from tests.support.keras_helpers import (  # noqa: E402
    assert_same,
    fit,
    perceptron,
    run,
    to_numpy,
    velocities,
)


@pytest.fixture(scope="module")
def task():
    return digits_task("float32", seed=0, steps=45, options={})


BACKEND = keras.backend.backend()


@keras.saving.register_keras_serializable(package="tests")
def a_third():
    return 1 / 3


def with_every_option():
    return Gravity(
        0.2,
        0.03,
        0.8,
        velocity_std=0.4,
        seed=5,
        first_step=0,
        weight_decay=0.01,
        clipnorm=1.0,
        use_ema=True,
        ema_momentum=0.9,
        ema_overwrite_frequency=7,
        loss_scale_factor=2.0,
        gradient_accumulation_steps=3,
        name="mine",
    )


def test_config_round_trip():
    optimizer = with_every_option()
    config = optimizer.get_config()
    arguments = set(inspect.signature(Gravity.__init__).parameters) - {"self", "kwargs"}
    assert arguments <= set(config)
    for copied in (
        Gravity.from_config(copy.deepcopy(config)),
        keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)),
        keras.optimizers.get(keras.optimizers.serialize(optimizer)),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer)),
    ):
        assert type(copied) is Gravity
        assert copied.get_config() == config
    assert {k: v for k, v in config.items() if k in ("alpha", "beta", "seed", "first_step")} == {
        "alpha": 0.03,
        "beta": 0.8,
        "seed": 5,
        "first_step": 0,
    }


@pytest.mark.parametrize(
    "rate",
    [0.3, keras.optimizers.schedules.CosineDecay(0.3, 100), a_third],
    ids=["number", "schedule", "function"],
)
def test_a_clone_steps_like_its_original(rate):
    optimizer = Gravity(rate, seed=9)
    clone = Gravity.from_config(optimizer.get_config())
    assert clone.velocity_std == optimizer.velocity_std
    assert_same(run(clone), run(optimizer))


def test_a_clone_keeps_sigma_after_the_learning_rate_changes():
    optimizer = Gravity(0.1)
    optimizer.learning_rate = 0.0
    assert Gravity.from_config(optimizer.get_config()).velocity_std == 0.01 / 0.1


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("rate", [0.3, a_third], ids=["number", "function"])
def test_copies_and_pickles_of_an_unbuilt_optimizer(duplicate, rate):
    optimizer = Gravity(rate, seed=9)
    assert_same(run(duplicate(optimizer)), run(optimizer))


def test_a_pickled_model_resumes_bit_for_bit(task):
    model = perceptron(Gravity(seed=3))
    fit(model, task, 1)
    resumed = pickle.loads(pickle.dumps(model))
    fit(model, task, 1)
    fit(resumed, task, 1)
    assert_same(resumed.weights, model.weights)


WAYS = ["keras file", "ModelCheckpoint", "set_weights", "load_own_variables"]


@pytest.mark.parametrize("way", WAYS)
def test_resumes_bit_for_bit(way, task, tmp_path):
    model, file = perceptron(Gravity(seed=3)), tmp_path / "model.keras"
    checkpoint = [keras.callbacks.ModelCheckpoint(file)] if way == "ModelCheckpoint" else []
    fit(model, task, 1, callbacks=checkpoint)
    if way in ("keras file", "ModelCheckpoint"):
        if way == "keras file":
            model.save(file)
        resumed = keras.models.load_model(file)
    else:
        resumed = perceptron(Gravity(seed=99))
        resumed.set_weights(model.get_weights())
        resumed.optimizer.build(resumed.trainable_variables)
        if way == "set_weights":
            resumed.optimizer.set_weights(to_numpy(model.optimizer.variables))
        else:
            store = {}
            model.optimizer.save_own_variables(store)
            resumed.optimizer.load_own_variables(store)
    fit(model, task, 1)
    fit(resumed, task, 1)
    assert_same(resumed.weights, model.weights)
    assert_same(resumed.optimizer.variables, model.optimizer.variables)
    assert int(resumed.optimizer.iterations) == 90


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.01, "clipnorm": 1.0, "use_ema": True, "gradient_accumulation_steps": 2},
        {"weight_decay": 0.3, "global_clipnorm": 0.5, "gradient_accumulation_steps": 3},
        {"clipvalue": 0.1, "use_ema": True, "ema_momentum": 0.9, "loss_scale_factor": 8.0},
    ],
    ids=" ".join,
)
def test_resumes_bit_for_bit_with_several_options(options, task, tmp_path):
    if BACKEND == "jax" and "use_ema" in options:
        pytest.skip("Keras 3.15 on JAX cannot fit a model with use_ema twice, with any optimizer")
    model = perceptron(Gravity(seed=3, **options))
    fit(model, task, 1)  # 45 batches, so the accumulator of 2 is half full
    model.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    fit(model, task, 1)
    fit(resumed, task, 1)
    assert_same(resumed.weights, model.weights)
    assert_same(resumed.optimizer.variables, model.optimizer.variables)


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_backup_and_restore_resumes_bit_for_bit(task, tmp_path):
    whole = perceptron(Gravity())
    fit(whole, task, 3)

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(KeyboardInterrupt):
        fit(perceptron(Gravity()), task, 3, callbacks=[backup(), Interrupt()])
    resumed = perceptron(Gravity())
    history = fit(resumed, task, 3, callbacks=[backup()])
    assert history.epoch == [2]
    assert_same(resumed.weights, whole.weights)


def test_velocities_are_named_after_their_variables():
    model = perceptron(Gravity())
    model.optimizer.build(model.trainable_variables)
    assert [v.path for v in velocities(model.optimizer)] == [
        f"gravity/sequential_{layer}_{kind}_velocity".replace("sequential", model.name)
        for layer in ("hidden", "logits")
        for kind in ("kernel", "bias")
    ]
