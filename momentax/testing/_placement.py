"""Checks on eight devices: wherever parameters and state lie, the numbers are the same."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from momentax.testing._compare import assert_close, leaves_with_names, mirrors
from momentax.testing._subject import EVERYTHING, LOSSES, Subject, gradients, parameters

DEVICES = 8
MESHES = {"one axis": ((8,), ("data",)), "two axes": ((2, 4), ("data", "model"))}


def _require_devices():
    found = jax.device_count()
    assert found >= DEVICES, (
        f"placement needs {DEVICES} devices and finds {found}: on a CPU call "
        f"jax.config.update('jax_num_cpu_devices', {DEVICES}) before anything else uses JAX."
    )


def _mesh(name: str, kind: AxisType):
    _require_devices()
    shape, axes = MESHES[name]
    return jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes), devices=jax.devices()[:DEVICES])


def _shardings(mesh, params, turn: int):
    """For each leaf a sharding over its long axes, which change places with every turn."""

    def sharding(leaf):
        spec: list[str | None] = [None] * leaf.ndim
        long = [axis for axis, length in enumerate(leaf.shape) if length % DEVICES == 0]
        long = long[turn % max(len(long), 1) :] + long[: turn % max(len(long), 1)]
        for axis, name in zip(long, mesh.axis_names, strict=False):
            spec[axis] = name
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, params)


def _assert_state_follows(state, params, what):
    """Leaves of the state that mirror a parameter lie where the parameter lies."""
    for name, leaf, param in mirrors(state, params):
        assert leaf.sharding.is_equivalent_to(param.sharding, leaf.ndim), (
            f"{what}: '{name}' lies on {leaf.sharding}, its parameter on {param.sharding}; "
            "make it with jnp.zeros_like(param)."
        )


def _assert_sharded_equals_replicated(subject, mesh_name, kind, turn):
    """Compares the second step of a run, which starts from a state that is not zero."""
    mesh = _mesh(mesh_name, kind)
    where = f"on an {kind.name} mesh with {mesh_name}"
    before, expected = subject.whole_reference[:2]
    with jax.set_mesh(mesh):
        shardings = _shardings(mesh, before.params, turn)
        params = jax.device_put(before.params, shardings)
        grads = jax.device_put(gradients(names=EVERYTHING)[1], shardings)
        fresh = subject.transform.init(params)
        _assert_state_follows(fresh, params, f"state of init {where}")
        state = jax.device_put(before.state, jax.tree.map(lambda leaf: leaf.sharding, fresh))
        moment = jax.jit(subject.advance())(params, state, grads, LOSSES[1])
        if kind == AxisType.Explicit:
            _assert_state_follows(moment.state, params, f"state after a step {where}")
            _assert_same_avals(moment.state, fresh, f"a step {where} changes the types of the state")
            _assert_same_avals(moment.updates, params, f"updates {where} differ from parameters")
            compiled = jax.eval_shape(subject.transform.init, params)
            _assert_same_avals(compiled, fresh, f"a compiled init {where} gives another state")
    assert_close(moment, expected, f"step {where}, turn {turn}")


def _assert_same_avals(actual, expected, what):
    def kind(leaf):
        aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
        spec = aval.sharding.spec if aval.sharding is not None else PartitionSpec()
        return aval.shape, str(aval.dtype), tuple(spec) + (None,) * (len(aval.shape) - len(spec))

    for (name, a), (_, b) in zip(leaves_with_names(actual), leaves_with_names(expected), strict=True):
        assert kind(a) == kind(b), f"{what}: '{name}' from {kind(b)} to {kind(a)}"


def check_sharded_on_an_auto_mesh(subject: Subject):
    """Sharded over one mesh axis the compiler places, each axis of the leaves in turn, it does the same."""
    for turn in (0, 1):
        _assert_sharded_equals_replicated(subject, "one axis", AxisType.Auto, turn)


def check_sharded_on_an_auto_mesh_of_two_axes(subject: Subject):
    """The same over two mesh axes, leaves sharded on two of theirs at once."""
    _assert_sharded_equals_replicated(subject, "two axes", AxisType.Auto, turn=0)


def check_sharded_on_an_explicit_mesh(subject: Subject):
    """Sharded over one explicit mesh axis, each axis of the leaves in turn, it does the same."""
    for turn in (0, 1):
        _assert_sharded_equals_replicated(subject, "one axis", AxisType.Explicit, turn)


def check_sharded_on_an_explicit_mesh_of_two_axes(subject: Subject):
    """The same over two explicit mesh axes, leaves sharded on two of theirs at once."""
    _assert_sharded_equals_replicated(subject, "two axes", AxisType.Explicit, turn=1)


def _shares(tree, parts):
    """`parts` gradients, stacked, whose mean is `tree`."""
    return jax.tree.map(lambda g: jnp.stack([g * (2.0 * part / (parts - 1)) for part in range(parts)]), tree)


def check_data_parallel_in_shard_map(subject: Subject):
    """Inside `jax.shard_map`, with gradients averaged over devices, it does as on the mean gradient."""
    mesh = _mesh("one axis", AxisType.Auto)
    replicated, split = PartitionSpec(), PartitionSpec("data")

    def step(params, state, shares):
        mean = jax.tree.map(lambda g: jax.lax.pmean(g[0], "data"), shares)
        return subject.advance()(params, state, mean, LOSSES[0])

    mapped = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(replicated, replicated, split), out_specs=replicated))
    params = parameters()
    moment = mapped(params, subject.transform.init(params), _shares(gradients()[0], DEVICES))
    assert_close(moment, subject.reference[0], "step inside shard_map")


def check_data_parallel_in_pmap(subject: Subject):
    """Inside `jax.pmap`, with gradients averaged over devices, it does as on the mean gradient."""
    _require_devices()

    def step(params, state, share):
        mean = jax.tree.map(lambda g: jax.lax.pmean(g, "data"), share)
        return subject.advance()(params, state, mean, LOSSES[0])

    params = parameters()
    mapped = jax.pmap(step, axis_name="data", in_axes=(None, None, 0), devices=jax.devices()[:2])
    moments = mapped(params, subject.transform.init(params), _shares(gradients()[0], 2))
    assert_close(jax.tree.map(lambda leaf: leaf[1], moments), subject.reference[0], "step inside pmap")
