"""Adaptive memory momentum: the momentum coefficient is chosen anew at every step.

Two planes model the loss around x: the gradient plane <g, z> and the memory plane a + <d, z>. With their maximum as
the model, a quadratic penalty for long steps and one for leaving the step of the old memory (lam), the step has a
closed form in a single coefficient beta:

    P    = 1                                                          identity metric            (1)
    P    = (1 - b1_max B) (sqrt(v / (1 - prod b2)) + eps)             diagonal metric, as in Adam (2)
    M    = 1 / (P (1 + lam P))                                                                   (3)
    s    = (eta_{t-1} / eta_t) <g, d / P + mu x>                      offset="first_order"       (4)
    s    = (f_{t-1} - f_t) / eta_t                                    offset="value"
    s    = 0                                                          offset="zero"
    beta = clip( [s - N] / D, 0, b1_max )                                                        (5)
           N = sum over leaves of (<d - g, g + lam P d>_M + mu <x, d - g>) / (1 + mu eta)
           D = sum over leaves of <d - g, d - g>_M / (1 + mu eta)
    d'   = [(1 - beta) g + (lam P + beta) d] / (1 + lam P)                                       (6)
    u    = d' / P + mu x,     x' = x - eta u                                                     (7)

g: gradient; d: memory `mu`, starts at zero; v: average squared gradient `nu` with decay b2; B: product of all earlier
betas; x: parameters; f: loss; eta: learning rate; lam: `proximity`; mu: `weight_decay`; <a, b>_M = sum of M a b.
On the first step d' = g (identity), or beta = b1_max (diagonal). beta = 0 where d = g; s = 0 where eta = 0.

Scope: one beta from sums over all leaves ("global", AM-MSGD) or one for each leaf ("leaf", AM-AdamW), and for each
matrix of a stacked leaf where `routing` states batch axes.

Contract: transform without `learning_rate` (it emits u, and takes eta_{t-1} / eta_t = 1); terminal with it (it emits
-eta u).
Source: Topollai & Choromanska, Adaptive Memory Momentum via a Model-Based Framework for Deep Learning Optimization,
AISTATS 2026, arXiv 2510.04988. There is no official code: (4) and (7) follow a third-party implementation, (5) is
the exact dual solution and reproduces its coefficient.
Departure: offset="value" is the same model with the loss itself, for deterministic problems; the paper's shipped
methods use "first_order". eps is inside the bias correction of (2), unlike in Adam.
A zero gradient flushes the memory in about one step; a spike meets beta = b1_max and enters with weight
(1 - b1_max) / (1 + lam). One non-finite gradient poisons d, v and B for good, unless skip_non_finite=True.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.routing import Routing
from momentax.transforms._two_plane_coefficient import coefficient, plane_sums
from momentax.typing import Count, Mask, ScalarOrSchedule


class AdaptMemoryState(NamedTuple):
    """State of `adapt_memory`.

    Attributes:
      count: steps taken, int32 scalar.
      mu: memory d, shaped like the parameters, starts at zero.
      nu: average squared gradient v, likewise; None with the identity metric.
      nu_weight: 1 - prod b2, scalar, starts at zero; None with the identity metric.
      beta_product: B, one vector with an entry for each coefficient, starts at one; None with the identity metric.
      learning_rate_tm1: eta of the previous step, scalar, starts at zero; None without `learning_rate`.
      value_tm1: loss of the previous step, scalar, starts at zero; None unless offset="value".
    """

    count: Count
    mu: optax.Updates
    nu: optax.Updates | None
    nu_weight: jax.Array | None
    beta_product: jax.Array | None
    learning_rate_tm1: jax.Array | None
    value_tm1: jax.Array | None


def adapt_memory(
    learning_rate: ScalarOrSchedule | None = None,
    *,
    b1_max: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    proximity: ScalarOrSchedule = 0.1,
    metric: str = "identity",
    scope: str = "global",
    offset: str = "first_order",
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    skip_non_finite: bool = False,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum whose coefficient solves the two-plane model at every step.

    Args:
      learning_rate: eta; number or schedule. With it the transform takes the step itself (it is then a terminal).
        Needed for offset="value", for weight decay, and for the exact ratio (4) under a schedule.
      b1_max: largest coefficient, in [0, 1], below 1 with the diagonal metric, which divides by 1 - b1_max B; number
        or schedule. 0.9 as quoted for AM-MSGD. The memory's weight is
        (beta + lam) / (1 + lam).
      b2: decay of the average squared gradient (diagonal metric), in [0, 1); number or schedule.
      eps: added to the root in (2), in units of the gradient; number or schedule.
      proximity: lam, not negative; number or schedule. 0.1 as quoted for both methods.
      metric: "identity" or "diagonal".
      scope: "global" (one coefficient) or "leaf".
      offset: "first_order", "value" (pass `value=loss` to `update`) or "zero" (the min-norm point, an ablation).
      weight_decay: mu, decoupled; number or schedule; None is off.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters; None all.
      mu_dtype: dtype of d; None means the leaf's own, float32 for bfloat16 and float16 leaves.
      nu_dtype: dtype of v; None likewise.
      skip_non_finite: leave the state as it is and emit zeros where any gradient, or the loss given as `value`, is not
        finite.
      routing: states batch axes of stacked leaves for scope="leaf"; None takes every leaf as one.

    Raises:
      ValueError: a bad choice, a missing `learning_rate`, `params` or `value`, or gradients that do not match.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax, optax
      >>> tx = optax.chain(momentax.adapt_memory(), optax.scale_by_learning_rate(0.1))
      >>> params = jnp.array([1.0, -2.0])
      >>> state = tx.init(params)
      >>> for _ in range(50):
      ...     updates, state = tx.update(params, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(jnp.abs(params).max() < 0.1)
      True
    """
    checks.check_choice("adapt_memory", "metric", metric, ("identity", "diagonal"))
    checks.check_choice("adapt_memory", "scope", scope, ("global", "leaf"))
    checks.check_choice("adapt_memory", "offset", offset, ("first_order", "value", "zero"))
    checks.check_interval("adapt_memory", b1_max=b1_max)
    checks.check_fraction("adapt_memory", b2=b2)
    if metric == "diagonal":
        checks.check_fraction("adapt_memory", b1_max=b1_max)
    checks.check_non_negative(
        "adapt_memory", learning_rate=learning_rate, eps=eps, proximity=proximity, weight_decay=weight_decay
    )
    if learning_rate is None and (weight_decay is not None or offset == "value"):
        raise ValueError(
            "adapt_memory: `weight_decay` and offset='value' enter the coefficient together with the learning rate; "
            "pass `learning_rate=` and drop optax.scale_by_learning_rate from the chain."
        )
    if offset == "value" and scope == "leaf":
        raise ValueError("adapt_memory: offset='value' compares losses of the whole model; use it with scope='global'.")
    diagonal = metric == "diagonal"
    decays = weight_decay is not None

    def init(params):
        shapes = (
            [()] if scope == "global" else scalars.shapes(params, scalars.batch_axes("adapt_memory", params, routing))
        )
        return AdaptMemoryState(
            count=jnp.zeros([], jnp.int32),
            mu=leaves.zeros_like("adapt_memory", params, mu_dtype),
            nu=leaves.zeros_like("adapt_memory", params, nu_dtype) if diagonal else None,
            nu_weight=jnp.zeros([]) if diagonal else None,
            beta_product=jnp.ones([scalars.vector_size(shapes)]) if diagonal else None,
            learning_rate_tm1=None if learning_rate is None else jnp.zeros([]),
            value_tm1=jnp.zeros([]) if offset == "value" else None,
        )

    def update(updates, state, params=None, *, value=None, **extra_args):
        del extra_args
        params = leaves.require_params("adapt_memory", params) if decays else None
        if offset == "value" and value is None:
            raise ValueError(
                "adapt_memory(offset='value') needs the loss: call `update(updates, state, params, value=loss)`."
            )
        if not jax.tree.leaves(updates):
            return updates, state
        at = functools.partial(leaves.value_at, count=state.count)
        eta = at(learning_rate)
        nu_weight = scalars.average(state.nu_weight, 1.0, at(b2)) if diagonal else None
        c = _Scalars(
            first=state.count == 0,
            b1_max=at(b1_max),
            b2=at(b2),
            eps=at(eps),
            lam=at(proximity),
            eta=eta,
            mu=at(weight_decay),
            step_size=1.0 if eta is None else -eta,
            nu_weight=None if nu_weight is None else scalars.nonzero(nu_weight),
        )
        leaves.leaves_like("adapt_memory", updates, state.mu)
        stacks = scalars.batch_axes("adapt_memory", updates, routing if scope == "leaf" else None)
        spread = (lambda one_each: one_each) if scope == "leaf" else (lambda one: one * len(stacks))
        masks = leaves.mask_leaves("adapt_memory", weight_decay_mask, params) if decays else [False] * len(stacks)
        shapes = scalars.shapes(updates, stacks) if scope == "leaf" else [()]
        products: list[Any] = (
            scalars.unpack("adapt_memory", state.beta_product, shapes) if diagonal else [None] * len(shapes)
        )

        trees = [state.mu, state.nu, params]
        sums = leaves.each("adapt_memory", _sums, updates, trees, [c], [spread(products), masks, stacks])
        if scope == "global":
            sums = [tuple(scalars.total(column) for column in zip(*sums, strict=True))]
        betas = []
        for pull, numerator, denominator in sums:
            height = _height(offset, pull, eta, state, value)  # (4)
            beta = coefficient(height, numerator, denominator, c.b1_max)  # (5)
            betas.append(jnp.where(c.first, c.b1_max, beta) if diagonal else beta)

        per_leaf = [spread(products), masks, spread(betas)]
        new_updates, mu, nu = leaves.lift(
            "adapt_memory",
            _step,
            updates,
            state=[state.mu, state.nu],
            reads=[params],
            coefficients=[c],
            per_leaf=per_leaf,
        )
        new_state = AdaptMemoryState(
            count=leaves.next_count(state.count),
            mu=mu,
            nu=nu,
            nu_weight=nu_weight,
            beta_product=scalars.pack([B * beta.astype(B.dtype) for B, beta in zip(products, betas, strict=True)])
            if diagonal
            else None,
            learning_rate_tm1=None if learning_rate is None else jnp.asarray(eta, leaves.float_dtype()),
            value_tm1=jnp.asarray(value, leaves.float_dtype()) if offset == "value" else None,
        )
        if skip_non_finite:
            bad = leaves.each("adapt_memory", lambda g: jnp.sum(~jnp.isfinite(g)), updates)
            finite = (scalars.total(bad) == 0) & jnp.isfinite(0.0 if value is None else value)
            new_updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), new_updates)
            new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
        return new_updates, new_state

    return optax.GradientTransformationExtraArgs(init, update)


class _Scalars(NamedTuple):
    """The coefficients of one step, named as in the equations."""

    first: Any
    b1_max: Any
    b2: Any
    eps: Any
    lam: Any
    eta: Any
    mu: Any
    step_size: Any
    nu_weight: Any


def _sums(g, d, v, x, c, B, decays, stack):
    """The share of one leaf in s, N and D, for each matrix of a stack."""
    P, _ = _metric(g, v, c, B)
    mu_x = c.mu * x if decays else 0.0
    pull = scalars.sum_over(g * (d / P + mu_x), stack)  # (4)
    return pull, *plane_sums(g, d, P, mu_x, c.lam, c.mu * c.eta if decays else 0.0, stack)


def _step(g, d, v, x, c, B, decays, beta):
    """The direction and the new state of one leaf."""
    P, v = _metric(g, v, c, B)
    d = ((1 - beta) * g + (c.lam * P + beta) * d) / (1 + c.lam * P)  # (6)
    d = jnp.where(c.first, g, d) if v is None else d
    return c.step_size * (d / P + (c.mu * x if decays else 0.0)), d, v  # (7)


def _metric(g, v, c, B):
    """P and the new v of one leaf."""
    if v is None:
        return 1.0, None  # (1)
    v = c.b2 * v + (1 - c.b2) * g * g
    return (1 - c.b1_max * B) * (jnp.sqrt(v / c.nu_weight) + c.eps), v  # (2)


def _height(offset, pull, eta, state, value):
    """s of (4), the height of the memory plane over the loss in units of the learning rate."""
    if offset == "zero":
        return 0.0
    if state.learning_rate_tm1 is None:
        return pull
    safe_eta = jnp.where(eta == 0, 1.0, eta)
    rise = state.value_tm1 - value if offset == "value" else state.learning_rate_tm1 * pull
    return jnp.where(eta == 0, 0.0, rise / safe_eta)
