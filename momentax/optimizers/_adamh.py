"""AdamH: Adam on the sphere.

    U  = direction of Adam                                               (1)  scale_by_adam
    W  <- R (W - eta R U / |U|) / |W - eta R U / |U||                    (2)  retract_to_sphere

for matrices and output heads, each of a stack on a sphere of its own, with the radius R that it had at the start.
Embeddings and vectors are given to `rest`, AdamW.

Contract: optimizer (chains of transforms, one for matrices and heads, one for the rest).
Source: Wen et al., Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization, arXiv
2606.16899; Ren et al., Rethinking Language Model Scaling under Transferable Hypersphere Optimization, arXiv 2603.28743,
code microsoft/ArchScale: radius="current", scope="leaf".
A matrix or head that starts at zero is refused: it has no direction on a sphere.
A matrix that starts at zero has no direction: `init` refuses it, but cannot see values under `jax.jit`, and then the
matrix stays zero. With radius="initial" call `init` on the weights that are trained: weights loaded afterwards are
pulled to the norms that `init` saw.
Non-finite gradients enter the averages and stay; `optax.apply_if_finite` keeps them out.
"""

from typing import Any

import optax

from momentax import checks
from momentax.decays import take_step
from momentax.routing import Routing
from momentax.transforms import retract_to_sphere, scale_by_adam
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import partition_by_rule


def adamh(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    nesterov: bool = False,
    radius: str = "initial",
    scope: str = "matrix",
    decay: str = "decoupled",
    rest: optax.GradientTransformation | None = None,
    rest_learning_rate: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    routing: Routing | None = None,
    head: str | None = None,
    mesh: Any = None,
    param_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamH for matrices and output heads, AdamW for the rest. Defaults as in the runs of the code.

    Args:
      learning_rate: eta, the tangent of the angle by which a matrix turns at most; number or schedule.
      b1: decay of the average gradient; number or schedule.
      b2: decay of the average squared gradient; number or schedule.
      eps: added to the root in (1), and floor of the norms in (2); number or schedule.
      weight_decay: lam, per unit of learning rate, of all leaves; number or schedule. None is off. On the sphere,
        before (2), it only changes the step size, unless radius="current".
      nesterov: look one step ahead in (1).
      radius: "initial", that of the start, or "current", that of each step; see `momentax.retract_to_sphere`.
      scope: "matrix", a sphere for each matrix of a stack, or "leaf", one for all of them.
      decay: form of the weight decay, "decoupled" or "cautious".
      rest: transformation for embeddings and vectors, its learning rate included. None is AdamW with the same numbers.
      rest_learning_rate: of the default rest; number or schedule. None is that of the matrices, as in the code.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf.
      mu_dtype: dtype of the average gradient; None means the leaf's own, float32 for half precision.
      nu_dtype: dtype of the average squared gradient; None likewise.
      routing: states what leaves are and their axes; None for the conventions of Flax.
      head: path pattern of output heads, on top of those that routing recognises by name.
      mesh: on which the parameters lie; see `momentax.on_mesh`.
      param_specs: their partitions; see `momentax.on_mesh`.

    Raises:
      ValueError: a coefficient out of range, a matrix or head that starts at zero, or a leaf that cannot be told.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.adamh(0.015)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("adamh", learning_rate)
    rest_learning_rate = learning_rate if rest_learning_rate is None else rest_learning_rate
    adam = scale_by_adam(b1, b2, eps, nesterov=nesterov, mu_dtype=mu_dtype, nu_dtype=nu_dtype)

    def matrices(routing):
        sphere = retract_to_sphere(
            learning_rate,
            weight_decay,
            weight_decay_mask,
            radius=radius,
            decay=decay,
            scope=scope,
            eps=eps,
            routing=routing,
        )
        return optax.chain(adam, sphere)

    adamw = optax.chain(adam, take_step(rest_learning_rate, weight_decay, weight_decay_mask, decay=decay))
    parts = {"matrix": matrices, "head": matrices, "rest": adamw if rest is None else rest}
    return partition_by_rule(parts, routing, head=head, mesh=mesh, param_specs=param_specs)
