"""MuonH: Muon on the sphere, where the learning rate is an angle and carries over to other widths and weight decays.

    M  <- b1 M + G,   N = G + b1 M                                       (1)  heavy_ball, nesterov
    O  = N without its singular values, by five Newton-Schulz steps      (2)  orthogonalize
    W  <- R (W - eta R O / |O|) / |W - eta R O / |O||                    (3)  retract_to_sphere

for matrices, each of a stack on a sphere of its own, with the radius R that it had at the start. Output heads take
AdamH, (3) with the direction of Adam for O. Embeddings and vectors are given to `rest`, AdamW.

Contract: optimizer (chains of transforms, one for matrices, one for heads and one for the rest).
Source: Wen et al., Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization, arXiv
2606.16899; Ren et al., Rethinking Language Model Scaling under Transferable Hypersphere Optimization, arXiv 2603.28743.
Code microsoft/ArchScale: radius="current", scope="leaf", input_dtype=compute_dtype=jnp.bfloat16. Code microsoft/dion:
input_dtype=compute_dtype=jnp.bfloat16.
Departure: the codes round the momentum and (2), ArchScale also O / |O|, to bfloat16; here dtypes are arguments.
A matrix or head that starts at zero is refused: it has no direction on a sphere.
A matrix that starts at zero has no direction: `init` refuses it, but cannot see values under `jax.jit`, and then the
matrix stays zero. With radius="initial" call `init` on the weights that are trained: weights loaded afterwards are
pulled to the norms that `init` saw.
Non-finite gradients enter the momentum and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any

import optax

from momentax import checks
from momentax.decays import take_step
from momentax.routing import Routing
from momentax.transforms import heavy_ball, orthogonalize, retract_to_sphere, scale_by_adam
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import partition_by_rule


def muonh(
    learning_rate: ScalarOrSchedule = 0.015,
    b1: ScalarOrSchedule = 0.95,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    nesterov: bool = True,
    method: Any = "you",
    steps: int = 5,
    eps: float = 1e-8,
    radius: str = "initial",
    scope: str = "matrix",
    decay: str = "decoupled",
    adam_b1: ScalarOrSchedule = 0.9,
    adam_b2: ScalarOrSchedule = 0.95,
    rest: optax.GradientTransformation | None = None,
    rest_learning_rate: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    compute_dtype: Any = None,
    input_dtype: Any = None,
    mu_dtype: Any = None,
    routing: Routing | None = None,
    head: str | None = None,
    mesh: Any = None,
    param_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """MuonH for matrices, AdamH for output heads, AdamW for the rest. Defaults as in the runs of the code.

    Args:
      learning_rate: eta, the tangent of the angle by which a matrix turns at most; number or schedule.
      b1: decay of the momentum; number or schedule.
      weight_decay: lam of the matrices alone, before (3), per unit of learning rate; number or schedule. None is off,
        as in the runs: with radius="initial" it only changes the step size.
      nesterov: look one step ahead in (1).
      method: coefficients of (2), or another way to orthogonalise; see `momentax.orthogonalize`.
      steps: iterations in (2).
      eps: added to the norm in (2) and to the root in Adam, and floor of the norms in (3), as the code shares it.
      radius: "initial", that of the start, or "current", that of each step; see `momentax.retract_to_sphere`.
      scope: "matrix", a sphere for each matrix of a stack, or "leaf", one for all of them.
      decay: form of the weight decay, "decoupled" or "cautious".
      adam_b1: decay of the average gradient of heads and of the default rest; number or schedule.
      adam_b2: decay of their average squared gradient; number or schedule.
      rest: transformation for embeddings and vectors, its learning rate included. None is AdamW without decay.
      rest_learning_rate: of the default rest; number or schedule. None is that of the matrices, as in the code.
      weight_decay_mask: which matrices decay: a tree of bools, a prefix, or a function of the parameters.
      compute_dtype: dtype of the iteration; None means the leaf's own.
      input_dtype: dtype to which N is rounded before (2); None does not round.
      mu_dtype: dtype of M and of the average gradients; None means the leaf's own, float32 for half precision.
      routing: states what leaves are and their axes; None for the conventions of Flax.
      head: path pattern of output heads, on top of those that routing recognises by name.
      mesh: on which the parameters lie; see `momentax.on_mesh`.
      param_specs: their partitions; see `momentax.on_mesh`.

    Raises:
      ValueError: a coefficient out of range, a matrix or head that starts at zero, or a leaf that cannot be told.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.muonh(0.015)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("muonh", learning_rate)
    rest_learning_rate = learning_rate if rest_learning_rate is None else rest_learning_rate

    def matrices(routing):
        return optax.chain(
            heavy_ball(b1, nesterov=nesterov, mu_dtype=mu_dtype),
            orthogonalize(method, steps, eps, compute_dtype=compute_dtype, input_dtype=input_dtype, routing=routing),
            retract_to_sphere(
                learning_rate,
                weight_decay,
                weight_decay_mask,
                radius=radius,
                decay=decay,
                scope=scope,
                eps=eps,
                routing=routing,
            ),
        )

    adam = scale_by_adam(adam_b1, adam_b2, eps, mu_dtype=mu_dtype)

    def heads(routing):
        sphere = retract_to_sphere(learning_rate, radius=radius, scope=scope, eps=eps, routing=routing)
        return optax.chain(adam, sphere)

    adamw = optax.chain(adam, take_step(rest_learning_rate))
    parts = {"matrix": matrices, "head": heads, "rest": adamw if rest is None else rest}
    return partition_by_rule(parts, routing, head=head, mesh=mesh, param_specs=param_specs)
