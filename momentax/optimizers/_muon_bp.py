"""MuonBP: Muon that orthogonalises whole matrices now and then, and the shards of the devices between.

    N  = average gradient, one step ahead, not debiased                              (1)  average_gradients
    U  = s O(N) of whole matrices if t mod P = 0, of each of their blocks if not     (2)  orthogonalize_blocks
    w <- (1 - eta_t lam) w - eta_t U                                                 (3)  decays.take_step
    eta_t = eta if t mod P = 0, eta_b if not                                         (4)

for matrices, each of a stack alone; embeddings, output heads and vectors are given to `rest`, AdamW. t: steps taken; P:
`period`; O: five Newton-Schulz steps; s: factor by which U has the root mean square 0.2 whatever was orthogonalised.
The steps between need no communication for (2) where blocks are shards. A step of k blocks may have a spectral norm
sqrt(k) times that of the blocks, which is why the paper's theory wants the two learning rates of (4).

What is trained depends on how the parameters lie, unless `blocks` states the blocks: see
`momentax.orthogonalize_blocks`. Parameters that are not sharded are trained by Muon. period=None never orthogonalises a
whole matrix (BlockMuon), which the paper finds unstable in large models.

Contract: optimizer (chains of transforms, one for matrices and one for the rest).
Source: Khaled, Ozkara, Yu, Hong & Park, MuonBP: Faster Muon via Block-Periodic Orthogonalization, ICLR 2026, arXiv
2510.16981; s, eta and lam: Liu et al., Muon is Scalable for LLM Training, arXiv 2502.16982.
Departure: of the paper only the abstract and what others wrote about it could be read: (2) and (4) are as told there,
the other numbers are those of Moonlight and Muon. nesterov=False is the momentum as told; (1) is that of Muon's code.
That weight decay takes the learning rate of its step in (3), and that t = 0 is a whole step, is our reading.
Non-finite gradients enter the momentum and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any

import optax

from momentax import checks
from momentax.clocks import periodic
from momentax.decays import take_step
from momentax.routing import Routing
from momentax.transforms import average_gradients, orthogonalize_blocks, scale_by_adam
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import partition_by_rule


def muon_bp(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: ScalarOrSchedule = 0.95,
    weight_decay: ScalarOrSchedule | None = 0.1,
    *,
    period: int | None = 5,
    block_learning_rate: ScalarOrSchedule | None = None,
    blocks: Any = None,
    nesterov: bool = True,
    method: Any = "muon",
    steps: int = 5,
    eps: float | None = 1e-7,
    scale: str = "moonlight",
    rest: optax.GradientTransformation | None = None,
    rest_learning_rate: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    compute_dtype: Any = None,
    precision: Any = None,
    mu_dtype: Any = None,
    routing: Routing | None = None,
    head: str | None = None,
    mesh: Any = None,
    param_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """MuonBP for matrices, AdamW for the rest. Learning rate and weight decay as in Moonlight.

    Args:
      learning_rate: eta of the matrices in steps of whole ones; number or schedule.
      b1: decay of the average gradient; number or schedule.
      weight_decay: lam, per unit of learning rate, of the matrices and, at its own rate, of the default rest; number or
        schedule. None is off.
      period: P, steps from one of whole matrices to the next; 1 is Muon, None is blocks alone.
      block_learning_rate: eta_b, of the matrices in the other steps; number or schedule. None is eta, which (2) makes
        fit for both in root mean square.
      blocks: None for the shards of each leaf, a pair (rows, columns), or a function of path and leaf; see
        `momentax.orthogonalize_blocks`.
      nesterov: look one step ahead in (1).
      method: coefficients of O, or another way to orthogonalise; see `momentax.orthogonalize`.
      steps: iterations in O.
      eps: added to the norm in O, in units of the gradient.
      scale: factor s of the shape; see `momentax.orthogonalize_blocks`.
      rest: transformation for what is no hidden matrix, its learning rate included. None is AdamW with b1 = 0.9,
        b2 = 0.95, eps = 1e-10.
      rest_learning_rate: of the default rest; number or schedule. None is eta.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf.
      compute_dtype: dtype of the iteration; None means the leaf's own.
      precision: of its products; see `momentax.orthogonalize`.
      mu_dtype: dtype of the averages; None means the leaf's own, float32 for half precision.
      routing: states what leaves are and their axes; None for the conventions of Flax.
      head: path pattern of output heads, on top of those that routing recognises by name.
      mesh: on which the parameters lie; see `momentax.on_mesh`.
      param_specs: their partitions, which are the blocks where `blocks` is None; see `momentax.on_mesh`.

    Raises:
      ValueError: a coefficient out of range, numbers of blocks that do not divide a leaf, or a leaf that cannot be
        told.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.muon_bp(1e-3, block_learning_rate=7e-4, blocks=(1, 2))
      >>> params = {"dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("muon_bp", learning_rate)
    checks.check_non_negative("muon_bp", block_learning_rate=block_learning_rate)
    rest_learning_rate = learning_rate if rest_learning_rate is None else rest_learning_rate
    rate = learning_rate if block_learning_rate is None else periodic(period, learning_rate, block_learning_rate)

    def matrices(routing):
        return optax.chain(
            average_gradients(b1, debias=False, nesterov=nesterov, mu_dtype=mu_dtype),
            orthogonalize_blocks(
                period,
                method,
                steps,
                eps,
                blocks=blocks,
                scale=scale,
                compute_dtype=compute_dtype,
                precision=precision,
                routing=routing,
            ),
            take_step(rate, weight_decay, weight_decay_mask),
        )

    adamw = optax.chain(
        scale_by_adam(0.9, 0.95, 1e-10, mu_dtype=mu_dtype),
        take_step(rest_learning_rate, weight_decay, weight_decay_mask),
    )
    parts = {"matrix": matrices, "rest": adamw if rest is None else rest}
    return partition_by_rule(parts, routing, head=head, mesh=mesh, param_specs=param_specs)
