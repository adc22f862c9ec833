"""Clip each gradient entry by its own history.

    where g_t^2 > theta v_{t-1}:  g_t <- sign(g_t) sqrt(theta v_{t-1})        (1)
    v_t = b2 v_{t-1} + (1 - b2) g_t^2                                         (2)  with the clipped gradient
    (1) is active iff t >= A and (t mod K) >= A                               (3)  t counted from 1

g: gradient, any shape; v: average squared gradient, same shape, not debiased; theta: `threshold`, A: `clip_after`,
K: `reset_every`, the period of the resets around this wrapper: after each, v has to grow again before it can judge.
v is the `nu` of the inner transformation and costs nothing; with inner=None the wrapper keeps its own, (2), and emits
the clipped gradient. That v equals the one of an Adam behind it, so both forms give the same updates.

Once clipped, |g_t| <= sqrt(theta v_{t-1}), hence v_t <= [b2 + (1 - b2) theta] v_{t-1}: with the defaults one spike
raises v at most sixfold.

Contract: wrapper; with inner=None it acts on the incoming update.
Source: Huang et al., SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training, ICLR 2025, arXiv 2501.06842;
official code TianjinYellow/SPAM-Optimizer.
Departure: where v is zero nothing is clipped. The code (variant="official") clips such an entry to zero, so that one
without a gradient during the unclipped steps (a rare token's embedding) is frozen until the next reset, or for good.
Infinite entries are clipped too, where (1) is active and v is not zero. NaN passes and stays in v.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from momentax import checks, leaves
from momentax.typing import Count, ScalarOrSchedule, Transformation


class ClipSpikesState(NamedTuple):
    """State of `clip_spikes`.

    Attributes:
      count: steps taken, int32 scalar.
      nu: average squared gradient v, shaped like the parameters, starts at zero; None with an inner transformation.
      inner: state of the inner transformation, whose `nu` is v; None without one.
    """

    count: Count
    nu: optax.Updates | None
    inner: optax.OptState | None


def clip_spikes(
    inner: Transformation | None = None,
    threshold: ScalarOrSchedule = 5000.0,
    *,
    clip_after: int | None = 20,
    reset_every: int | None = None,
    b2: ScalarOrSchedule = 0.999,
    variant: str = "paper",
    nu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Shows `inner` gradients whose entries are bounded by their own running size.

    Args:
      inner: transformation that averages squared gradients, not debiased, in a field `nu` of its state: for example
        `momentax.scale_by_adam()`. None keeps an average here.
      threshold: theta, above zero: largest square in units of v; number or schedule. 5000 as in the paper, about 70
        times the running root mean square.
      clip_after: A, steps at the start and after each reset without clipping, or None. 20 as in the code. From
        `reset_every` on nothing is ever clipped.
      reset_every: K, the `every` of the `momentax.reset_momentum` around this; None where nothing is reset.
      b2: decay of v, in [0, 1); number or schedule; only with inner=None. 0.999 as in the paper.
      variant: "paper" leaves entries whose v is zero as they are; "official" sets them to zero.
      nu_dtype: dtype of v; None means the leaf's own, float32 for half precision; only with inner=None.

    Raises:
      ValueError: a coefficient out of range or an unknown variant.
      TypeError: `inner` is no transformation or has no `nu`, or a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.clip_spikes(threshold=4.0, clip_after=2, b2=0.5)
      >>> state = tx.init(jnp.zeros(2))
      >>> _, state = tx.update(jnp.array([2.0, 2.0]), state)
      >>> print(tx.update(jnp.array([-9.0, 1.0]), state)[0].round(3))  # the bound is sqrt(4 * 2)
      [-2.828  1.   ]
    """
    checks.check_positive("clip_spikes", threshold=threshold)
    checks.check_fraction("clip_spikes", b2=b2)
    checks.check_steps("clip_spikes", clip_after=clip_after, reset_every=reset_every)
    checks.check_choice("clip_spikes", "variant", variant, ("paper", "official"))
    start = clip_after or 0
    wrapped = None
    if inner is not None:
        checks.check_transformation("clip_spikes", "inner", inner)
        wrapped = optax.with_extra_args_support(inner)

    def init(params):
        if wrapped is None:
            nu = leaves.zeros_like("clip_spikes", params, nu_dtype)
            return ClipSpikesState(jnp.zeros([], jnp.int32), nu, None)
        leaves.check_leaves("clip_spikes", params)
        state = wrapped.init(params)
        if getattr(state, "nu", None) is None:
            raise TypeError(
                "clip_spikes: `inner` must keep the average squared gradient in a field `nu` of its state, as "
                f"momentax.scale_by_adam() does; its state is {type(state).__name__}. Wrap that transformation itself, "
                "and chain what comes behind it outside; or leave `inner` out: then clip_spikes keeps its own."
            )
        return ClipSpikesState(jnp.zeros([], jnp.int32), None, state)

    def update(updates, state, params=None, **extra_args):
        t = state.count + 1
        active = t >= start  # (3)
        if reset_every is not None:
            active = active & (t % reset_every >= start)
        bound, decay = (leaves.value_at(value, state.count) for value in (threshold, b2))

        def clip(g, v, theta, active):
            limit = jnp.sqrt(theta * v)
            spike = jnp.abs(g) > limit if variant == "official" else (jnp.abs(g) > limit) & (v > 0)
            return jnp.where(active & spike, jnp.sign(g) * limit, g)  # (1)

        def clip_and_average(g, v, theta, active, decay):
            g = clip(g, v, theta, active)
            return g, decay * v + (1 - decay) * g * g  # (2)

        count = leaves.next_count(state.count)
        if wrapped is None:
            updates, nu = leaves.lift(
                "clip_spikes", clip_and_average, updates, state=[state.nu], coefficients=[bound, active, decay]
            )
            return updates, ClipSpikesState(count, nu, None)
        updates = leaves.lift("clip_spikes", clip, updates, reads=[state.inner.nu], coefficients=[bound, active])
        updates, inner_state = wrapped.update(updates, state.inner, params, **extra_args)
        return updates, ClipSpikesState(count, None, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
