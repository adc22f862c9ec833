"""Slots in bfloat16: unbiased, exact where they can be, the same on every mesh, and averages that do not stall."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import momentax

LAST = momentax.heavy_ball(0.0)  # remembers the last gradient


def stored(x, steps=1, **options):
    """What is stored of x, in each of so many steps."""
    tx = momentax.round_state(LAST, **options)

    def step(state, _):
        return (new := tx.update(x, state)[1]), new.inner.mu

    return np.asarray(jax.lax.scan(step, tx.init(x), None, steps)[1].astype(jnp.float32))


def test_it_is_unbiased_between_neighbours():
    steps, size = 400, 64
    x = jnp.concatenate(
        [jax.random.normal(jax.random.key(0), (size,)), jnp.array([1e-30, -3e20, 1 - 2.0**-12, 2.0**-120])]
    )
    below = np.asarray((x.view(jnp.uint32) & np.uint32(0xFFFF0000)).view(jnp.float32))
    above = np.asarray(((x.view(jnp.uint32) >> 16) + 1).astype(jnp.uint16).view(jnp.bfloat16).astype(jnp.float32))
    found = stored(x, steps)
    assert np.all((found == below) | (found == above))
    share = (np.float64(x) - below) / (np.float64(above) - below)
    deviation = np.sqrt(share * (1 - share) / steps)
    off = np.abs((found == above).mean(axis=0) - share)
    assert np.all(off <= 5 * deviation + 1e-12)
    assert np.sum(off > deviation) > size / 10  # independent draws are off by more in a third of the entries


def test_entries_slots_steps_and_keys_have_noise_of_their_own():
    x = jnp.full((1000,), 1 + 2.0**-8)  # half way
    two_steps, other_key = stored(x, 2), stored(x, key=jax.random.key(1))[0]
    for a, b in (two_steps, (two_steps[0], other_key), (two_steps[0, :-1], two_steps[0, 1:])):
        agreement = np.mean(a == b)
        assert abs(agreement - 0.5) < 5 * 0.5 / np.sqrt(len(a))
    state = momentax.round_state(optax.adam(1.0, b1=0.0, b2=0.0)).init({"w": x})
    both = momentax.round_state(optax.adam(1.0, b1=0.0, b2=0.0)).update({"w": x}, state)[1].inner[0]
    assert 0.4 < np.mean((both.mu["w"] > 1) == (both.nu["w"] > 1.008)) < 0.6


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_what_bfloat16_holds_stays(rounding):
    exact = jnp.array([0.0, -0.0, 1.0, -1.5, 3.0e38, 2.0**-120, jnp.inf, -jnp.inf, jnp.nan], jnp.bfloat16)
    found = stored(exact.astype(jnp.float32), rounding=rounding)[0]
    np.testing.assert_array_equal(found, np.asarray(exact.astype(jnp.float32)))


def test_adam_forgets_a_large_gradient_where_rounding_to_the_nearest_stalls():
    sizes = jnp.concatenate([jnp.ones(100), jnp.full(2000, 0.1)])

    def second_moment(wrap):
        tx = wrap(momentax.scale_by_adam(b2=0.999))
        state = tx.init({"w": jnp.zeros((16, 16))})
        state = jax.lax.scan(lambda s, g: (tx.update({"w": jnp.full((16, 16), g)}, s)[1], None), state, sizes)[0]
        return np.asarray(getattr(state, "inner", state).nu["w"].astype(jnp.float32))

    full = second_moment(lambda inner: inner)
    nearest = second_moment(functools.partial(momentax.round_state, rounding="nearest"))
    stochastic = second_moment(momentax.round_state)
    assert np.all(nearest > 3 * full)
    assert abs(stochastic.mean() / full.mean() - 1) < 0.03
    assert stochastic.std() / full.mean() < 0.2


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_same_bits_on_every_mesh_without_communication(kind):
    tx = momentax.round_state(momentax.scale_by_adam())
    params = {"w": jax.random.normal(jax.random.key(0), (16, 8)), "b": jnp.ones(8)}
    expected = tx.update(params, tx.init(params))[1].inner
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    for specs in ({"w": jax.P("x", "y"), "b": jax.P("y")}, {"w": jax.P(None, ("x", "y")), "b": jax.P()}):
        lies = jax.tree.map(
            lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
        )
        there = jax.device_put(params, lies)
        with jax.set_mesh(mesh):
            where = momentax.sharding.state_shardings(tx, there)
            state = jax.jit(tx.init, out_shardings=where)(there)
            compiled = jax.jit(tx.update, out_shardings=(lies, where)).lower(there, state).compile()
        assert not any(f" {name}" in compiled.as_text() for name in ("all-", "collective-", "reduce-scatter"))
        found = compiled(there, state)[1].inner
        for slot in ("mu", "nu"):
            for name in params:
                np.testing.assert_array_equal(getattr(found, slot)[name], getattr(expected, slot)[name])


def test_only_slots_are_rounded():
    params = {"kernel": jnp.ones((16, 8)), "bias": jnp.ones(8), "scale": jnp.ones(1)}
    state = momentax.round_state(momentax.normuon()).init(params)
    kinds = {
        jax.tree_util.keystr(path, simple=True, separator="/").split("inner_state/")[-1]: str(x.dtype)
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    }
    assert kinds["0/mu/kernel"] == kinds["0/nu/bias"] == "bfloat16"
    assert kinds["0/mu_weight"] == kinds["2/nu"] == kinds["0/nu/scale"] == "float32"
    state = momentax.round_state(momentax.scale_by_adam(), slots=("nu",)).init(params)
    assert (state.inner.mu["kernel"].dtype, state.inner.nu["kernel"].dtype) == (jnp.float32, jnp.bfloat16)
    tx = momentax.round_state(
        momentax.sparse_momentum(momentax.scale_by_adam(), density=0.5, density_mask=momentax.routing.only_matrices)
    )
    state = tx.update(params, tx.init(params))[1].inner
    assert state.inner.mu["kernel"].dtype == jnp.bfloat16 and state.indices["kernel"].dtype == jnp.int32
    with pytest.raises(ValueError, match="no slot of the state is called 'velocity'; there are \\['mu', 'nu'\\]"):
        momentax.round_state(momentax.scale_by_adam(), slots=("velocity",)).init(params)


def test_it_serves_bfloat16_parameters_under_master_weights():
    tx = momentax.keep_master_weights(momentax.round_state(momentax.adamp(1e-2)))
    params = {"kernel": jnp.ones((8, 8), jnp.bfloat16)}
    state = tx.init(params)
    assert state.master["kernel"].dtype == jnp.float32
    step = jax.jit(tx.update)
    for _ in range(3):
        updates, state = step(params, state, params)
        params = optax.apply_updates(params, updates)
    assert state.inner.inner[0].inner.nu["kernel"].dtype == jnp.bfloat16
    assert float(jnp.max(params["kernel"])) < 1
