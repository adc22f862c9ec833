"""MuonBP: Muon at period 1, two learning rates, and a mesh that one device reproduces."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import momentax


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def normal(seed):
    rng = np.random.default_rng(seed)
    shapes = {"up": {"kernel": (8, 12), "bias": (12,)}, "down": {"kernel": (12, 8)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape)), shapes, is_leaf=lambda x: type(x) is tuple
    )


def run(tx, steps, place=lambda tree: tree):
    """The parameters before the first step and after each."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    path = [place(normal(0))]
    state = tx.init(path[0])
    for seed in range(1, steps + 1):
        params, state = step(path[-1], state, place(normal(seed)))
        path.append(params)
    return path


def assert_same(actual, expected, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), actual, expected)


def test_with_period_1_it_is_muon():
    muon = momentax.muon(1e-2, weight_decay=0.1, scale="moonlight", rest_learning_rate=1e-2)
    assert_same(run(momentax.muon_bp(1e-2, period=1, block_learning_rate=7.0, blocks=(2, 2)), 3), run(muon, 3), 0)


@pytest.mark.parametrize("scheduled", [False, True])
def test_each_kind_of_step_has_its_learning_rate(scheduled):
    """With a method that changes nothing: w <- (1 - eta_t lam) w - eta_t N. One rate may be zero."""
    rates, lam = (0.0, 0.1), 0.5
    whole, block = [lambda count, rate=rate: rate * 2.0**count for rate in rates] if scheduled else rates
    tx = momentax.muon_bp(
        whole,
        0.0,  # b1: N is the gradient
        lam,
        period=2,
        block_learning_rate=block,
        blocks=(2, 1),
        method=lambda stack: stack,
        scale="none",
        rest=optax.sgd(0.0),
    )
    path = run(tx, 4)
    for count, (before, after) in enumerate(zip(path, path[1:], strict=False)):
        rate = rates[count % 2] * (2.0**count if scheduled else 1)
        for layer in ("up", "down"):
            w, g = before[layer]["kernel"], normal(count + 1)[layer]["kernel"]
            np.testing.assert_allclose(after[layer]["kernel"], (1 - rate * lam) * w - rate * g, rtol=0, atol=1e-12)


def test_without_a_block_learning_rate_there_is_one():
    one, two = (momentax.muon_bp(1e-2, period=2, block_learning_rate=rate, blocks=(2, 2)) for rate in (None, 1e-2))
    assert_same(run(one, 3), run(two, 3))


def test_a_mesh_does_what_one_device_is_told():
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    specs = {
        "up": {"kernel": PartitionSpec("x", "y"), "bias": PartitionSpec("y")},
        "down": {"kernel": PartitionSpec("y", "x")},
    }
    lies = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    numbers = {"up/kernel": (2, 4), "down/kernel": (4, 2)}
    options = dict(period=2, block_learning_rate=7e-3)
    told = momentax.muon_bp(1e-2, **options, blocks=lambda path, leaf: numbers[path])
    with jax.set_mesh(mesh):
        on_mesh = momentax.muon_bp(1e-2, **options, mesh=mesh, param_specs=specs)
        actual = run(on_mesh, 3, lambda tree: jax.device_put(tree, lies))
    assert_same(actual, run(told, 3))
    muon = run(momentax.muon_bp(1e-2, **options), 3)  # unsharded, nothing is cut
    assert abs(actual[-1]["up"]["kernel"] - muon[-1]["up"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize("bad", [dict(block_learning_rate=-1.0), dict(period=0), dict(blocks=(0, 1))])
def test_bad_choices_are_refused_at_once(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        momentax.muon_bp(**bad)
