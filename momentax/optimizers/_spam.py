"""SPAM: Adam with clipped spikes, momentum that is reset now and then, and if wanted on a part of the weights.

    S  = floor(density * size) entries, chosen anew at every reset      (1)  sparse_momentum, where density is given
    m, v <- 0 at every reset, and the step size warms up from there     (2)  reset_momentum
    g  = gradient, large entries bounded by sqrt(theta v)               (3)  clip_spikes
    u  = [m / (1 - b1^t)] sqrt(1 - b2^t) / (sqrt(v) + eps)              (4)  scale_by_adam with eps_hat
    w  <- (1 - eta lam) (w - eta u)                                     (5)  decays.after_step; eta u is warmed up

The products in (4) do not restart at a reset (restart_bias=True restarts them): k steps after one, a constant gradient
has m / sqrt(v) = (1 - b1^k) / sqrt(1 - b2^k), 3.2 to 6.6 times the usual in the first hundred, which the warm-up tames.
Keep `warmup` well above 1 / (1 - b1), or restart them and shorten it. There is no warm-up at the start of training: use
a schedule. At the default theta a spike still slows its entries for some hundred steps, until v has forgotten it.

Contract: optimizer (chain of wrappers around a transform, and a terminal).
Source: Huang et al., SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training, ICLR 2025, arXiv 2501.06842;
official code TianjinYellow/SPAM-Optimizer, which variant="official" reproduces (its masks given by `masks`).
Departure: variant="paper" does not clip entries without a second moment, which the code freezes, and decays the
weights that are in S, which the code means to do, but the decay of its sparse leaves goes to a copy.
Infinite gradients are clipped where v is not zero; NaN stays until the next reset; `optax.apply_if_finite` keeps it
out.
"""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from momentax import checks, leaves
from momentax.decays import take_step
from momentax.paths import leaf_path
from momentax.routing import only_matrices
from momentax.transforms import scale_by_adam
from momentax.typing import Mask, ScalarOrSchedule
from momentax.wrappers import clip_spikes, reset_momentum, sparse_momentum


def spam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    threshold: ScalarOrSchedule | None = 5000.0,
    clip_after: int | None = 20,
    reset_every: int | None = 500,
    warmup: int | None = 150,
    density: float | None = None,
    density_mask: Mask | None = None,
    masks: Mapping[str, Any] | None = None,
    key: Any = 0,
    debias: bool = True,
    restart_bias: bool = False,
    variant: str = "paper",
    weight_decay_mask: Mask | None = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """SPAM. Defaults of the official code, whose learning rate is 1e-3.

    Args:
      learning_rate: eta; number or schedule.
      b1: decay of the average gradient; number or schedule.
      b2: decay of the average squared gradient; number or schedule.
      eps: added to the root before debiasing, in units of the gradient; number or schedule.
      weight_decay: lam, per unit of learning rate, applied after the step; number or schedule. None (off) is the
        default of the code.
      threshold: theta, largest squared gradient in units of its average; number or schedule; None does not clip. 5000
        is that of the paper; 50 keeps a spike from slowing its entries afterwards.
      clip_after: steps at the start and after each reset that are not clipped, or None.
      reset_every: steps between resets; None never resets.
      warmup: steps over which the step size returns after a reset; None is off.
      density: share of the entries of each sparse leaf that have momentum and move; None is off, and there is no
        default in the paper. Its state is 1.5 `density` times Adam's.
      density_mask: which leaves are sparse; None means `momentax.routing.only_matrices`.
      masks: instead of `density`, masks to replay; see `momentax.sparse_momentum`.
      key: seed of the choice, an integer or a jax.random key.
      debias: whether (4) divides by the weights of the averages.
      restart_bias: whether these weights restart at a reset.
      variant: "paper" or "official": see the departures of this file.
      weight_decay_mask: which leaves decay: a tree of bools, a prefix, or a function of the parameters, for example
        `momentax.routing.no_decay_on_vectors`. None decays every leaf, as the code does.
      mu_dtype: dtype of m; None means the leaf's own, float32 for half precision.
      nu_dtype: dtype of v; None likewise.

    Raises:
      ValueError: a coefficient out of range, `reset_every` below `warmup`, a leaf too small for `density`, or an
        unknown variant.

    Example:
      >>> import jax.numpy as jnp, momentax
      >>> tx = momentax.spam(1e-3, reset_every=200, warmup=50, density=0.5)
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    checks.check_learning_rate("spam", learning_rate)
    checks.check_choice("spam", "variant", variant, ("paper", "official"))
    checks.check_period("spam", "reset_every", reset_every, warmup)
    if density_mask is not None and density is None and masks is None:
        raise ValueError("spam: `density_mask` says which leaves are sparse: give `density`, too.")
    direction = scale_by_adam(b1, b2, eps, debias=debias, eps_hat=True, mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    if threshold is not None:
        direction = clip_spikes(direction, threshold, clip_after=clip_after, reset_every=reset_every, variant=variant)
    if reset_every is not None:
        keep = () if restart_bias else ("mu_weight", "nu_weight")
        direction = reset_momentum(direction, reset_every, warmup, keep=keep)

    def sparse_leaves(params):
        if masks is not None:
            return jax.tree.map_with_path(lambda path, _: leaf_path(path) in masks, params)
        return leaves.mask_tree("spam", only_matrices if density_mask is None else density_mask, params)

    def decayed_by_the_code(params):
        decayed = leaves.mask_tree("spam", weight_decay_mask, params)
        return jax.tree.map(lambda decays, sparse: decays and not sparse, decayed, sparse_leaves(params))

    def sparse(inner):
        if masks is not None:
            return sparse_momentum(inner, density, density_mask=density_mask, masks=masks, restart=False)
        return sparse_momentum(inner, density, reset_every, density_mask=sparse_leaves, restart=False, key=key)

    is_sparse, official = density is not None or masks is not None, variant == "official"
    mask = decayed_by_the_code if is_sparse and official else weight_decay_mask
    step = take_step(learning_rate, weight_decay, mask, decay="after_step")
    if not is_sparse:
        return optax.chain(direction, step)
    return optax.chain(sparse(direction), step) if official else sparse(optax.chain(direction, step))
