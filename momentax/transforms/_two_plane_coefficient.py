"""The coefficient of two-plane momentum: how much of the memory the next direction keeps.

The loss around x is modelled by the larger of two planes, <g, z> (gradient) and a + <d, z> (memory). The next point is

    x' = argmin_z max{<g, z>, a + <d, z>} + |z|_P^2 / (2 eta) + (mu/2) |x + z|_P^2
                  + lam / (2 eta (1 + mu eta)) |P y + eta d|^2,      y = (1 + mu eta)(x + z) - x          (1)

whose dual is concave in one number beta in [0, 1], the weight of the memory plane, with the maximiser

    M    = 1 / (P (1 + lam P))                                                                           (2)
    N    = sum over leaves of (<d - g, g + lam P d>_M + mu <x, d - g>) / (1 + mu eta)                    (3)
    D    = sum over leaves of <d - g, d - g>_M / (1 + mu eta)                                            (4)
    beta = clip((a / eta - N) / D, 0, b1_max),   0 where D = 0                                           (5)

g: gradient; d: memory; x: parameters; P: positive diagonal metric, 1 for the Euclidean one; a: value of the memory
plane at x minus the loss at x; eta: learning rate; lam: proximity to the step of the memory; mu: decoupled weight
decay, which may differ between leaves; <a, b>_M = sum of M a b.
At beta the planes meet: s = (a + <d, z>) - <g, z> is 0 inside (0, 1), <= 0 at beta = 0 and >= 0 at beta = 1.

Source: Topollai & Choromanska, arXiv 2510.04988, for the model with P = 1 and mu = 0; the rest follows from (1).
"""

from typing import Any

import jax
import jax.numpy as jnp

from momentax import leaves, scalars
from momentax.typing import Params, Scalar, Updates


def two_plane_coefficient(
    g: Updates,
    d: Updates,
    a: Scalar,
    *,
    learning_rate: Scalar = 1.0,
    proximity: Scalar = 0.0,
    metric: Updates | None = None,
    weight_decay: Scalar = 0.0,
    params: Params | None = None,
    b1_max: Scalar | None = 1.0,
) -> jax.Array:
    """Solves (5) for one coefficient shared by all leaves.

    Args:
      g: gradients, a tree of arrays or one array.
      d: memory, like `g`.
      a: height of the memory plane over the loss at x, scalar, in units of the loss.
      learning_rate: eta, above zero, scalar.
      proximity: lam, not negative, scalar.
      metric: P, positive, like `g`; None means 1.
      weight_decay: mu, scalar; needs `params`.
      params: x, like `g`; only read with `weight_decay`.
      b1_max: upper end of the interval; None returns the unclipped maximiser of the dual.

    Returns:
      beta, a scalar.

    Raises:
      ValueError: `params` is missing where `weight_decay` is not the number 0, or trees do not match.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> g, d = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(momentax.two_plane_coefficient(g, d, 0.0))
      0.5
    """
    decays = not (isinstance(weight_decay, (int, float)) and weight_decay == 0)
    if decays:
        params = leaves.require_params("two_plane_coefficient", params)

    def leaf(g, d, P, x, lam, mu, eta):
        return plane_sums(g, d, 1.0 if P is None else P, mu * x if decays else 0.0, lam, mu * eta)

    sums = leaves.each(
        "two_plane_coefficient",
        leaf,
        g,
        [d, metric, params if decays else None],
        [proximity, weight_decay, learning_rate],
    )
    numerators, denominators = zip(*sums, strict=True)
    height = a / jnp.asarray(learning_rate)
    return coefficient(height, scalars.total(numerators), scalars.total(denominators), b1_max)


def plane_sums(g, d, P, decay, lam, mu_eta, stack: tuple[int, ...] = ()) -> tuple[Any, Any]:
    """The share of one leaf in N and D, for each matrix along the axes `stack`. `decay` is mu x."""
    gap = d - g
    M = 1 / (P * (1 + lam * P))  # (2)
    numerator = scalars.sum_over(gap * (M * (g + lam * P * d) + decay), stack)  # (3)
    denominator = scalars.sum_over(M * gap * gap, stack)  # (4), never |d|^2 - 2 <d, g> + |g|^2, which cancels
    return numerator / (1 + mu_eta), denominator / (1 + mu_eta)


def coefficient(height, numerator, denominator, b1_max: Any) -> jax.Array:
    """(5); `height` is a / eta."""
    raw = (height - numerator) / jnp.where(denominator == 0, jnp.ones_like(denominator), denominator)
    beta = raw if b1_max is None else jnp.clip(raw, 0.0, b1_max)
    return jnp.where(denominator == 0, jnp.zeros_like(beta), beta)
