"""Adam's direction: the average gradient over the root of the average squared gradient.

    m_t = b1 m_{t-1} + (1 - b1) g_t               (1)
    v_t = b2 v_{t-1} + (1 - b2) g_t^2             (2)
    D_t = sqrt(v_t) / sqrt(1 - prod b2) + eps     (3)  eps after the debiasing, as in torch and the paper
    u_t = m_t / D_t / (1 - prod b1)               (4)
    u_t = [b1 m_t + (1 - b1) g_t] / D_t / (1 - prod b1)    (5)  with nesterov=True
    D_t = (sqrt(v_t) + eps) / sqrt(1 - prod b2)   (6)  instead of (3) with eps_hat=True: eps is debiased, too
    w_t = max(w_{t-1}, v_t)                       (7)  takes the place of v_t in (3) and (6) with amsgrad=True

g: gradient, any shape; m, v: averages `mu`, `nu`, same shape, start at zero; all products elementwise.
The products of decays are kept as averages of ones (`mu_weight`, `nu_weight`), so schedules are debiased exactly. With
`debias` a function tau of the step count, 1 - b^tau with the present decay b stands in their place.

Contract: transform.
Source: Kingma & Ba, Adam, ICLR 2015 (arXiv 1412.6980); (6) is the more efficient order of their section 2, with epsilon
hat, as in the code of SPAM; (5) as in AdamP (arXiv 2006.08217, official code), which divides the Nesterov mixture by
the plain correction; (7) Reddi et al., AMSGrad, ICLR 2018 (arXiv 1904.09237), in the order of torch.
Non-finite gradients enter both averages and stay; `optax.apply_if_finite` keeps them out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves, scalars
from momentax.typing import Count, ScalarOrSchedule


class ScaleByAdamState(NamedTuple):
    """State of `scale_by_adam`.

    Attributes:
      count: steps taken, int32 scalar.
      mu: average gradient m, shaped like the parameters, starts at zero.
      nu: average squared gradient v, shaped like the parameters, starts at zero.
      mu_weight: 1 - prod b1, scalar, starts at zero; None unless debias=True.
      nu_weight: 1 - prod b2, scalar, starts at zero; None unless debias=True.
      nu_max: largest v so far, shaped like the parameters, starts at zero; None without amsgrad.
    """

    count: Count
    mu: optax.Updates
    nu: optax.Updates
    mu_weight: jax.Array | None
    nu_weight: jax.Array | None
    nu_max: optax.Updates | None


def scale_by_adam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    nesterov: bool = False,
    debias: bool | Callable[[Any], Any] = True,
    eps_hat: bool = False,
    amsgrad: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction, with schedules for every coefficient and a dtype for each slot.

    Args:
      b1: decay of the average gradient, in [0, 1); number or schedule. 0.9 as in the paper.
      b2: decay of the average squared gradient, in [0, 1); number or schedule. 0.999 as in the paper.
      eps: added to the root, in units of the gradient; number or schedule. 1e-8 as in the paper.
      nesterov: emit (5) instead of (4). This is AdamP's form, not that of optax.nadam.
      debias: True divides by the weights that the averages have; False does not; a function of the number of steps
        already taken gives the age tau after which a source believes them to be, for parity with its code.
      eps_hat: (6) instead of (3): early steps are then shorter where gradients are of the size of eps.
      amsgrad: (7): the step size of an entry never grows.
      mu_dtype: dtype of m; None means the leaf's own, float32 for bfloat16 and float16 leaves.
      nu_dtype: dtype of v and of its maximum; None likewise.

    Raises:
      ValueError: a decay is a number outside [0, 1), `eps` is negative, or the gradients do not match the state.
      TypeError: a leaf is not floating, or complex.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.scale_by_adam()
      >>> state = tx.init(jnp.zeros(2))
      >>> updates, state = tx.update(jnp.array([0.3, -20.0]), state)
      >>> print(updates.round(4))
      [ 1. -1.]
    """
    checks.check_fraction("scale_by_adam", b1=b1, b2=b2)
    checks.check_non_negative("scale_by_adam", eps=eps)

    checks.check_debias("scale_by_adam", debias)

    def init(params):
        def slot(dtype):
            return leaves.zeros_like("scale_by_adam", params, dtype)

        return ScaleByAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=slot(mu_dtype),
            nu=slot(nu_dtype),
            mu_weight=jnp.zeros([]) if debias is True else None,
            nu_weight=jnp.zeros([]) if debias is True else None,
            nu_max=slot(nu_dtype) if amsgrad else None,
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        decay1, decay2, floor = (leaves.value_at(value, state.count) for value in (b1, b2, eps))
        mu_weight, mu_divisor = scalars.debiasing(debias, state.count, state.mu_weight, decay1)
        nu_weight, nu_divisor = scalars.debiasing(debias, state.count, state.nu_weight, decay2)

        def leaf(g, m, v, w, decay1, decay2, floor, mu_divisor, nu_divisor):
            m = decay1 * m + (1 - decay1) * g  # (1)
            v = decay2 * v + (1 - decay2) * g * g  # (2)
            w = jnp.maximum(w, v) if amsgrad else None  # (7)
            size = jnp.sqrt(w if amsgrad else v)
            if eps_hat:
                root = (size + floor) / jnp.sqrt(nu_divisor)  # (6)
            else:
                root = size / jnp.sqrt(nu_divisor) + floor  # (3)
            u = decay1 * m + (1 - decay1) * g if nesterov else m
            return u / root / mu_divisor, m, v, w  # (4), (5)

        updates, mu, nu, nu_max = leaves.lift(
            "scale_by_adam",
            leaf,
            updates,
            state=[state.mu, state.nu, state.nu_max],
            coefficients=[decay1, decay2, floor, mu_divisor, nu_divisor],
        )
        count = leaves.next_count(state.count)
        return updates, ScaleByAdamState(count, mu, nu, mu_weight, nu_weight, nu_max)

    return optax.GradientTransformationExtraArgs(init, update)
