"""Hybrid AuON: momentum after one Newton-Schulz step, divided by the root mean square of its hyperbolic cosines.

    N  = average gradient, one step ahead, not debiased                  (1)  average_gradients
    O  = N after `steps` steps towards equal singular values             (2)  orthogonalize
    U  = O / r,  r = root mean square of cosh(gamma O / |O|_F)           (3)  scale_by_cosh_rms
    w <- (1 - eta lam) w - eta s U                                       (4)  decays.take_step

for matrices, each of a stack alone; s: factor of the shape, 1 by default. Embeddings, output heads and vectors are
given to `rest`, AdamW with a learning rate of its own.

What to expect: r is one number close to 1 (see `auon`), so this is Muon with fewer Newton-Schulz steps. One step leaves
small singular values 3.4 times as large as in N / |N|_F, and none above 1.203.

Contract: optimizer (chains of transforms, one for matrices and one for the rest).
Source: Maity, AuON: A Linear-time Alternative to Semi-Orthogonal Momentum Updates, arXiv 2509.24320; official code
ryyzn9/AuON, auon/optimizer.py.
Departure: one step as in the paper, where the code's default is five; (3) normalises O inside r as the code does, where
the paper's display of the hybrid has neither norm nor root. The code takes the last two axes of a convolution kernel as
a matrix, its spatial ones, which `routing` can state, and every leaf through (3).
Non-finite gradients enter the momentum and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any

import optax

from momentax import checks
from momentax.decays import take_step
from momentax.routing import Routing
from momentax.transforms import (
    average_gradients,
    orthogonalize,
    scale_by_adam,
    scale_by_cosh_rms,
    scale_by_matrix_shape,
)
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import partition_by_rule


def hybrid_auon(
    learning_rate: ScalarOrSchedule = 0.24,
    b1: ScalarOrSchedule = 0.95,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    gamma: ScalarOrSchedule | None = None,
    variant: str = "paper",
    nesterov: bool = True,
    method: Any = "muon",
    steps: int = 1,
    eps: float | None = 1e-7,
    scale: str = "none",
    rest: optax.GradientTransformation | None = None,
    rest_learning_rate: ScalarOrSchedule = 0.008,
    weight_decay_mask: Mask | None = None,
    compute_dtype: Any = None,
    mu_dtype: Any = None,
    routing: Routing | None = None,
    head: str | None = None,
    mesh: Any = None,
    param_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Hybrid AuON for matrices, AdamW for the rest. Learning rates of the official code.

    Args:
      learning_rate: eta of the matrices; number or schedule. 0.24 as in the code.
      b1: decay of the average gradient; number or schedule.
      weight_decay: lam, per unit of learning rate, of the matrices and, at its own rate, of the default rest; number or
        schedule. None is off.
      gamma: factor inside the cosine; number or schedule. None is what the source has: 1 for the paper, 1.5 for the
        code.
      variant: "paper", or "official", which takes one r for a stack of matrices.
      nesterov: look one step ahead in (1).
      method: coefficients of (2), or another way to orthogonalise; see `momentax.orthogonalize`.
      steps: iterations in (2). 1 as in the paper; the code has 5.
      eps: added to the norm in (2), in units of the gradient.
      scale: factor s of the shape; see `momentax.scale_by_matrix_shape`.
      rest: transformation for what is no hidden matrix, its learning rate included. None is AdamW with b1 = 0.8,
        b2 = 0.95, eps = 1e-8 beside the root before debiasing, as in the code.
      rest_learning_rate: of the default rest; number or schedule. A schedule of `learning_rate` does not reach it.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf, as the code does.
      compute_dtype: dtype of (2); None means the leaf's own.
      mu_dtype: dtype of the averages; None means the leaf's own, float32 for half precision.
      routing: states what leaves are and their axes; None for the conventions of Flax.
      head: path pattern of output heads, on top of those that routing recognises by name.
      mesh: on which the parameters lie; see `momentax.on_mesh`.
      param_specs: their partitions; see `momentax.on_mesh`.

    Raises:
      ValueError: a coefficient out of range, an unknown choice, or a leaf that cannot be told.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.hybrid_auon(0.08, weight_decay=0.01)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("hybrid_auon", learning_rate)
    checks.check_choice("hybrid_auon", "variant", variant, ("paper", "official"))
    official = variant == "official"
    factor = gamma if gamma is not None else 1.5 if official else 1.0

    def matrices(routing):
        return optax.chain(
            average_gradients(b1, debias=False, nesterov=nesterov, mu_dtype=mu_dtype),
            orthogonalize(method, steps, eps, compute_dtype=compute_dtype, routing=routing),
            # O is as long as it should be: the form of the code, which does not normalise it, for both variants
            scale_by_cosh_rms(factor, variant="official", routing=None if official else routing),
            scale_by_matrix_shape(scale, routing=routing),
            take_step(learning_rate, weight_decay, weight_decay_mask),
        )

    adamw = optax.chain(
        scale_by_adam(0.8, 0.95, 1e-8, eps_hat=True, mu_dtype=mu_dtype),
        take_step(rest_learning_rate, weight_decay, weight_decay_mask),
    )
    parts = {"matrix": matrices, "rest": adamw if rest is None else rest}
    return partition_by_rule(parts, routing, head=head, mesh=mesh, param_specs=param_specs)
