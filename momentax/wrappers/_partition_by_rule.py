"""Different transformations for matrices, output heads, embeddings and vectors, told apart by routing.

    u_l = T_k(g)_l,   k = the kind of leaf l                                  (1)

g: gradients; T: one transformation a kind, which sees the leaves of its kind alone. Kinds are "matrix", "head" (the
matrix that gives the logits), "embedding" and "vector"; "rest" stands for those that are not named.

Contract: wrapper.
Source: the partition of Muon's code (embeddings, head, gains and biases go to Adam), as `optax.partition` does it.
Departure: what a leaf is comes from its name and from the leaves beside it (`momentax.routing`), not from its rank, and
a leaf that cannot be told is refused.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from momentax import checks, leaves
from momentax.paths import paths_of
from momentax.routing import Routing, Rule, resolve
from momentax.wrappers._on_mesh import on_mesh

KINDS = ("matrix", "head", "embedding", "vector", "rest")
Part: TypeAlias = optax.GradientTransformation | Callable[[Any], optax.GradientTransformation]


def partition_by_rule(
    transforms: Mapping[str, Part],
    routing: Routing | None = None,
    *,
    head: str | None = None,
    mesh: Any = None,
    param_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Gives each kind of leaf to its own transformation.

    Args:
      transforms: from kinds to transformations; those of "matrix" and "head" may be functions from a routing to a
        transformation: a part that reads matrices gets the rules that were resolved on the whole tree, since it sees
        no biases beside its leaves. Leaves without entries are given to "rest".
      routing: states what leaves are and their axes; None for the conventions of Flax.
      head: path pattern of output heads, on top of those that routing recognises by name.
      mesh: on which the parameters lie; see `momentax.on_mesh`.
      param_specs: their partitions; see `momentax.on_mesh`.

    Returns:
      A transformation whose state is that of `optax.partition`.

    Raises:
      ValueError: an unknown kind, a leaf of a kind without transformation, or a leaf that cannot be told.

    Example:
      >>> import jax.numpy as jnp, momentax, optax
      >>> tx = momentax.partition_by_rule({
      ...     "matrix": lambda routing: optax.chain(
      ...         momentax.average_gradients(0.95, debias=False, nesterov=True),
      ...         momentax.orthogonalize(routing=routing),
      ...         momentax.scale_by_matrix_shape(routing=routing),
      ...         momentax.decays.take_step(0.02, 0.01),
      ...     ),
      ...     "rest": optax.adamw(3e-4),
      ... })
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    for kind, part in transforms.items():
        checks.check_choice("partition_by_rule", "transforms", kind, KINDS)
        may_read = kind in ("matrix", "head") and callable(part)
        built = part(routing) if may_read else part  # bad choices are refused now
        checks.check_transformation("partition_by_rule", f"transforms['{kind}']", built)

    def parts(tree: Any) -> optax.GradientTransformationExtraArgs:
        rules = resolve("partition_by_rule", tree, routing, head=head, certain=True, strict=True)
        paths = paths_of(tree)
        labels = list(map(functools.partial(_label, transforms), paths, jax.tree.leaves(tree), rules))
        resolved = dict(zip(paths, rules, strict=True))

        def stated(path, leaf):
            del leaf
            return resolved[path]

        built = {kind: part(stated) if callable(part) else part for kind, part in transforms.items()}
        tree_of_labels = jax.tree.unflatten(jax.tree.structure(tree), labels)
        return optax.partition(built, lambda _: tree_of_labels)  # a tree may be callable: Equinox modules are

    def init(params):
        return parts(params).init(params)

    def update(updates, state, params=None, **extra_args):
        leaves.leaves_like("partition_by_rule", updates, params)
        return parts(updates).update(updates, state, params, **extra_args)

    whole = optax.GradientTransformationExtraArgs(init, update)
    return whole if mesh is None and param_specs is None else on_mesh(whole, mesh, param_specs)


def _label(transforms: Mapping[str, Part], path: str, leaf: Any, rule: Rule) -> str:
    label = rule.kind if rule.kind in transforms and jnp.size(leaf) else "rest"
    label = rule.kind if label not in transforms else label  # without a rest, leaves of no entries stay where they are
    if label not in transforms:
        raise ValueError(
            f"partition_by_rule: leaf '{path}' {jnp.shape(leaf)} is read as kind '{rule.kind}' ({rule.reason}), for "
            f"which there is no transformation: add '{rule.kind}' or 'rest' to `transforms`."
        )
    return label
