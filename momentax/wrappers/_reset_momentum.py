"""Restart whatever a transformation remembers, every so many steps, and warm up again.

    t mod K = 0:  s <- s_0, before step t (after it with when="after")                             (1)
    u_t = f_t inner(g_t),  f_t = 1 - 0.99 [1 + cos(pi j / (N + 1))] / 2 for t >= K, j < N, else 1    (2)

s: floating leaves of the inner state; s_0: what `inner.init` gives them; t: steps, counted from 1; j = t mod K: steps
since the reset; K: `every`; N: `warmup`. The factor is 0.01 at a reset; none applies before the first one.

What counts stays: integers, keys, and the hyperparameters of `optax.inject_hyperparams`. So schedules go on, and an
Adam that debiases by its count (Optax's) still does so as at step t, which makes the first steps after a reset several
times too long: the reason for (2). The Adam here debiases by floating weights, which restart with its moments. Master
weights return to the parameters: wrap `momentax.keep_master_weights` around the resets and not the other way round.

Contract: wrapper.
Source: Huang et al., SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training, ICLR 2025, arXiv 2501.06842;
official code TianjinYellow/SPAM-Optimizer, where K = 0 fails (here None in `momentax.spam` switches resets off). The
code of Stable-SPAM (arXiv 2502.17055) resets after the step.
Non-finite numbers in the inner state go with the reset.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from momentax import checks, clocks, leaves
from momentax.typing import Count, Transformation


class ResetMomentumState(NamedTuple):
    """State of `reset_momentum`.

    Attributes:
      count: steps taken, int32 scalar.
      inner: state of the inner transformation.
    """

    count: Count
    inner: optax.OptState


def reset_momentum(
    inner: Transformation,
    every: int | Callable[[Any, Any, Any], Any] = 500,
    warmup: int | None = None,
    *,
    restart_counts: bool = False,
    keep: tuple[str, ...] = (),
    when: Literal["before", "after"] = "before",
) -> optax.GradientTransformationExtraArgs:
    """Returns the state of `inner` to its start every `every` steps.

    Args:
      inner: any transformation or optimizer; `optax.MultiSteps` belongs around the result, since it counts and adds up
        gradients of its own.
      every: K, steps between resets, 500 as in SPAM; or a predicate `f(count, updates, params) -> bool scalar`,
        jit-safe, asked before each step, when `count` others have been taken.
      warmup: N, steps of (2) after each reset, at most `every`, which must be a number then; None is off. SPAM takes
        150, well above 1 / (1 - b1).
      restart_counts: reset integers and keys too; schedules of `inner` then restart. Needed for a fresh start where
        `inner` tells its first step by a count, as `momentax.adapt_memory` and dampened heavy ball do.
      keep: names of state fields that are not reset, for example ("mu_weight", "nu_weight").
      when: "before" a step whose number is a multiple of `every`, or "after" it.

    Raises:
      ValueError: `every` or `warmup` is no number of steps, `every` is below `warmup`, or an unknown choice.
      TypeError: `inner` is no transformation.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.reset_momentum(momentax.heavy_ball(0.9), every=3)
      >>> state = tx.init(jnp.zeros(1))
      >>> for _ in range(4):
      ...     updates, state = tx.update(jnp.ones(1), state)
      ...     print(updates)
      [1.]
      [1.9]
      [1.]
      [1.9]
    """
    checks.check_transformation("reset_momentum", "inner", inner)
    if isinstance(keep, str):
        raise TypeError(f"reset_momentum: `keep` must be a tuple of field names; got the string {keep!r}.")
    if callable(every) and warmup is not None:
        raise ValueError("reset_momentum: `warmup` counts from a known period: give `every` as a number of steps.")
    checks.check_period("reset_momentum", "every", None if callable(every) else every, warmup)
    checks.check_choice("reset_momentum", "when", when, ("before", "after"))
    if every is None:
        raise ValueError("reset_momentum: `every` must be a number of steps; without resets leave the wrapper out.")
    inner = optax.with_extra_args_support(inner)

    def init(params):
        leaves.check_leaves("reset_momentum", params, real=False)
        return ResetMomentumState(jnp.zeros([], jnp.int32), inner.init(params))

    def update(updates, state, params=None, **extra_args):
        t = state.count + 1
        now = every(state.count, updates, params) if callable(every) else clocks.due(t, every)
        start = inner.init(jax.tree.map(jnp.zeros_like, updates) if params is None else params)

        def reset(path, old, fresh):
            names = {key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)}
            floats = jnp.issubdtype(old.dtype, jnp.inexact)
            injected = "hyperparams" in names or (floats and "hyperparams_states" in names)
            if injected or names.intersection(keep) or not (floats or restart_counts):
                return old
            return jnp.where(now, fresh.astype(old.dtype) if floats else fresh, old)  # (1)

        def reset_all(inner_state):
            flat, treedef = jax.tree_util.tree_flatten_with_path(inner_state)
            fresh = leaves.leaves_like("reset_momentum", inner_state, start)
            return jax.tree.unflatten(
                treedef, [reset(path, x, new) for (path, x), new in zip(flat, fresh, strict=True)]
            )

        old = reset_all(state.inner) if when == "before" else state.inner
        updates, new = inner.update(updates, old, params, **extra_args)
        new = reset_all(new) if when == "after" else new
        if warmup is not None and not callable(every):
            scale = lambda u, factor: factor * u  # noqa: E731
            updates = leaves.lift(
                "reset_momentum", scale, updates, coefficients=[_factor(t, every, warmup)], real=False
            )
        return updates, ResetMomentumState(leaves.next_count(state.count), new)

    return optax.GradientTransformationExtraArgs(init, update)


def _factor(t: Any, every: int, warmup: int) -> jax.Array:
    """f_t of (2)."""
    j = (t % every).astype(leaves.float_dtype())
    cosine = 1 - 0.99 * (1 + jnp.cos(np.pi * j / (warmup + 1))) / 2
    return jnp.where((t >= every) & (j < warmup), cosine, jnp.ones_like(cosine))  # (2)
