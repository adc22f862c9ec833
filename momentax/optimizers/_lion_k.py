"""Lion-K: steps along the subgradient of a convex function at the momentum, with weight decay as a constraint.

    u = dK(c)                                                         (1)  scale_by_lion_k
    w <- (1 - eta lam) w - eta u                                      (2)  decays.decoupled and the learning rate
    w <- (w - eta u) / (1 + eta lam)                                  (3)  decay="proximal", the scheme analysed

(2) with rate eta is (3) with rate eta / (1 - eta lam). Both minimise f(w) + K*(lam w) / lam. A norm K keeps its dual
norm of w at most 1 / lam: K = l1 (Lion) the largest |w_i|, K = nuclear (Muon's direction) the spectral norm; what lies
outside comes in at the rate 1 - eta lam. Without weight decay nothing is constrained.

Contract: optimizer (chain of transforms, or of a transform and a terminal).
Source: Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023, arXiv 2302.06675; official code
google/automl, which K = l1 reproduces; Chen et al., Lion Secretly Solves Constrained Optimization: As Lyapunov
Predicts, ICLR 2024, arXiv 2310.05898.
Non-finite gradients enter the momentum and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any

import optax

from momentax import checks
from momentax.convex import ConvexFunction
from momentax.decays import take_step
from momentax.routing import Routing
from momentax.transforms import scale_by_lion_k
from momentax.typing import Mask, ScalarOrSchedule


def lion_k(
    learning_rate: ScalarOrSchedule,
    convex: ConvexFunction | None = None,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    decay: str = "decoupled",
    weight_decay_mask: Mask | None = None,
    mu_dtype: Any = None,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion-K. Defaults of Lion's official code, whose learning rate is 1e-4: a third to a tenth of AdamW's.

    Args:
      learning_rate: eta; number or schedule.
      convex: the convex function K from `momentax.convex`; None means `l1()`, Lion.
      b1: weight of the memory in what K is shown; number or schedule. 0.95 for language models.
      b2: decay of the memory; number or schedule. 0.98 for language models.
      weight_decay: lam, per unit of learning rate, 3 to 10 times AdamW's; number or schedule. None (off, and with it
        the constraint) is the default of the code.
      decay: "decoupled", (2), or "proximal", (3).
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf, as the code does.
      mu_dtype: dtype of the momentum; None means the leaf's own, float32 for half precision.
      routing: states channels, matrices and batch axes. None takes every leaf as one, and for `row_norm` and `nuclear`,
        which read channels and matrices, the conventions of Flax.

    Raises:
      ValueError: a coefficient out of range, an unknown `decay`, a leaf with fewer entries than K needs, or one whose
        axes cannot be told.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.lion_k(1e-4, momentax.convex.nuclear(), weight_decay=1.0)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("lion_k", learning_rate)
    checks.check_choice("lion_k", "decay", decay, ("decoupled", "proximal"))
    direction = scale_by_lion_k(convex, b1, b2, mu_dtype=mu_dtype, routing=routing)
    return optax.chain(direction, take_step(learning_rate, weight_decay, weight_decay_mask, decay=decay))
