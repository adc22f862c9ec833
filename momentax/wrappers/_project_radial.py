"""Remove the part of a direction that only changes a weight's length, where the gradient shows that length is free.

For each leaf and the first view that passes (rows W_i of the weight, G_i of the raw gradient, U_i of the direction):

    cos_i = |<G_i, W_i>| / (max(|G_i|, eps) max(|W_i|, eps))                  (1)
    the view passes iff max_i cos_i < delta / sqrt(row size)                  (2)
    U_i <- U_i - h_i <h_i, U_i>,  h_i = W_i / (|W_i| + eps),  r = wd_ratio    (3)  if a view passed
    U_i <- U_i,  r = 1                                                        (4)  otherwise
    u' = u + lam r w                                                          (5)  decay that knows the decision

Views: "channel", one row for each output channel; "layer", one row for the whole leaf. Stacked leaves (layers,
experts) are tested and projected one matrix at a time. delta=None drops the test: the first view is always projected.
W: parameter, any shape; u: direction, same shape; lam: `weight_decay`, per unit of learning rate. Vectors are never
projected and have r = 1.

Contract: wrapper; with inner=None it acts on the incoming update, which is then both G and U.
Source: Heo et al., AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights, ICLR 2021,
arXiv 2006.08217; official code clovaai/AdamP.
Departure: "channel" means the output axes that `routing` states, where the code takes axis 0 of torch's (out, in).
A zero gradient or weight has cosine 0 and passes: there is nothing to project, but decay drops to lam wd_ratio.
A leaf with a non-finite gradient fails the test and passes through.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.routing import Routing, Rule, resolve
from momentax.transforms import HeavyBallState
from momentax.typing import Count, Mask, ScalarOrSchedule, Transformation


class ProjectRadialState(NamedTuple):
    """State of `project_radial`.

    Attributes:
      count: steps taken, int32 scalar.
      inner: state of the inner transformation.
    """

    count: Count
    inner: optax.OptState


def project_radial(
    inner: Transformation | None = None,
    *,
    delta: ScalarOrSchedule | None = 0.1,
    wd_ratio: ScalarOrSchedule = 0.1,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    eps: ScalarOrSchedule = 1e-8,
    views: tuple[str, ...] = ("channel", "layer"),
    project_buffer: bool = False,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Projects the direction of `inner` off the weights, gated by the cosine of the raw gradient.

    Args:
      inner: transformation that gives the direction, for example `momentax.scale_by_adam()`; None takes the
        incoming update.
      delta: threshold of the test, not negative; number or schedule. 0.1 as in the paper. None always projects.
      wd_ratio: factor of the decay where a projection was made; number or schedule. 0.1 as in the paper.
      weight_decay: lam in (5), per unit of learning rate; number or schedule; None is off.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters; None all.
      eps: floor of the norms, in units of the gradient and of the weight; number or schedule. 1e-8 as in the code.
      views: which views are tried, in order: "channel", "layer" or both.
      project_buffer: also store the projected direction as the buffer of `inner`, as SGDP's code does; `inner` must
        be `momentax.heavy_ball(...)` without nesterov, whose direction is its buffer.
      routing: states output and batch axes; None for the conventions of Flax.

    Raises:
      ValueError: a bad choice, missing `params`, a leaf whose output axes cannot be told, or gradients that do not
        match.
      TypeError: `inner` is no transformation, project_buffer=True and it is no heavy ball, or a leaf is
        not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.project_radial(delta=None, views=("layer",))
      >>> w = jnp.array([[1.0, 0.0], [0.0, 0.0]])
      >>> u, _ = tx.update(jnp.array([[5.0, 2.0], [0.0, 3.0]]), tx.init(w), w)
      >>> print(u)
      [[0. 2.]
       [0. 3.]]
    """
    for view in views:
        checks.check_choice("project_radial", "views", view, ("channel", "layer"))
    if not views:
        raise ValueError("project_radial: `views` must name 'channel', 'layer' or both; got none.")
    checks.check_non_negative("project_radial", delta=delta, wd_ratio=wd_ratio, weight_decay=weight_decay, eps=eps)
    inner = optax.identity() if inner is None else inner
    checks.check_transformation("project_radial", "inner", inner)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        leaves.check_leaves("project_radial", params)
        resolve("project_radial", params, routing)
        state = inner.init(params)
        if project_buffer and not isinstance(state, HeavyBallState):
            raise TypeError(
                "project_radial: project_buffer=True stores the projected direction as the buffer of heavy ball; pass "
                f"inner=momentax.heavy_ball(...) itself, without nesterov; its state is {type(state).__name__}."
            )
        return ProjectRadialState(jnp.zeros([], jnp.int32), state)

    def update(updates, state, params=None, **extra_args):
        params = leaves.require_params("project_radial", params)
        rules = resolve("project_radial", params, routing)
        decays = weight_decay is not None
        masks = leaves.mask_leaves("project_radial", weight_decay_mask, params) if decays else [False] * len(rules)
        coefficients = [leaves.value_at(c, state.count) for c in (delta, eps, wd_ratio, weight_decay)]
        directions, inner_state = inner.update(updates, state.inner, params, **extra_args)

        def leaf(u, g, w, delta, eps, ratio, decay, rule, decays):
            coefficient, passed = _radial(u, g, w, delta, eps, rule, views)
            kept = decay * jnp.where(passed, ratio, 1.0) if decays else 0.0
            return u + (kept - coefficient) * w  # (3), (5) in one: no projected tree goes through memory

        def leaf_and_buffer(u, b, g, w, delta, eps, ratio, decay, rule, decays):
            coefficient, _ = _radial(u, g, w, delta, eps, rule, views)
            return leaf(u, g, w, delta, eps, ratio, decay, rule, decays), u - coefficient * w  # (3)

        reads: list[Any] = [updates, params]
        per_leaf: list[list[Any]] = [rules, masks]
        if project_buffer:
            new_updates, mu = leaves.lift(
                "project_radial",
                leaf_and_buffer,
                directions,
                state=[inner_state.mu],
                reads=reads,
                coefficients=coefficients,
                per_leaf=per_leaf,
            )
            inner_state = inner_state._replace(mu=mu)
        else:
            new_updates = leaves.lift(
                "project_radial", leaf, directions, reads=reads, coefficients=coefficients, per_leaf=per_leaf
            )
        return new_updates, ProjectRadialState(leaves.next_count(state.count), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _radial(u, g, w, delta, eps, rule: Rule, views: tuple[str, ...]) -> tuple[Any, Any]:
    """The coefficient of w that (3) takes off u, and whether a view passed: one of each for a matrix or its rows."""
    coefficient: Any = 0.0
    passed: Any = False
    if rule.kind == "vector" or not w.size:
        return coefficient, passed  # (4)
    channels, stack = rule.channel_axes, rule.batch_axes
    rows = [scalars.sum_over(x, (*stack, *channels)) for x in (g * w, g * g, w * w, u * w)]
    row_size = math.prod(n for axis, n in enumerate(w.shape) if axis not in (*stack, *channels))
    for view in reversed(views):  # the first view that passes wins, so it is applied last
        sums, size = rows, row_size
        if view == "layer":  # the layer's sums are those of its rows, added up
            sums = [jnp.sum(x, axis=channels, keepdims=True) for x in rows]
            size = row_size * math.prod(w.shape[axis] for axis in channels)
        gw, gg, ww, uw = sums
        cosine = jnp.abs(gw) / (jnp.maximum(jnp.sqrt(gg), eps) * jnp.maximum(jnp.sqrt(ww), eps))  # (1)
        largest = jnp.max(cosine, axis=channels, keepdims=True)
        test = jnp.ones_like(largest, bool) if delta is None else largest < delta / math.sqrt(size)  # (2)
        coefficient = jnp.where(test, uw / (jnp.sqrt(ww) + eps) ** 2, coefficient)  # (3)
        passed = test | passed
    return coefficient, passed
