"""gravity_core in other array libraries, each as docs/recipes/arrays.md says."""

import numpy as np
import pytest

from gravity_core import update
from tests.support import clients

LINES = clients.lines("arrays.md")
SHAPE = (40, 7)

# of the libraries, inside themselves
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def line(name, **namespace):
    """Run the page's line about a library."""
    exec(LINES[name], namespace)
    return namespace


def gradients():
    rng = np.random.default_rng(0)
    scales = [1.0, 1e-3, 100.0, 10.0]
    return [np.asarray(scale * rng.normal(size=SHAPE), np.float32) for scale in scales]


def velocities(next_of=update):
    """Return V after each gradient, with V₀ first."""
    found = [np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)]
    for t, G in enumerate(gradients(), start=1):
        found.append(next_of(G, found[-1], t))
    return found


def test_the_page_has_the_lines():
    assert LINES.keys() == {"Dask", "ndonnx", "MLX", "MLX, compiled"}


def test_dask():
    array = pytest.importorskip("dask.array", reason="Dask needs dask")
    expected = velocities()
    V = array.from_array(expected[0], chunks=(9, 3))
    for t, G in enumerate(gradients(), start=1):
        G = array.from_array(G, chunks=(16, 7))
        V = line("Dask", update=update, G=G, V=V, t=t)["V"]
        assert isinstance(V, array.Array)
        assert np.array_equal(V.compute(), expected[t])


def test_ndonnx():
    ndonnx = pytest.importorskip("ndonnx", reason="ndonnx needs itself")
    from onnx.reference import ReferenceEvaluator

    def next_of(G, V, t):
        g, v = (ndonnx.argument(shape=("n", "m"), dtype=ndonnx.float32) for _ in range(2))
        model = line("ndonnx", ndonnx=ndonnx, update=update, G=g, V=v, t=t)["model"]
        (V_next,) = ReferenceEvaluator(model).run(["V_next"], {"G": G, "V": V})
        return V_next

    assert all(map(np.array_equal, velocities(next_of), velocities()))


@pytest.mark.parametrize("name", ["MLX", "MLX, compiled"])
def test_mlx(name):
    core = pytest.importorskip("mlx.core", reason="MLX needs mlx")
    import mlx

    def next_of(G, V, t):
        G, V = map(core.array, (G, V))
        found = line(name, mlx=mlx, update=update, G=G, V=V, t=t)
        return np.asarray(found["V"] if name == "MLX" else found["step"](G, V))

    with core.stream(core.cpu):
        assert all(map(np.array_equal, velocities(next_of), velocities()))
