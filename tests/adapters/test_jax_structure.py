"""gravity_jax._structure: the first difference between a gradient tree and the parameters."""

import collections
import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402

from gravity_jax import gravity  # noqa: E402
from gravity_jax._structure import first_difference, leaves_up_to  # noqa: E402

Pair = collections.namedtuple("Pair", "x y")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    w: object
    width: int = dataclasses.field(default=0, metadata={"static": True})


ONE = {"w": jnp.ones(2), "b": jnp.ones(2)}
PARAMS = {f"layer{i}": dict(ONE) for i in range(50)}
MISSING = "is missing: a parameter without a gradient needs zeros, or optax.masked"


@pytest.mark.parametrize(
    ("params", "updates", "message"),
    [
        (PARAMS, PARAMS | {"layer17": {"w": ONE["w"]}}, f"updates['layer17']['b'] {MISSING}"),
        (PARAMS, PARAMS | {"layer17": None}, f"updates['layer17'] {MISSING}"),
        (
            PARAMS,
            {k: v for k, v in PARAMS.items() if k != "layer3"},
            f"updates['layer3'] {MISSING}",
        ),
        (PARAMS, PARAMS | {"head": ONE}, "updates['head'] belongs to no parameter"),
        ({"w": ONE["w"], "n": None}, ONE | {"n": ONE}, "updates['b'] belongs to no parameter"),
        ({"n": None}, {"n": ONE}, "updates['n'] belongs to no parameter"),
        ([ONE, ONE], [ONE], f"updates[1] {MISSING}"),
        ((1.0, 2.0), (1.0, 2.0, 3.0), "updates[2] belongs to no parameter"),
        (
            PARAMS,
            list(PARAMS.values()),
            "updates must be of type dict as in the parameters, got list",
        ),
        (Pair(ONE, 1.0), Pair((1.0, 2.0), 1.0), "updates.x must be of type dict .*, got tuple"),
        (
            [Module(1.0, 3)],
            [Module(1.0, 4)],
            "updates[0] must have the same static data .* another Module",
        ),
    ],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_first_difference_is_named(params, updates, message, transform):
    optimizer = gravity()
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="^" + re.escape(message).replace(r"\.\*", ".*")) as error:
        transform(lambda: optimizer.update(updates, state))()
    assert len(str(error.value)) < 150


def test_the_subtree_at_a_leaf_is_returned_unchanged():
    assert leaves_up_to({"a": 1.0, "n": None}, {"n": None, "a": [ONE]}) == [[ONE]]


def _nodes(children):
    dicts = st.dictionaries(st.sampled_from("abc"), children, max_size=2)
    lists = st.lists(children, max_size=2)
    return st.one_of(
        dicts,
        dicts.map(collections.OrderedDict),
        lists,
        lists.map(tuple),
        st.builds(Pair, children, children),
        st.builds(Module, children, st.integers(0, 1)),
    )


TREES = st.recursive(st.sampled_from([1.0, None]), _nodes, max_leaves=5)


@given(TREES, TREES, st.booleans())
def test_differences_are_found_where_jax_finds_them(expected, got, deeper):
    if deeper:
        expected, got = Pair([1.0], {"a": expected}), Pair([got], {"a": got})
    try:
        jax.tree.structure(expected).flatten_up_to(got)
    except ValueError:
        assert first_difference(expected, got, "updates").startswith("updates")
    else:
        assert first_difference(expected, got, "updates") is None
