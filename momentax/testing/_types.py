"""Checks of dtypes: updates follow the parameters, states keep their types, nothing leaks or promotes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from momentax.testing._compare import (
    MIN_COSINE_IN_HALF,
    assert_finite,
    assert_same_structure,
    assert_same_types,
    host,
    leaves_with_names,
    mirrors,
)
from momentax.testing._subject import EVERYTHING, Subject, gradients, parameters
from momentax.testing._when import when

HALVES = (jnp.bfloat16, jnp.float16)


def _mixed(tree):
    """The attention and the square kernel in bfloat16, the rest as it is."""
    some = {name: tree[name] for name in ("attention", "square")}
    return {**tree, **jax.tree.map(lambda x: x.astype(jnp.bfloat16), some)}


def _abstract_step(subject, params, transform=None):
    """Types of the updates, of the state before the step and after it; nothing is computed."""
    transform = transform or subject.transform
    state = jax.eval_shape(transform.init, params)
    update = functools.partial(subject.update, transform=transform)
    updates, new_state = jax.eval_shape(update, state, params, params)
    return updates, state, new_state


def _assert_dtypes_follow(subject, params):
    updates, state, new_state = _abstract_step(subject, params)
    for (name, update), (_, param) in zip(leaves_with_names(updates), leaves_with_names(params), strict=True):
        assert update.dtype == param.dtype, (
            f"the update of '{name}' is {update.dtype} for a {param.dtype} parameter: cast it back."
        )
    assert_same_types(new_state, state, "a step changes the types of the state")


def check_updates_have_the_dtype_of_the_parameters(subject: Subject):
    """For float32, bfloat16, float16 and mixed leaves; and a step keeps the types of the state."""
    for dtype in (jnp.float32, *HALVES):
        _assert_dtypes_follow(subject, parameters(dtype, names=EVERYTHING))
    _assert_dtypes_follow(subject, _mixed(parameters(names=EVERYTHING)))


def check_float64_stays_float64(subject: Subject):
    """With x64 on, float64 parameters get float64 updates, and a step keeps the types of the state."""
    with jax.enable_x64(True):
        _assert_dtypes_follow(subject, parameters(jnp.float64, names=EVERYTHING))


def check_float64_does_not_leak(subject: Subject):
    """With x64 on, float32 parameters get no 64-bit updates and no 64-bit mirrors in the state."""
    with jax.enable_x64(True):
        params = parameters(jnp.float32, names=EVERYTHING)
        _assert_dtypes_follow(subject, params)
        updates, state, _ = _abstract_step(subject, params)
        wide = [name for name, leaf, _ in mirrors((updates, state), params) if leaf.dtype.itemsize == 8]
        assert not wide, f"64-bit leaves beside float32 parameters: {', '.join(wide)}"


def check_init_works_on_shapes(subject: Subject):
    """`jax.eval_shape(init, params)` gives the types that `init` gives."""
    params = parameters(names=EVERYTHING)
    abstract, concrete = jax.eval_shape(subject.transform.init, params), subject.transform.init(params)
    assert_same_structure(abstract, concrete, "state from shapes")
    assert_same_types(abstract, concrete, "state from shapes")


def check_promotes_explicitly(subject: Subject):
    """Strict promotion of dtypes and ranks raises nothing, in float32, in bfloat16 and mixed."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for params in (
            parameters(names=EVERYTHING),
            parameters(jnp.bfloat16, names=EVERYTHING),
            _mixed(parameters(names=EVERYTHING)),
        ):
            _abstract_step(subject, params)


@when(lambda traits: bool(traits.scheduled))
def check_schedules_promote_explicitly(subject: Subject):
    """The same with schedules, which return float32 arrays, in place of the numbers."""
    tenth = lambda count: jnp.float32(0.1) + 0 * count.astype(jnp.float32)  # noqa: E731
    schedules = dict.fromkeys(subject.traits.scheduled, tenth)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for params in (parameters(names=EVERYTHING), _mixed(parameters(names=EVERYTHING))):
            _abstract_step(subject, params, subject.build(**schedules))


def check_half_precision_follows_float32(subject: Subject):
    """In bfloat16 and float16 the updates are finite and point where those in float32 point.

    The gradients are 30 times the usual: their squares fit into float16, the sums of their squares do not.
    """
    full = [jax.tree.map(lambda g: 30 * g, tree) for tree in gradients()]
    for dtype in HALVES:
        half = [jax.tree.map(lambda g, dtype=dtype: g.astype(dtype), tree) for tree in full]
        rounded = [jax.tree.map(lambda g: g.astype(jnp.float32), tree) for tree in half]
        start = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), parameters())
        widened = jax.tree.map(lambda p: p.astype(jnp.float32), start)
        low, high = subject.run(params=start, grads=half), subject.run(params=widened, grads=rounded)
        assert_finite([moment.updates for moment in low], f"updates in {jnp.dtype(dtype)}")
        for (name, a), (_, b) in zip(
            leaves_with_names(low[0].updates), leaves_with_names(high[0].updates), strict=True
        ):
            cosine = _cosine(host(a), host(b))
            assert cosine >= MIN_COSINE_IN_HALF, (
                f"the {a.dtype} update of '{name}' has cosine {cosine:.3f} with the float32 one, "
                f"below {MIN_COSINE_IN_HALF}: take norms and sums in float32."
            )


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.sum(x * y)) / norms if norms else float(np.linalg.norm(x - y) == 0)
