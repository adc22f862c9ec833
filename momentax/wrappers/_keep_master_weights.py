"""Master weights: the optimizer works on a copy of the parameters in a wider dtype.

    M_0 = W_0                          (1)  in `dtype`, for leaves of a narrower one
    U   = inner(G, M)                  (2)  gradients and parameters shown to `inner` in `dtype`
    M   <- M + U                       (3)
    u   = round(M) - W                 (4)  so that W + u = round(M)

W: parameter, any shape, bfloat16 or float16; M: its master, same shape. Leaves at least as wide as `dtype` have no
master and meet `inner` as they are.

Contract: wrapper, around a complete optimizer (learning rate included); ends the chain.
Source: Micikevicius et al., Mixed Precision Training, ICLR 2018, arXiv 1710.03740, section 3.1.
u has the dtype of the gradient. In that of W the difference (4) is exact while a weight keeps its sign and stays within
a factor of two; across a larger jump W lands within one rounding of the jump, and the next step corrects it.
A non-finite step poisons the master for good; guard the inner optimizer with `optax.apply_if_finite`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from momentax import checks, leaves
from momentax.typing import Transformation


class KeepMasterWeightsState(NamedTuple):
    """State of `keep_master_weights`.

    Attributes:
      inner: state of the inner optimizer, for parameters in `dtype`.
      master: tree like the parameters: M where the parameter is narrower than `dtype`, optax.MaskedNode elsewhere.
    """

    inner: optax.OptState
    master: Any


def keep_master_weights(inner: Transformation, dtype: Any = jnp.float32) -> optax.GradientTransformationExtraArgs:
    """Gives an optimizer float32 master weights, for parameters stored in bfloat16 or float16.

    Args:
      inner: complete optimizer, for example `momentax.adamp(1e-3)`.
      dtype: dtype of the master weights, floating.

    Raises:
      ValueError: `dtype` is not floating, or `params` is missing.
      TypeError: `inner` is no transformation, or a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, momentax, optax
      >>> tx = momentax.keep_master_weights(optax.sgd(1e-3))
      >>> params = jnp.ones(1, jnp.bfloat16)
      >>> state = tx.init(params)
      >>> for _ in range(100):  # without a master, every step of 0.001 would be rounded away
      ...     updates, state = tx.update(jnp.ones(1, jnp.bfloat16), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params)
      [0.898438]
    """
    checks.check_transformation("keep_master_weights", "inner", inner)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"keep_master_weights: `dtype` must be floating; got {dtype!r}.")
    inner = optax.with_extra_args_support(inner)

    def narrow(leaf):
        own = np.dtype(jnp.result_type(leaf))
        return np.promote_types(own, np.dtype(dtype)) != own

    def widen(tree):
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if narrow(leaf) else leaf, tree)

    def init(params):
        leaves.check_leaves("keep_master_weights", params, real=False)
        master = jax.tree.map(lambda p: p.astype(dtype) if narrow(p) else optax.MaskedNode(), params)  # (1)
        return KeepMasterWeightsState(inner.init(widen(params)), master)

    def update(updates, state, params=None, **extra_args):
        params = leaves.require_params("keep_master_weights", params)
        flat, treedef = jax.tree.flatten(params)
        kept = iter(jax.tree.leaves(state.master))
        wide = jax.tree.unflatten(treedef, [next(kept) if narrow(p) else p for p in flat])
        steps, inner_state = inner.update(widen(updates), state.inner, wide, **extra_args)  # (2)
        moved = jax.tree.leaves(optax.apply_updates(wide, steps))  # (3)
        new_updates = [
            (m.astype(p.dtype) - p if narrow(p) else u).astype(jnp.result_type(g))  # (4)
            for p, m, u, g in zip(flat, moved, jax.tree.leaves(steps), jax.tree.leaves(updates), strict=True)
        ]
        new_master = jax.tree.unflatten(
            jax.tree.structure(state.master), [m for p, m in zip(flat, moved, strict=True) if narrow(p)]
        )
        return jax.tree.unflatten(jax.tree.structure(updates), new_updates), KeepMasterWeightsState(
            inner_state, new_master
        )

    return optax.GradientTransformationExtraArgs(init, update)
