"""NorMuon: Muon whose neurons all take steps of about the same size.

    N  = average gradient, one step ahead, not debiased                  (1)  average_gradients
    O  = N without its singular values, by five Newton-Schulz steps      (2)  orthogonalize
    Y  = O, each row over its usual size, rescaled as a whole            (3)  normalize_rows
    U  = sqrt(max(1, fan_out / fan_in)) Y                                (4)  scale_by_matrix_shape
    w <- (1 - eta lam) w - eta U                                         (5)  decays.take_step

for matrices, each of a stack alone. Embeddings, output heads and vectors are given to `rest`, AdamW with a learning
rate of its own.

Contract: optimizer (chains of transforms, one for matrices and one for the rest).
Source: Li et al., NorMuon: Making Muon more efficient and scalable, arXiv 2510.05491; official code zichongli5/NorMuon,
whose defaults these are. The algorithm of the paper, without (4): rescale="rms", scale="none".
Departure: without compute_dtype the iteration keeps the dtype of the leaf, where the code rounds to bfloat16; (3) and
(4) of a convolution count its spatial axes as inputs.
Non-finite gradients enter the averages and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any

import optax

from momentax import checks
from momentax.decays import take_step
from momentax.routing import Routing
from momentax.transforms import average_gradients, normalize_rows, orthogonalize, scale_by_adam, scale_by_matrix_shape
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import partition_by_rule


def normuon(
    learning_rate: ScalarOrSchedule = 0.02,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    nesterov: bool = True,
    method: Any = "muon",
    steps: int = 5,
    eps: float | None = 1e-7,
    rescale: str = "norm",
    scale: str = "kj",
    decay: str = "decoupled",
    rest: optax.GradientTransformation | None = None,
    rest_learning_rate: ScalarOrSchedule | None = 3e-4,
    weight_decay_mask: Mask | None = None,
    compute_dtype: Any = None,
    mu_dtype: Any = None,
    routing: Routing | None = None,
    head: str | None = None,
    mesh: Any = None,
    param_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """NorMuon for matrices, AdamW for the rest. Defaults of the official code.

    Args:
      learning_rate: eta of the matrices; number or schedule.
      b1: decay of the average gradient; number or schedule.
      b2: decay of the average squared rows; number or schedule.
      weight_decay: lam, per unit of learning rate, of the matrices and, at its own rate, of the default rest; number or
        schedule. None is off.
      nesterov: look one step ahead in (1).
      method: coefficients of (2), or another way to orthogonalise; see `momentax.orthogonalize`.
      steps: iterations in (2).
      eps: added to the norm in (2), in units of the gradient.
      rescale: what (3) restores: "norm", the Frobenius norm, or "rms", a root mean square entry of 0.2.
      scale: factor (4) of the shape; see `momentax.scale_by_matrix_shape`.
      decay: form of the weight decay, "decoupled" or "cautious"; see `momentax.decays.take_step`.
      rest: transformation for what is no hidden matrix, its learning rate included. None is AdamW with b1 = 0.9,
        b2 = 0.95, eps = 1e-10, as in the code.
      rest_learning_rate: of the default rest; number or schedule. None is that of the matrices, for rescale="rms".
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf, as the code does.
      compute_dtype: dtype of the iteration; None means the leaf's own.
      mu_dtype: dtype of the average gradients; None means the leaf's own, float32 for half precision.
      routing: states what leaves are and their axes; None for the conventions of Flax.
      head: path pattern of output heads, on top of those that routing recognises by name.
      mesh: on which the parameters lie; see `momentax.on_mesh`.
      param_specs: their partitions; see `momentax.on_mesh`.

    Raises:
      ValueError: a coefficient out of range, or a leaf that cannot be told.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.normuon(0.02, weight_decay=0.01, decay="cautious")
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("normuon", learning_rate)
    rest_learning_rate = learning_rate if rest_learning_rate is None else rest_learning_rate

    def matrices(routing):
        return optax.chain(
            average_gradients(b1, debias=False, nesterov=nesterov, mu_dtype=mu_dtype),
            orthogonalize(method, steps, eps, compute_dtype=compute_dtype, routing=routing),
            normalize_rows(b2, rescale=rescale, routing=routing),
            scale_by_matrix_shape(scale, routing=routing),
            take_step(learning_rate, weight_decay, weight_decay_mask, decay=decay),
        )

    adamw = optax.chain(
        scale_by_adam(0.9, 0.95, 1e-10, mu_dtype=mu_dtype),
        take_step(rest_learning_rate, weight_decay, weight_decay_mask, decay=decay),
    )
    parts = {"matrix": matrices, "rest": adamw if rest is None else rest}
    return partition_by_rule(parts, routing, head=head, mesh=mesh, param_specs=param_specs)
