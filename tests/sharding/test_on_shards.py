"""Programs for whole arrays, run on shards inside jax.shard_map and jax.pmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import momentax
from momentax import telemetry
from momentax.sharding import Place

SIZES = {"x": 2, "y": 4}
P = PartitionSpec


def mesh():
    return jax.make_mesh(tuple(SIZES.values()), tuple(SIZES), axis_types=(AxisType.Auto,) * 2)


def identity_of(function):
    """A transformation whose update is a function of the updates: a way to run it by `on_mesh`."""
    return optax.stateless(lambda updates, params: function(updates))


def on_shards(function, x, spec, **options):
    tx = momentax.on_mesh(identity_of(function), param_specs=spec)
    step = jax.shard_map(lambda x: tx.update(x, tx.init(x))[0], mesh=mesh(), in_specs=spec, out_specs=spec, **options)
    return jax.jit(step)


PROGRAMS = {
    "entries": lambda x: jnp.where(x > 0, jnp.exp(-x), x**2) + 1.5,
    "sums": lambda x: (
        x / jnp.sqrt(jnp.sum(x * x)) + jnp.mean(x, axis=1, keepdims=True) - jnp.max(x, axis=(0, 2), keepdims=True)
    ),
    "products, logic": lambda x: jnp.where(jnp.all(jnp.isfinite(x)) & jnp.any(x > 2), x, -x) * jnp.min(x),
    "no rule": lambda x: x + jnp.sort(x, axis=1) + jnp.argmax(x, axis=2, keepdims=True) + jnp.cumsum(x, axis=0),
    "matrix products": lambda x: jnp.einsum("abc,abd->acd", x, x)[:, :1, :1] + jnp.matmul(x, x.mT)[:, :, :1] + x * 1,
    "merged and split": lambda x: x.reshape(2, 2, 4, 48).sum(2).reshape(4, 48).repeat(4, 0).reshape(x.shape),
    "minor axes split": lambda x: x.reshape(4, 8, 3, 8).transpose(0, 3, 2, 1).reshape(x.shape) * 2,
    "ones come and go": lambda x: jnp.squeeze(x[:, None] * 2, 1).reshape(4, 1, 8, 24)[:, 0] + x[0:1],
    "cut and joined": lambda x: jnp.concatenate([x[:, 3:], x[:, :3]], axis=1) + jnp.concatenate([x, x], 2)[..., ::2],
    "constants": lambda x: x + jnp.arange(24.0)[None, None] + jax.lax.broadcasted_iota(jnp.float32, x.shape, 1),
    "branches": lambda x: jax.lax.cond(jnp.sum(x) > 0, lambda x: x / jnp.sum(x), lambda x: jnp.zeros_like(x), x),
    "loops": lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y / jnp.sum(y * y), x),
    "calls": lambda x: jax.jit(lambda y: y - jnp.mean(y))(x) + jax.nn.relu(x),
}


@pytest.mark.parametrize("checked", [True, False], ids=["checked types", "unchecked"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_results_are_those_of_whole_arrays(program, checked):
    """Whatever axes are sharded, over one mesh axis or several; JAX's own types agree where they are asked."""
    function = PROGRAMS[program]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 24)), jnp.float32)
    for spec in (P("x", "y", None), P(None, ("x", "y"), None), P("y", None, "x")):
        actual = on_shards(function, x, spec, check_vma=checked)(x)
        np.testing.assert_allclose(actual, function(x), rtol=2e-5, atol=2e-5, err_msg=f"{spec}")


@pytest.mark.parametrize("program", ["entries", "sums", "products, logic", "branches", "calls", "ones come and go"])
def test_what_needs_no_whole_array_gathers_none(program):
    x = jax.ShapeDtypeStruct((4, 8, 24), jnp.float32)
    received = telemetry.count(on_shards(PROGRAMS[program], x, P("x", "y", None)).lower(x).compile()).collectives
    assert sum(found.bytes for found in received.values()) <= 4 * 4 * 8 * 24 / 4, received  # rows at most, not arrays


def test_pmap():
    """Shards of a flat vector, as in a hand-written ZeRO: sums go over the axis of the map."""
    tx = momentax.on_mesh(momentax.lion_k(0.1, convex=momentax.convex.l2()), param_specs=P("data"))
    whole = momentax.lion_k(0.1, convex=momentax.convex.l2())
    w, g = jnp.arange(16.0), jnp.linspace(-1, 2, 16)
    step = jax.pmap(lambda w, g: tx.update(g, tx.init(w), w)[0], axis_name="data")
    expected, _ = whole.update(g, whole.init(w), w)
    np.testing.assert_allclose(step(w.reshape(8, 2), g.reshape(8, 2)).reshape(-1), expected, rtol=1e-6)


def test_replicated_matrices_are_shared_out_in_pmap():
    tx = momentax.on_mesh(momentax.orthogonalize(), param_specs=lambda path, leaf: P())
    w = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32)}
    stack = {f"layer_{n}": jax.tree.map(lambda x, n=n: x + n, w) for n in range(8)}
    calls = []

    def method(x):
        calls.append(x.shape)
        return 2 * x

    tx = momentax.on_mesh(momentax.orthogonalize(method), param_specs=lambda path, leaf: P())
    step = jax.pmap(lambda _: tx.update(stack, tx.init(stack))[0], axis_name="data")
    updates = step(jnp.zeros(8))
    assert calls == [(1, 8, 3)]
    for name, leaf in stack.items():
        np.testing.assert_allclose(updates[name]["kernel"], np.broadcast_to(2 * leaf["kernel"], (8, 8, 3)))


def test_extra_arguments_like_the_parameters_lie_as_they_do():
    def update(updates, state, params=None, *, other, value):
        return jax.tree.map(lambda u, o: u * jnp.sum(o) + value, updates, other), state

    tx = momentax.on_mesh(
        optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update), param_specs={"w": P("y")}
    )
    step = jax.shard_map(
        lambda w, o, v: tx.update({"w": w}, tx.init({"w": w}), other={"w": o}, value=v)[0]["w"],
        mesh=mesh(),
        in_specs=(P("y"), P("y"), P()),
        out_specs=P("y"),
    )
    w = jnp.arange(8.0)
    np.testing.assert_allclose(step(w, w, jnp.float32(1.0)), w * 28 + 1)


def test_gradients_that_were_not_reduced_are_refused():
    """Copies of a leaf that differ: each device would take a step of its own."""
    tx = momentax.muon(0.1, param_specs={"kernel": P("y", None)})
    w = {"kernel": jnp.ones((8, 4))}

    def step(w, batch, reduced):
        g = jax.tree.map(lambda w: w * jnp.mean(batch), w)
        g = jax.lax.pmean(g, "x") if reduced else g
        return tx.update(g, tx.init(w), w)[0]

    def run(reduced):
        lies = {"kernel": P("y", None)}
        mapped = jax.shard_map(
            lambda w, batch: step(w, batch, reduced), mesh=mesh(), in_specs=(lies, P("x")), out_specs=lies
        )
        return mapped(w, jnp.arange(2.0))

    assert run(True)["kernel"].shape == (8, 4)
    differs = r"on_mesh: leaf 'kernel' of the gradients differs along the mesh axes \('x',\).*pmean"
    with pytest.raises(ValueError, match=differs):
        run(False)


def test_a_loss_that_was_not_reduced_is_refused():
    tx = momentax.on_mesh(optax.contrib.reduce_on_plateau(), param_specs=P("y"))
    step = jax.shard_map(
        lambda w, losses: tx.update(w, tx.init(w), value=losses.sum())[0],
        mesh=mesh(),
        in_specs=(P("y"), P("x")),
        out_specs=P("y"),
    )
    with pytest.raises(ValueError, match=r"on_mesh: the argument `value` differs along the mesh axes \('x',\).*pmean"):
        step(jnp.ones(8), jnp.arange(2.0))


def test_a_state_that_came_in_otherwise_than_stated_is_refused():
    tx = momentax.on_mesh(momentax.scale_by_adam(), param_specs=P("y"))
    step = jax.shard_map(lambda w, s: tx.update(w, s)[0], mesh=mesh(), in_specs=(P("y"), P()), out_specs=P("y"))
    with pytest.raises(
        ValueError, match=r"leaf 'mu' of the state has shape \(8,\).*shards of shape \(2,\).*state_shardings"
    ):
        step(jnp.ones(8), momentax.scale_by_adam().init(jnp.ones(8)))


def test_shards_of_which_nothing_is_said_are_told():
    tx = momentax.on_mesh(momentax.clip_global_norm(1.0))
    step = jax.shard_map(lambda g: tx.update(g, tx.init(g))[0], mesh=mesh(), in_specs=P("y"), out_specs=P("y"))
    with pytest.warns(UserWarning, match="nothing says that they are shards.*param_specs"):
        step(jnp.ones(8))


@pytest.mark.parametrize("checked", [True, False], ids=["checked types", "unchecked"])
def test_a_state_on_the_host_stays_there_in_branches(checked):
    """And on the shards: nothing travels."""
    tx = optax.apply_if_finite(momentax.offload_state(momentax.scale_by_adam()), 2)
    alone, tx = tx, momentax.on_mesh(tx, param_specs=P("y", "x"))
    g = jnp.asarray(np.random.default_rng(0).standard_normal((16, 64)), jnp.float32)
    step = jax.shard_map(
        lambda g: tx.update(g, tx.init(g))[0],
        mesh=mesh(),
        in_specs=P("y", "x"),
        out_specs=P("y", "x"),
        check_vma=checked,
    )
    compiled = jax.jit(step).lower(g).compile()
    np.testing.assert_allclose(compiled(g), alone.update(g, alone.init(g))[0], rtol=1e-6)
    assert telemetry.count(compiled).total.bytes <= 64


def test_empty_shards_in_branches():
    g = {"some": {"kernel": jnp.ones((8, 2))}, "none": {"kernel": jnp.zeros((0, 8))}}
    specs = {"some": {"kernel": P("y")}, "none": {"kernel": P(None, "y")}}
    tx = momentax.on_mesh(optax.apply_if_finite(momentax.orthogonalize(steps=1), 2), param_specs=specs)
    updates = in_shard_map(tx, g, specs)
    assert updates["none"]["kernel"].shape == (0, 8)


def test_partitions_half_inside_are_refused():
    tx = momentax.muon(0.1, mesh=mesh(), param_specs={"kernel": P("x", "y")})
    lies = {"kernel": P("x", None)}
    step = jax.shard_map(
        lambda w: tx.update(w, tx.init(w), w)[0], mesh=mesh(), in_specs=(lies,), out_specs=lies, axis_names={"x"}
    )
    with pytest.raises(ValueError, match="has taken \\['x'\\] alone"):
        jax.jit(step)({"kernel": jnp.ones((8, 4))})


def test_a_mesh_axis_that_is_not_taken_is_used_as_outside():
    """Data parallelism by hand over x; y is the compiler's, and matrices are dealt over it."""
    on = mesh()
    tx = momentax.on_mesh(momentax.orthogonalize(), on, {"kernel": P("y", None)})
    w = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)), jnp.float32)}
    step = jax.shard_map(
        lambda w: tx.update(jax.lax.pmean(w, "x"), tx.init(w))[0],
        mesh=on,
        in_specs=({"kernel": P()},),
        out_specs={"kernel": P()},
        axis_names={"x"},
    )
    alone = momentax.orthogonalize()
    expected, _ = alone.update(w, alone.init(w))
    np.testing.assert_allclose(jax.jit(step)(w)["kernel"], expected["kernel"], rtol=1e-5, atol=1e-6)


def kernels(*shapes):
    rng = np.random.default_rng(0)
    return {f"w{n}": {"kernel": jnp.asarray(rng.standard_normal(s), jnp.float32)} for n, s in enumerate(shapes)}


def in_shard_map(tx, params, specs, on=None, **extra):
    """One step inside a shard_map that checks types, state made there, too."""
    step = jax.shard_map(
        lambda p: tx.update(p, tx.init(p), p, **extra)[0], mesh=on or mesh(), in_specs=(specs,), out_specs=specs
    )
    return jax.jit(step)(params)


def assert_same(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), actual, expected)


SHARDED = {"w0": {"kernel": P("y", None)}, "w1": {"kernel": P(None, "y")}}
WHOLE = {"w0": {"kernel": P()}, "w1": {"kernel": P()}}


@pytest.mark.parametrize("specs", [SHARDED, WHOLE], ids=["sharded", "whole"])
@pytest.mark.parametrize(
    "around",
    [
        lambda tx: tx,
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
        lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    ],
    ids=["alone", "apply_if_finite", "MultiSteps", "chain"],
)
def test_what_others_wrap_around_is_inside(around, specs):
    """Branches that deal matrices; a statement inside another one is taken once."""
    params = kernels((8, 4), (4, 8))
    alone = around(momentax.muon(0.1))
    expected, _ = alone.update(params, alone.init(params), params)
    inner = momentax.muon(0.1, mesh=mesh(), param_specs=specs)
    assert_same(in_shard_map(momentax.on_mesh(around(inner), param_specs=specs), params, specs), expected)


def test_injected_hyperparameters_and_other_things_than_arrays():
    params = kernels((8, 4), (4, 8))
    tx = optax.inject_hyperparams(momentax.muon, static_args=("steps",))(0.1)
    expected, _ = tx.update(params, tx.init(params), params)
    extra = dict(value=jnp.float32(1.0), flag=True, function=max, grad=params["w0"])  # keywords in no order
    placed = momentax.on_mesh(optax.with_extra_args_support(tx), param_specs=SHARDED)
    assert_same(in_shard_map(placed, params, SHARDED, **extra), expected)


@pytest.mark.parametrize(
    "tx",
    [
        momentax.fismo(update_every=2),
        momentax.muon_pp(tangent=True),
        momentax.namo(),
    ],
    ids=["fismo", "muon_pp tangent", "namo"],
)
def test_mesh_axes_of_one_device(tx):
    """They divide nothing, and types know them. In float64: bisections of (3) of Muon++ magnify rounding."""
    on = jax.make_mesh((1, 2, 4), ("t", "x", "y"), axis_types=(AxisType.Auto,) * 3)
    specs = {"w0": {"kernel": P("y", "t")}, "w1": {"kernel": P("t", "y")}, "w2": {"kernel": P(("x", "y"), None)}}
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), kernels((8, 4), (4, 8), (8, 4)))
        expected, _ = tx.update(params, tx.init(params), params)
        actual = in_shard_map(momentax.on_mesh(tx, param_specs=specs), params, specs, on)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), actual, expected)


def test_exchanges_one_behind_the_other():
    """Per-head kernels: a layout between two exchanges that the CPU compiler cannot do was once here."""
    params = {"w": {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((12, 8, 2, 8)), jnp.float32)}}
    specs = {"w": {"kernel": P("x", "y")}}
    routing = momentax.routing.matrix((1,), (2, 3), batch_axes=(0,))
    alone = momentax.fismo(routing=routing)
    expected, _ = alone.update(params, alone.init(params), params)
    placed = momentax.fismo(routing=routing, mesh=mesh(), param_specs=specs)
    actual, _ = jax.jit(lambda p: placed.update(p, placed.init(p), p))(params)
    assert_same(actual, expected)


def test_leaves_of_no_entries():
    params = kernels((8, 4), (0, 8), (3, 0, 4))
    specs = {"w0": {"kernel": P("y", None)}, "w1": {"kernel": P(None, "y")}, "w2": {"kernel": P(None, "x", None)}}
    routing = {"w2/kernel": momentax.routing.matrix((1,), (2,), (0,))}
    tx = momentax.on_mesh(momentax.orthogonalize(routing=routing), param_specs=specs)
    alone = momentax.orthogonalize(routing=routing)
    expected, _ = alone.update(params, alone.init(params))
    assert_same(in_shard_map(tx, params, specs), expected)


def test_shards_of_which_nobody_speaks_are_told_of():
    params = kernels((8, 4), (4, 8))
    with pytest.warns(UserWarning, match="nothing says that they are shards"):
        in_shard_map(momentax.muon(0.1), params, SHARDED)


def test_a_mesh_that_is_none():
    tx = optax.inject_hyperparams(momentax.muon, static_args=("steps",))(0.1, mesh=mesh(), param_specs=SHARDED)
    with pytest.raises(TypeError, match=r"static_args=\('mesh', 'param_specs'\)"):
        tx.init(kernels((8, 4), (4, 8)))


def test_places_know_their_devices():
    place = Place(mesh(), P(None, ("x", "y")))
    assert place.sizes == SIZES
    assert place.shards(3) == ((), ("x", "y"), ())
