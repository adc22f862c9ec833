"""A step along a sphere: matrices keep their norm, and the learning rate becomes an angle.

    W  <- (1 - eta lam) W                         (1)  decay="decoupled"
    W  <- W - eta lam [W U >= 0] W                (1)  decay="cautious", entry by entry
    R   = |W_0|                                   (2)  radius="initial": the norm of the matrix when `init` saw it
    R   = |W|                                     (2)  radius="current": its norm in this step, after (1)
    W'  = W - s U,   s = eta R / max(|U|, eps)    (3)
    W+  = R W' / max(|W'|, eps)                   (4)
    |W'|^2 = |W|^2 - 2 s <W, U> + s^2 |U|^2       (5)  one pass over memory gives all norms

W: parameter; U: direction, same shape; |.|: Frobenius norm of each matrix of a stack, or, with scope="leaf", of the
leaf; eta: `learning_rate`; lam: `weight_decay`. The length of U does not matter. W+ - W is the part of -eta R U / |U|
that is tangential to the sphere, up to O(eta^2) R. (5) is as exact as the norm itself, but for eta near 1.

With radius="initial", decoupled decay is no more than a learning rate of eta / (1 - eta lam). With radius="current" it
shrinks the radius: R_t = R_0 prod(1 - eta lam), and so does rounding, either way, step after step.

Contract: terminal (contains the learning rate and ends the chain).
Source: Wen et al., Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization, arXiv
2606.16899, (2) "initial"; Ren et al., Rethinking Language Model Scaling under Transferable Hypersphere Optimization,
arXiv 2603.28743, code microsoft/ArchScale: radius="current", scope="leaf"; code microsoft/dion (muonh.py of its
history): radius="initial", (5).
A zero direction leaves the weight alone, unless decay or rounding had moved it. A zero matrix has no direction and
stays zero: `init` refuses it where it can see values, which it cannot under `jax.jit` and `jax.eval_shape`. A direction
that is not finite poisons its own matrix; `optax.apply_if_finite` keeps it out. Norms beyond 1e19 overflow in float32.
With radius="initial" call `init` on the weights that are trained: those loaded later are pulled to the norms of `init`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from momentax import checks, leaves, scalars
from momentax.matrices import Matrices, matrices
from momentax.paths import named_leaves
from momentax.routing import Routing
from momentax.typing import Count, Mask, ScalarOrSchedule


class RetractToSphereState(NamedTuple):
    """State of `retract_to_sphere`.

    Attributes:
      count: steps taken, int32 scalar.
      radius: R of all matrices, in one vector, their norms at the start; None with radius="current".
    """

    count: Count
    radius: jax.Array | None


def retract_to_sphere(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    *,
    radius: str = "initial",
    decay: str = "decoupled",
    scope: str = "matrix",
    eps: ScalarOrSchedule = 1e-8,
    routing: Routing | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Turns a direction into a step along the sphere on which each matrix lies.

    It takes matrices and output heads; what else should lie on a sphere, such as an embedding, is stated to be a
    matrix by `routing`.

    Args:
      learning_rate: eta, the tangent of the angle by which a matrix turns at most; number or schedule. 0.015 in the
        code of MuonH.
      weight_decay: lam in (1), per unit of learning rate; number or schedule; None is off.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix of one, or a function of the parameters. None
        decays every leaf.
      radius: "initial" or "current", (2). "initial" takes back what decay and rounding do to the norm.
      decay: "decoupled" or "cautious", (1).
      scope: "matrix", one norm a matrix, or "leaf", one norm for all matrices of a stack.
      eps: floor of the norms, in units of the direction and of the weight, above zero; number or schedule. 1e-8 as in
        the code of MuonH.
      routing: states the axes of matrices and stacks; None for the conventions of Flax.

    Raises:
      ValueError: a number out of range, an unknown choice, missing `params`, a matrix that is zero at `init`, a leaf
        that is no matrix, or one whose axes cannot be told.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.retract_to_sphere(0.75)
      >>> w = {"kernel": jnp.array([[5.0, 0.0]])}
      >>> u, _ = tx.update({"kernel": jnp.array([[0.0, -0.1]])}, tx.init(w), w)
      >>> print(w["kernel"] + u["kernel"])
      [[4. 3.]]
    """
    checks.check_learning_rate("retract_to_sphere", learning_rate)
    checks.check_non_negative("retract_to_sphere", weight_decay=weight_decay)
    checks.check_positive("retract_to_sphere", eps=eps)
    checks.check_choice("retract_to_sphere", "radius", radius, ("initial", "current"))
    checks.check_choice("retract_to_sphere", "decay", decay, ("decoupled", "cautious"))
    checks.check_choice("retract_to_sphere", "scope", scope, ("matrix", "leaf"))

    def stacks(read: Matrices) -> list[tuple[int, ...]]:
        return [rule.batch_axes if scope == "matrix" else () for rule in read.rules]

    def init(params):
        read = matrices("retract_to_sphere", params, routing)
        norms = leaves.each(
            "retract_to_sphere",
            lambda w, stack: jnp.sqrt(scalars.sum_over(w * w, stack)),
            read.apart(params),
            per_leaf=[stacks(read)],
        )
        _refuse_zero(params, norms)
        count = jnp.zeros([], jnp.int32)
        if radius == "current":
            return RetractToSphereState(count, None)
        norms = [norm.astype(leaves.float_dtype()) for norm in norms]
        return RetractToSphereState(count, scalars.pack(norms) if norms else jnp.zeros([1]))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        params = leaves.require_params("retract_to_sphere", params)
        leaves.leaves_like("retract_to_sphere", updates, params)
        decaying = weight_decay is not None
        masks = leaves.mask_leaves("retract_to_sphere", weight_decay_mask, params) if decaying else None
        read = matrices("retract_to_sphere", updates, routing)
        updates, params = map(read.apart, (updates, params))
        kept = stacks(read)
        radii: list[Any] = [None] * len(kept)
        if radius == "initial" and kept:
            radii = scalars.unpack("retract_to_sphere", state.radius, scalars.shapes(updates, kept))

        def leaf(u, w, rate, pull, floor, R, stack, decays):
            if decays:
                lost = rate * pull * w  # (1)
                v = w - (lost if decay == "decoupled" else jnp.where(w * u >= 0, lost, 0))
            else:
                v = w
            vv, vu, uu = (scalars.sum_over(x, stack) for x in (v * v, v * u, u * u))
            R = jnp.sqrt(vv) if R is None else R  # (2)
            s = rate * R / jnp.maximum(jnp.sqrt(uu), floor)  # (3)
            norm = jnp.sqrt(jnp.maximum(vv - 2 * s * vu + s * s * uu, 0))  # (5)
            return R / jnp.maximum(norm, floor) * (v - s * u) - w  # (4)

        updates = leaves.lift(
            "retract_to_sphere",
            leaf,
            updates,
            reads=[params],
            coefficients=[leaves.value_at(value, state.count) for value in (learning_rate, weight_decay, eps)],
            per_leaf=[radii, kept, masks or [False] * len(kept)],
        )
        return read.together(updates), RetractToSphereState(leaves.next_count(state.count), state.radius)

    return optax.GradientTransformationExtraArgs(init, update)


def _refuse_zero(params: Any, norms: list[jax.Array]) -> None:
    """A `ValueError` for the first matrix without a direction, where values can be seen."""
    for (path, leaf), norm in zip(named_leaves(params), norms, strict=True):
        visible = not isinstance(norm, jax.core.Tracer) and (norm.is_fully_addressable or norm.is_fully_replicated)
        if not visible or np.all(np.asarray(norm) != 0):
            continue
        where = "" if norm.size == 1 else f" (matrix {int(np.argmin(np.asarray(norm)))} of {norm.size})"
        raise ValueError(
            f"retract_to_sphere: leaf '{path}' {jnp.shape(leaf)}{where} has norm zero, and a matrix "
            "on a sphere needs a direction: initialise it with other values, or give it to another transformation "
            "with momentax.partition_by_rule or optax.partition."
        )
