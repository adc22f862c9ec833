"""Lion-K: step along the subgradient of a convex function at the momentum.

    c_t = b1 m_{t-1} + (1 - b1) g_t        (1)  what is shown to K
    u_t = dK(c_t)                          (2)  K = l1 is Lion: u = sign(c)
    m_t = b2 m_{t-1} + (1 - b2) g_t        (3)  what is remembered

g: gradient, any shape; m: `mu`, same shape, starts at zero; dK: a subgradient of the convex function K, of each leaf
alone, or of all leaves as one vector where K has scope "global".

With decoupled weight decay lam, w <- (1 - eta lam) w - eta u, the chain minimises f(w) + K*(lam w) / lam, K* the
conjugate of K: a norm K keeps its dual norm of w at most 1 / lam, l1 every |w_i| and the nuclear norm every singular
value. Without decay there is no constraint.

Contract: transform.
Source: Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023, arXiv 2302.06675 (Lion); Chen et al.,
Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts, ICLR 2024, arXiv 2310.05898 (Lion-K, in the
sign convention m -> -m).
No eps and no debiasing; dK(0) = 0. Non-finite gradients enter the momentum and stay; `optax.apply_if_finite` keeps
them out.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves
from momentax.convex import ConvexFunction, l1
from momentax.paths import named_leaves
from momentax.routing import Routing, Rule, resolve
from momentax.typing import Count, ScalarOrSchedule


class ScaleByLionKState(NamedTuple):
    """State of `scale_by_lion_k`.

    Attributes:
      count: steps taken, int32 scalar.
      mu: momentum m, shaped like the parameters, starts at zero.
    """

    count: Count
    mu: optax.Updates


def scale_by_lion_k(
    convex: ConvexFunction | None = None,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    *,
    mu_dtype: Any = None,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of Lion-K.

    Args:
      convex: the convex function K from `momentax.convex`; None means `l1()`, Lion.
      b1: weight of the memory in (1), in [0, 1); number or schedule. 0.9 as in Lion; 0.95 for language models.
      b2: decay of the memory in (3), in [0, 1); number or schedule. 0.99 as in Lion; 0.98 for language models.
      mu_dtype: dtype of m; None means the leaf's own, float32 for bfloat16 and float16 leaves.
      routing: states channels, matrices and batch axes. None takes every leaf as one, and for `row_norm` and `nuclear`,
        which read channels and matrices, the conventions of Flax.

    Raises:
      ValueError: a decay is a number outside [0, 1), a leaf has fewer entries than K needs or axes that cannot be
        told, or the gradients do not match the state.
      TypeError: `convex` is not a ConvexFunction, or a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.scale_by_lion_k(momentax.convex.huber(1.0))
      >>> state = tx.init(jnp.zeros(2))
      >>> updates, state = tx.update(jnp.array([5.0, -40.0]), state)
      >>> print(updates)
      [ 0.5 -1. ]
    """
    convex = _checked(convex)
    checks.check_fraction("scale_by_lion_k", b1=b1, b2=b2)

    def init(params):
        mu = leaves.zeros_like("scale_by_lion_k", params, mu_dtype)
        _check_sizes(convex, params, _rules(convex, params, routing))
        return ScaleByLionKState(count=jnp.zeros([], jnp.int32), mu=mu)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        shown, kept = (leaves.value_at(value, state.count) for value in (b1, b2))
        c = leaves.each("scale_by_lion_k", _mix, updates, [state.mu], [shown])  # (1)
        if convex.scope == "global":
            u = convex.subgradient(c)  # (2)
        else:
            u = [_on(convex, rule).subgradient(x) for x, rule in zip(c, _rules(convex, updates, routing), strict=True)]

        def leaf(g, m, b2, u):
            return u, _mix(g, m, b2)  # (3)

        updates, mu = leaves.lift("scale_by_lion_k", leaf, updates, state=[state.mu], coefficients=[kept], per_leaf=[u])
        return updates, ScaleByLionKState(leaves.next_count(state.count), mu)

    return optax.GradientTransformationExtraArgs(init, update)


def _mix(g, m, decay):
    return decay * m + (1 - decay) * g


def _checked(convex: Any) -> ConvexFunction:
    """The convex function, l1 for None; anything else is refused."""
    if convex is None:
        return l1()
    if isinstance(convex, ConvexFunction):
        return convex
    hint = " Call that function, with its parameters." if callable(convex) else ""
    raise TypeError(
        "scale_by_lion_k: `convex` must be a ConvexFunction such as momentax.convex.l1() or "
        f"momentax.convex.huber(1e-3); got {convex!r}.{hint}"
    )


def _rules(convex: ConvexFunction, tree: Any, routing: Routing | None) -> list[Any]:
    """How each leaf is read where K or the user asks for it; None takes it as a whole."""
    if convex.on is None or (routing is None and not convex.needs_axes):
        return [None] * len(jax.tree.leaves(tree))
    return resolve("scale_by_lion_k", tree, routing)


def _on(convex: ConvexFunction, rule: Rule | None) -> ConvexFunction:
    return convex if rule is None or convex.on is None else convex.on(rule)


def _check_sizes(convex: ConvexFunction, params: Any, rules: list[Any]) -> None:
    """Raises `ValueError` naming the first leaf that has fewer entries, in each matrix, than K needs."""
    for (path, leaf), rule in zip(named_leaves(params), rules, strict=True):
        stack = rule.batch_axes if rule else ()
        entries = math.prod(size for axis, size in enumerate(jnp.shape(leaf)) if axis not in stack)
        if entries < convex.smallest:
            raise ValueError(
                f"scale_by_lion_k: leaf '{path}' {jnp.shape(leaf)} has {entries} entries"
                f"{' in each matrix' if stack else ''}; {convex.name} needs {convex.smallest}. Give this leaf another "
                "function with optax.partition, or all of them one that needs fewer."
            )
