"""NAMO: Muon whose step is as long as the gradients of a matrix agree with one another.

    N     = average gradient, one step ahead; O = N without its singular values         (1)  orthogonalize
    alpha = debiased |N|_F over the root of the average |G|_F^2                         (2)  scale_by_norm_snr
    w    <- w - eta alpha (s O + lam w)                                                 (3)  variant="paper"
    w    <- (1 - lam min(eta alpha, 1)) w - min(eta alpha s, 1) O                       (4)  variant="official"

for matrices, each of a stack alone; s: factor of the shape. Embeddings, output heads and vectors are given to `rest`,
AdamW with the same learning rate. (3) and (4) are the same until eta alpha or eta alpha s reaches 1.

Contract: optimizer (chains of transforms, one for matrices and one for the rest).
Source: Zhang, Liu & Schaeffer, Adam Improves Muon: Adaptive Moment Estimation with Orthogonalized Momentum, arXiv
2602.17080; official code minxin-zhg/namo, which variant="official", scale="moonlight_first_axes" and
compute_dtype=jnp.bfloat16 reproduce.
Departure: without compute_dtype the iteration keeps the dtype of the leaf, where the code rounds to bfloat16; s counts
the spatial axes of a convolution as inputs.
Non-finite gradients enter the averages and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any

import optax

from momentax import checks
from momentax.decays import take_step
from momentax.routing import Routing
from momentax.transforms import orthogonalize, scale_by_adam
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import partition_by_rule, scale_by_norm_snr


def namo(
    learning_rate: ScalarOrSchedule = 0.01,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule | None = 0.1,
    *,
    variant: str = "paper",
    nesterov: bool = True,
    method: Any = "muon",
    steps: int = 5,
    norm_eps: float | None = 1e-7,
    scale: str = "moonlight",
    rms: ScalarOrSchedule = 0.2,
    rest: optax.GradientTransformation | None = None,
    rest_learning_rate: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    compute_dtype: Any = None,
    mu_dtype: Any = None,
    routing: Routing | None = None,
    head: str | None = None,
    mesh: Any = None,
    param_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """NAMO for matrices, AdamW for the rest. Defaults of the official code.

    Args:
      learning_rate: eta; number or schedule.
      b1: decay of the average gradient; number or schedule.
      b2: decay of the average squared norm; number or schedule.
      eps: added to its root, in units of the norm; number or schedule.
      weight_decay: lam, per unit of learning rate, of the matrices and of the default rest; number or schedule. None is
        off.
      variant: "paper", or "official", which bounds what the learning rate can do to a matrix in one step.
      nesterov: look one step ahead in the momentum.
      method: coefficients of the orthogonalisation, or another way; see `momentax.orthogonalize`.
      steps: iterations of the orthogonalisation.
      norm_eps: added to the norm there, in units of the gradient.
      scale: factor s of the shape; see `momentax.scale_by_matrix_shape`.
      rms: root mean square entry that scale="moonlight" gives to orthogonal directions; number or schedule.
      rest: transformation for what is no hidden matrix, its learning rate included. None is AdamW with b1 = 0.9,
        b2 = 0.95, eps = 1e-8 beside the root before debiasing, as in the code.
      rest_learning_rate: of the default rest; number or schedule. None is `learning_rate`, as in the code.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf, as the code does.
      compute_dtype: dtype of the orthogonalisation; None means the leaf's own.
      mu_dtype: dtype of the averages; None means the leaf's own, float32 for half precision.
      routing: states what leaves are and their axes; None for the conventions of Flax.
      head: path pattern of output heads, on top of those that routing recognises by name.
      mesh: on which the parameters lie; see `momentax.on_mesh`.
      param_specs: their partitions; see `momentax.on_mesh`.

    Raises:
      ValueError: a coefficient out of range, an unknown choice, missing `params`, or a leaf that cannot be told.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.namo(0.01)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("namo", learning_rate)
    checks.check_choice("namo", "variant", variant, ("paper", "official"))
    rest_rate = learning_rate if rest_learning_rate is None else rest_learning_rate

    def matrices(routing):
        adapted = scale_by_norm_snr(
            orthogonalize(method, steps, norm_eps, compute_dtype=compute_dtype, routing=routing),
            b1,
            b2,
            eps,
            nesterov=nesterov,
            scale=scale,
            rms=rms,
            weight_decay=weight_decay,
            weight_decay_mask=weight_decay_mask,
            learning_rate=learning_rate if variant == "official" else None,
            mu_dtype=mu_dtype,
            routing=routing,
        )
        return adapted if variant == "official" else optax.chain(adapted, optax.scale_by_learning_rate(learning_rate))

    adamw = optax.chain(
        scale_by_adam(0.9, 0.95, 1e-8, eps_hat=True, mu_dtype=mu_dtype),
        take_step(rest_rate, weight_decay, weight_decay_mask),
    )
    parts = {"matrix": matrices, "rest": adamw if rest is None else rest}
    return partition_by_rule(parts, routing, head=head, mesh=mesh, param_specs=param_specs)
