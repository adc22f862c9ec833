"""Partitions of parameters: every way to state them, and every way to get them wrong."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from momentax.sharding import resolve_specs

PARAMS = {"block": {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(4)}, "block_2": [jnp.zeros((4, 8))]}
P = PartitionSpec
SPECS = {"block": {"kernel": P("a", "b"), "bias": P()}, "block_2": [P(None, ("a", "b"))]}
FLAT = [P(), P("a", "b"), P(None, ("a", "b"))]


def mesh(shape=(4, 2), kind=AxisType.Auto):
    return jax.make_mesh(shape, ("a", "b"), axis_types=(kind, kind), devices=jax.devices()[: shape[0] * shape[1]])


def is_spec(node):
    return isinstance(node, PartitionSpec)


def named(mesh):
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS, is_leaf=is_spec)


def test_all_ways_to_state_them_agree():
    by_path = {"block/kernel": P("a", "b"), "block/bias": None, "block_2/0": P(None, ("a", "b"))}
    shapes = jax.tree.map(lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), PARAMS, named(mesh()))
    ways = [
        resolve_specs("f", PARAMS, mesh(), SPECS),
        resolve_specs("f", PARAMS, mesh(), lambda path, leaf: by_path[path]),
        resolve_specs("f", PARAMS, None, named(mesh())),
        resolve_specs("f", PARAMS, mesh(), {**SPECS, "block_2": [NamedSharding(mesh(), P(None, ("a", "b")))]}),
        resolve_specs("f", jax.device_put(PARAMS, named(mesh()))),
        resolve_specs("f", shapes),
        resolve_specs("f", PARAMS, mesh().abstract_mesh, {**SPECS, "block_2": P(None, ("a", "b"))}),
    ]
    with jax.set_mesh(mesh()):
        ways.append(resolve_specs("f", PARAMS, None, SPECS))
    for found, specs in ways:
        assert dict(found.shape) == {"a": 4, "b": 2} and specs == FLAT


def test_a_branch_gets_the_partition_of_its_prefix_and_names_are_whole():
    prefix = {"block": P(), "block_2": P(None, "b")}
    assert resolve_specs("f", PARAMS, mesh(), prefix)[1] == [P(), P(), P(None, "b")]
    assert resolve_specs("f", PARAMS, mesh(), P())[1] == [P()] * 3


def test_part_of_the_parameters_takes_its_part_of_the_tree():
    part = {"block": {"kernel": PARAMS["block"]["kernel"], "bias": optax.MaskedNode()}, "block_2": optax.MaskedNode()}
    assert resolve_specs("f", part, mesh(), SPECS)[1] == [P("a", "b")]
    assert resolve_specs("f", optax.MaskedNode(), None, SPECS) == (None, [])


def test_traced_arrays_say_where_they_lie_on_explicit_axes_alone():
    def ask(x):
        assert resolve_specs("f", {"x": x})[1] == [P("a", None)]
        return x

    with jax.set_mesh(mesh(kind=AxisType.Explicit)):
        jax.jit(ask)(jax.device_put(jnp.zeros((8, 4)), P("a")))
    with jax.set_mesh(mesh()), pytest.raises(ValueError, match="leaf 'x' is traced on a mesh without explicit axes"):
        jax.jit(ask)(jnp.zeros((8, 4)))


ONE = {"w": jnp.zeros((6, 4))}
WRONG = [
    (ONE, P("c"), "names 'c', and the mesh has the axes 'a', 'b'"),
    (ONE, P(None, None, "a"), r"leaf 'w' of shape \(6, 4\) has 3 entries for 2 axes"),
    (ONE, P("b", "b"), "uses mesh axis 'b' twice"),
    (ONE, P("a"), "divides axis 0, of length 6, over 4 devices"),
    (ONE, P(P.UNCONSTRAINED), "names UNCONSTRAINED"),
    (PARAMS, {"block": P()}, "nothing for leaf 'block_2/0' of the parameters; it has 'block'"),
    (PARAMS, {**SPECS, "head": P("a")}, "has leaf 'head', which the parameters lack; they have 'block/bias'"),
    (ONE, None, "leaf 'w' does not say where it lies. Give `mesh` and `param_specs`"),
]


@pytest.mark.parametrize(("params", "specs", "message"), WRONG)
def test_what_does_not_fit_is_refused_by_leaf(params, specs, message):
    with pytest.raises(ValueError, match=f"^f: .*{message}"):
        resolve_specs("f", params, mesh(), specs)


def test_other_things_than_partitions_are_refused():
    with pytest.raises(TypeError, match="for leaf 'w', for example .*; got 'a'"):
        resolve_specs("f", ONE, mesh(), lambda path, leaf: "a")
    with pytest.raises(TypeError, match="for leaf 'w', for example .*; got 'b'"):
        resolve_specs("f", ONE, mesh(), {"w": "b"})


def test_meshes():
    with pytest.raises(ValueError, match="needs a mesh .* or a tree of NamedSharding, which brings its own"):
        resolve_specs("f", ONE, None, P("a"))
    assert resolve_specs("f", ONE, None, P()) == (None, [P()])  # says nothing of a mesh
    with pytest.raises(ValueError, match="leaf 'w' lies on a mesh of a=2 x b=2, and `mesh` is a mesh of a=4 x b=2"):
        resolve_specs("f", ONE, mesh(), NamedSharding(mesh((2, 2)), P()))
