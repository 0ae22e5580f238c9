"""gravity_tf.Gravity in the libraries of docs/recipes/keras.md."""

import pickle

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="gravity_tf needs keras")

from gravity_tf import Gravity, export_state, import_state  # noqa: E402
from tests.support.keras_helpers import assert_same  # noqa: E402

# Warnings of these libraries about other libraries say nothing of Gravity.
pytestmark = pytest.mark.filterwarnings("default")

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(64, 2)).astype(np.float32)
Y = X.sum(axis=1)


def linear(rate=0.1):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer=Gravity(learning_rate=rate), loss="mse")
    return model


def resumes(model, fit, folder):
    """Save and load a model that was fitted once, and compare a second fit of both."""
    fit(model)
    model.save(folder / "m.keras")
    resumed = keras.models.load_model(folder / "m.keras")
    fit(model)
    fit(resumed)
    assert type(resumed.optimizer) is Gravity
    assert_same(resumed.weights, model.weights)
    assert_same(resumed.optimizer.variables, model.optimizer.variables)


def test_keras_tuner_searches_rates_and_resumes(tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner", reason="needs keras-tuner")
    pytest.importorskip("tensorboard", reason="keras-tuner imports tensorboard")
    rates = [0.01, 0.3]
    tuner = keras_tuner.GridSearch(
        lambda hp: linear(hp.Choice("rate", rates)), objective="loss", directory=tmp_path
    )
    tuner.search(X, Y, epochs=5, verbose=0)
    assert len(tuner.oracle.trials) == 2
    best = tuner.get_best_hyperparameters()[0]["rate"]
    assert tuner.get_best_models()[0].optimizer.velocity_std == 0.01 / best
    model = tuner.hypermodel.build(tuner.get_best_hyperparameters()[0])
    resumes(model, lambda m: m.fit(X, Y, epochs=2, shuffle=False, verbose=0), tmp_path)


@pytest.mark.parametrize("optimizer", [Gravity, "gravity>Gravity"], ids=str)
def test_scikeras_clones_pickles_and_resumes(optimizer):
    wrappers = pytest.importorskip("scikeras.wrappers", reason="needs scikeras")
    sklearn = pytest.importorskip("sklearn", reason="needs scikit-learn")
    given = {"optimizer__learning_rate": 0.2} if optimizer is Gravity else {}
    regressor = wrappers.KerasRegressor(
        lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]),
        loss="mse",
        optimizer=optimizer,
        epochs=2,
        shuffle=False,
        verbose=0,
        random_state=0,
        **given,
    )
    first, second = (sklearn.base.clone(regressor).fit(X, Y) for _ in range(2))
    assert_same(first.model_.weights, second.model_.weights)
    assert first.model_.optimizer.velocity_std == 0.01 / given.get("optimizer__learning_rate", 0.1)
    first.model = second.model = None  # pickle cannot store the function that builds the model
    resumed = pickle.loads(pickle.dumps(first))
    for r in (first, resumed):
        r.model_.fit(X, Y, shuffle=False, verbose=0)
    assert_same(resumed.model_.weights, first.model_.weights)
    assert_same(resumed.model_.optimizer.variables, first.model_.optimizer.variables)


def test_scikeras_searches_rates():
    wrappers = pytest.importorskip("scikeras.wrappers", reason="needs scikeras")
    selection = pytest.importorskip("sklearn.model_selection", reason="needs scikit-learn")
    regressor = wrappers.KerasRegressor(
        lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]),
        loss="mse",
        optimizer=Gravity,
        optimizer__learning_rate=0.1,
        epochs=5,
        verbose=0,
        random_state=0,
    )
    rates = {"optimizer__learning_rate": [1e-4, 0.3]}
    search = selection.GridSearchCV(regressor, rates, cv=2).fit(X, Y)
    rate = search.best_params_["optimizer__learning_rate"]
    assert search.best_estimator_.model_.optimizer.velocity_std == 0.01 / rate


def test_keras_wrappers_for_scikit_learn():
    pytest.importorskip("sklearn", reason="needs scikit-learn")

    def build(X, y, optimizer):  # called with these names
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "softmax")])
        model.compile(optimizer=optimizer, loss="categorical_crossentropy")
        return model

    classifier = keras.wrappers.SKLearnClassifier(
        build, model_kwargs={"optimizer": Gravity(0.1)}, fit_kwargs={"epochs": 20, "verbose": 0}
    )
    classifier.fit(X, (X[:, 0] > X[:, 1]).astype(int))
    assert type(classifier.model_.optimizer) is Gravity
    assert int(classifier.model_.optimizer.iterations) == 40


def test_keras_hub_trains_and_resumes(tmp_path):
    hub = pytest.importorskip("keras_hub", reason="needs keras-hub")
    backbone = hub.models.GPT2Backbone(
        vocabulary_size=16,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=8,
        dropout=0.0,
    )
    model = hub.models.GPT2CausalLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=Gravity(learning_rate=0.1, velocity_std=0.0), loss=loss)
    tokens = RNG.integers(0, 16, (32, 8))
    inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}

    def fit(m):
        m.fit(inputs, np.roll(tokens, -1, 1), batch_size=8, shuffle=False, verbose=0)

    fit(model)
    model.save(tmp_path / "m.keras")
    # KerasHub loads no optimizer: without compile=False, the loaded model has Adam.
    resumed = keras.models.load_model(tmp_path / "m.keras", compile=False)
    resumed.compile(optimizer=Gravity(), loss=loss)
    resumed.optimizer.build(resumed.trainable_variables)
    import_state(resumed.optimizer, export_state(model.optimizer))
    fit(model)
    fit(resumed)
    assert_same(resumed.weights, model.weights)
    assert_same(resumed.optimizer.variables, model.optimizer.variables)


def test_keras_rs_trains_and_resumes(tmp_path):
    keras_rs = pytest.importorskip("keras_rs", reason="needs keras-rs")
    features = keras.Input((3,))
    crossed = keras_rs.layers.FeatureCross()(features)
    model = keras.Model(features, keras.layers.Dense(1)(crossed))
    model.compile(optimizer=Gravity(learning_rate=0.1), loss="mse")
    x = RNG.uniform(size=(64, 3)).astype(np.float32)
    resumes(model, lambda m: m.fit(x, x.sum(axis=1), shuffle=False, verbose=0), tmp_path)
