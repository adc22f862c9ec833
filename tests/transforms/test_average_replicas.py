"""The mean over devices, whoever calls it and whatever was reduced before."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import momentax
from momentax import telemetry

P = PartitionSpec


def mesh():
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def averaged(updates, axis_name):
    tx = momentax.average_replicas(axis_name)
    return tx.update(updates, tx.init(updates))[0]


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("checked", [True, False], ids=["checked types", "unchecked"])
@pytest.mark.parametrize(("axis_name", "axes"), [("x", (0,)), ("y", (1,)), (("x", "y"), (0, 1)), (("y", "y"), (1,))])
def test_mean_over_the_named_axes_of_shard_map(axis_name, axes, checked):
    g = normal(2, 4, 3)
    # checked types know that results are the same along these axes; otherwise every device shows its own
    out = P(*(None if axis in axes else "xy"[axis] for axis in (0, 1))) if checked else P("x", "y")
    step = jax.shard_map(
        lambda g: averaged(g, axis_name), mesh=mesh(), in_specs=P("x", "y"), out_specs=out, check_vma=checked
    )
    np.testing.assert_allclose(
        jnp.broadcast_to(jax.jit(step)(g), g.shape),
        jnp.broadcast_to(g.mean(axes, keepdims=True), g.shape),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("map_over", [jax.pmap, jax.vmap])
def test_mean_over_the_axis_of_pmap_and_vmap(map_over):
    g = {"kernel": normal(8, 3), "phase": 1j * normal(8, 2)}
    means = map_over(lambda g: averaged(g, "data"), axis_name="data")(g)
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, np.broadcast_to(g.mean(0), g.shape), rtol=1e-5), means, g)


def test_what_was_reduced_is_left_alone():
    """A leaf that varies over x is reduced there; one that varies nowhere costs nothing."""
    copies, half = normal(3), normal(2, 3)
    step = jax.jit(
        jax.shard_map(
            lambda *leaves: averaged(leaves, ("x", "y")), mesh=mesh(), in_specs=(P(), P("x")), out_specs=(P(), P())
        )
    )
    actual = step(copies, half)
    np.testing.assert_array_equal(actual[0], copies)
    np.testing.assert_allclose(actual[1], half.mean(0, keepdims=True), rtol=1e-6)
    (reduced,) = telemetry.count(step.lower(copies, half).compile()).collectives.values()
    assert (reduced.number, reduced.bytes) == (1, half.nbytes / 2), reduced


@pytest.mark.parametrize("kind", ["checked types", "unchecked", "pmap"])
def test_a_mean_of_losses_gives_the_step_of_the_whole_batch(kind):
    """jax.grad adds gradients of copies where types are checked, and nowhere else: the same program is right in all."""
    inner = momentax.muon(0.1, rest_learning_rate=0.1)
    tx = optax.chain(momentax.average_replicas("data"), momentax.on_mesh(inner, param_specs=lambda path, leaf: P()))
    params, batch = {"kernel": normal(3, 4), "scale": jnp.ones(4)}, normal(8, 2, 3)

    def loss(params, batch, average=lambda x: x):
        return average(jnp.mean(jnp.tanh(batch @ params["kernel"] * params["scale"][None]) ** 2))

    def step(params, batch):
        grads = jax.grad(loss)(params, batch, lambda x: jax.lax.pmean(x, "data"))
        return tx.update(grads, tx.init(params), params)[0]

    if kind == "pmap":
        updates = jax.pmap(step, axis_name="data", in_axes=(None, 0), out_axes=None)(params, batch)
    else:
        on = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        checked = kind == "checked types"
        step = jax.shard_map(step, mesh=on, in_specs=(P(), P("data")), out_specs=P(), check_vma=checked)
        updates = jax.jit(step)(params, batch.reshape(16, 3))
    expected, _ = inner.update(jax.grad(loss)(params, batch.reshape(16, 3)), inner.init(params), params)
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-4, atol=1e-5), updates, expected)


def test_half_precision_is_averaged_in_float32():
    g = jnp.asarray([256.0] + [1.0] * 7, jnp.bfloat16)  # one by one, bfloat16 adds nothing to 256
    means = jax.vmap(lambda g: averaged(g, "data"), axis_name="data")(g)
    assert means.dtype == jnp.bfloat16
    np.testing.assert_array_equal(means, jnp.full(8, 263 / 8, jnp.bfloat16))


def test_outside_of_a_map_it_says_what_to_do():
    tx = momentax.average_replicas(("x", "data"))
    with pytest.raises(NameError, match="average_replicas: no axis 'x' is around the update.*leave it out"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    step = jax.shard_map(lambda g: averaged(g, ("x", "data")), mesh=mesh(), in_specs=P("x"), out_specs=P("x"))
    with pytest.raises(NameError, match="no axis 'data'"):
        jax.jit(step)(jnp.ones(2))


@pytest.mark.parametrize("axis_name", [None, 0, ["data"], ("data", None)])
def test_what_is_no_name_is_refused(axis_name):
    with pytest.raises(TypeError, match="average_replicas: `axis_name` must be a string or a tuple of them"):
        momentax.average_replicas(axis_name)
