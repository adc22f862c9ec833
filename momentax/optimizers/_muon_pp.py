"""Muon++: momentum, orthogonalised, with spectral norms that stay what a width-independent learning rate asks for.

    N  = average gradient, one step ahead, not debiased                       (1)  average_gradients
    U  = kappa sqrt(fan_out / fan_in) O,  O = polar(N) with |O|_2 <= 1        (2)  bound_spectral_norm
    w <- (1 - eta lam) w - eta U                                              (3)  decays.take_step

for matrices, each of a stack alone; embeddings, output heads and vectors are given to `rest`, AdamW with a learning
rate of its own. muP needs weights and steps of spectral norm in proportion to sqrt(fan_out / fan_in) at every step. (2)
keeps steps there and (3) weights:

    |W_t|_2 <= max(|W_0|_2, kappa sqrt(fan_out / fan_in) / lam)               (4)

for eta lam <= 1, without normalising a weight. The start is the user's. Entries of standard deviation

    sqrt(min(1, fan_out / fan_in) / fan_in)                                   (5)

give |W_0|_2 of that proportion in both aspect ratios: jax.nn.initializers.variance_scaling(min(1, fan_out / fan_in),
"fan_in", "normal"). Flax's default, lecun_normal, is that where fan_out >= fan_in, and sqrt(fan_in / fan_out) times too
large where it is not.

Contract: optimizer (chains of transforms, one for matrices and one for the rest).
Source: Zhao, Towards a Principled Muon under muP: Ensuring Spectral Conditions throughout Training, arXiv 2601.01306.
Departure: of the paper only the abstract could be read, and no code was published. (1) to (3) are our reading of it:
control the spectrum of the updates, do not normalise weights. Defaults are those of Muon, and our own.
Non-finite gradients enter the momentum and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any

import optax

from momentax import checks
from momentax.decays import take_step
from momentax.routing import Routing
from momentax.transforms import average_gradients, bound_spectral_norm, scale_by_adam
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import partition_by_rule


def muon_pp(
    learning_rate: ScalarOrSchedule = 0.02,
    b1: ScalarOrSchedule = 0.95,
    weight_decay: ScalarOrSchedule | None = 0.1,
    *,
    kappa: ScalarOrSchedule = 1.0,
    tangent: bool = False,
    nesterov: bool = True,
    method: Any = "polar_express",
    steps: int = 6,
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
    """Muon++ for matrices, AdamW for the rest.

    Args:
      learning_rate: eta of the matrices; number or schedule. It carries over between widths.
      b1: decay of the average gradient; number or schedule.
      weight_decay: lam, per unit of learning rate, of the matrices and, at its own rate, of the default rest; number or
        schedule. 0.1 is ours: (4) needs one. None is off; then the bound grows by kappa sqrt(fan_out / fan_in) eta a
        step.
      kappa: the largest change of a layer's output in root mean square, relative to its input and the learning rate;
        number or schedule.
      tangent: let a step change the largest singular value of a weight to second order only, at eight times the cost;
        see `momentax.bound_spectral_norm`. Weight decay changes it still.
      nesterov: look one step ahead in (1).
      method: table of coefficients of (2), or "exact"; see `momentax.bound_spectral_norm`.
      steps: iterations in (2).
      rest: transformation for what is no hidden matrix, its learning rate included. None is AdamW with b1 = 0.9,
        b2 = 0.95, eps = 1e-10.
      rest_learning_rate: of the default rest; number or schedule. A schedule of `learning_rate` does not reach it.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf.
      compute_dtype: dtype of the iteration; None means the leaf's own.
      mu_dtype: dtype of the averages; None means the leaf's own, float32 for half precision.
      routing: states what leaves are and their axes; None for the conventions of Flax.
      head: path pattern of output heads, on top of those that routing recognises by name.
      mesh: on which the parameters lie; see `momentax.on_mesh`.
      param_specs: their partitions; see `momentax.on_mesh`.

    Raises:
      ValueError: a coefficient out of range, or a leaf that cannot be told.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.muon_pp(0.02)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("muon_pp", learning_rate)

    def matrices(routing):
        return optax.chain(
            average_gradients(b1, debias=False, nesterov=nesterov, mu_dtype=mu_dtype),
            bound_spectral_norm(
                kappa, tangent=tangent, method=method, steps=steps, compute_dtype=compute_dtype, routing=routing
            ),
            take_step(learning_rate, weight_decay, weight_decay_mask),
        )

    adamw = optax.chain(
        scale_by_adam(0.9, 0.95, 1e-10, mu_dtype=mu_dtype),
        take_step(rest_learning_rate, weight_decay, weight_decay_mask),
    )
    parts = {"matrix": matrices, "rest": adamw if rest is None else rest}
    return partition_by_rule(parts, routing, head=head, mesh=mesh, param_specs=param_specs)
