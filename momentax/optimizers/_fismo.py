"""FISMO: momentum, orthogonalised where a Kronecker-factored Fisher matrix has whitened it.

    G~ = P^-1/2 G Q^-1/2,  P and Q averages of G Q^-1 G' and G' P^-1 G        (1)  whiten_by_fisher
    M  = average G~, not debiased                                             (2)  average_gradients
    O  = polar factor of M                                                    (3)  orthogonalize
    U  = P^-1/2 O Q^-1/2, times a factor of the shape where one is asked for  (4)  scale_by_matrix_shape
    w <- (1 - eta lam) w - eta U                                              (5)  decays.take_step

for matrices, each of a stack alone; embeddings, output heads and vectors are given to `rest`, AdamW with a learning
rate of its own. As published, with gradients of the size that networks have, P and Q stay at the identity and this is
Muon: see `momentax.whiten_by_fisher`, and normalize_stats=True.

Contract: optimizer (chains of transforms, one for matrices and one for the rest).
Source: Xu, Yan & Zhang, FISMO: Fisher-Structured Momentum-Orthogonalized Optimizer, arXiv 2601.21750, Algorithm 1.
Departure: no code was published, and we know the algorithm from transcriptions: learning rate, decays, damping, weight
decay and what becomes of leaves that are no matrices are ours.
Non-finite gradients enter the averages and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any

import optax

from momentax import checks
from momentax.decays import take_step
from momentax.routing import Routing
from momentax.transforms import average_gradients, orthogonalize, scale_by_adam, scale_by_matrix_shape
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import partition_by_rule, whiten_by_fisher


def fismo(
    learning_rate: ScalarOrSchedule = 0.02,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    damping: ScalarOrSchedule = 0.1,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    normalize_stats: bool = False,
    update_every: int = 1,
    max_dim: int | None = None,
    root: str = "eigh",
    method: Any = "polar_express",
    steps: int = 8,
    scale: str = "none",
    rest: optax.GradientTransformation | None = None,
    rest_learning_rate: ScalarOrSchedule = 3e-4,
    weight_decay_mask: Mask | None = None,
    compute_dtype: Any = None,
    mu_dtype: Any = None,
    routing: Routing | None = None,
    head: str | None = None,
    mesh: Any = None,
    param_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """FISMO for matrices, AdamW for the rest.

    Args:
      learning_rate: eta of the matrices; number or schedule.
      b1: beta, decay of the average gradient; number or schedule.
      b2: gamma, decay of the factors; number or schedule.
      damping: mu, in units of the mean diagonal entry of the factors; number or schedule.
      weight_decay: lam, per unit of learning rate, of the matrices and, at its own rate, of the default rest; number or
        schedule. None is off.
      normalize_stats: make the factors independent of the size of gradients; False is the published algorithm.
      update_every: steps between computations of the inverse roots.
      max_dim: a side longer than this is not whitened; None sets no bound.
      root: how inverse roots are computed, "eigh" or "newton".
      method: coefficients of (3), or another way to orthogonalise; see `momentax.orthogonalize`. The paper's direction
        is the steepest one under a norm, which only the polar factor is: "polar_express" with 8 steps comes to within
        rounding of it where singular values span three decades.
      steps: iterations in (3).
      scale: factor of the shape in (4), "none" or "moonlight" for example; see `momentax.scale_by_matrix_shape`.
      rest: transformation for what is no hidden matrix, its learning rate included. None is AdamW with b1 = 0.9,
        b2 = 0.95, eps = 1e-10.
      rest_learning_rate: of the default rest; number or schedule. A schedule of `learning_rate` does not reach it.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf.
      compute_dtype: dtype of the iteration in (3); None means the leaf's own.
      mu_dtype: dtype of the averages; None means the leaf's own, float32 for half precision. Factors are float32.
      routing: states what leaves are and their axes; None for the conventions of Flax.
      head: path pattern of output heads, on top of those that routing recognises by name.
      mesh: on which the parameters lie; see `momentax.on_mesh`.
      param_specs: their partitions; see `momentax.on_mesh`.

    Raises:
      ValueError: a coefficient out of range, or a leaf that cannot be told.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.fismo(0.02, normalize_stats=True, weight_decay=0.01)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("fismo", learning_rate)

    def matrices(routing):
        direction = optax.chain(
            average_gradients(b1, debias=False, mu_dtype=mu_dtype),
            orthogonalize(method, steps, None, compute_dtype=compute_dtype, routing=routing),
        )
        return optax.chain(
            whiten_by_fisher(
                direction,
                b2,
                damping,
                normalize_stats=normalize_stats,
                update_every=update_every,
                max_dim=max_dim,
                root=root,
                routing=routing,
            ),
            scale_by_matrix_shape(scale, routing=routing),
            take_step(learning_rate, weight_decay, weight_decay_mask),
        )

    adamw = optax.chain(
        scale_by_adam(0.9, 0.95, 1e-10, mu_dtype=mu_dtype),
        take_step(rest_learning_rate, weight_decay, weight_decay_mask),
    )
    parts = {"matrix": matrices, "rest": adamw if rest is None else rest}
    return partition_by_rule(parts, routing, head=head, mesh=mesh, param_specs=param_specs)
