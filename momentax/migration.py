"""Takes over a training run from Optax: its moments and counts in the places where optimizers of this library look."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from momentax.paths import leaf_path, named_leaves
from momentax.transforms import AverageGradientsState, HeavyBallState, ScaleByAdamState, ScaleByLionKState
from momentax.typing import Params, Transformation

# For each state of Optax the fields to move; for each where its slots come from.
THEIRS: Mapping[type, tuple[str, ...]] = {
    optax.ScaleByAdamState: ("mu", "nu"),
    optax.TraceState: ("trace",),
    optax.ScaleByLionState: ("mu",),
    optax.contrib.MuonState: ("mu",),
    optax.ScaleByScheduleState: (),
}
SOURCES: Mapping[type, Mapping[str, tuple[type, str]]] = {
    ScaleByAdamState: {"mu": (optax.ScaleByAdamState, "mu"), "nu": (optax.ScaleByAdamState, "nu")},
    AverageGradientsState: {"mu": (optax.contrib.MuonState, "mu")},
    HeavyBallState: {"mu": (optax.TraceState, "trace")},
    ScaleByLionKState: {"mu": (optax.ScaleByLionState, "mu")},
    # parts of a chain that stay Optax's
    optax.ScaleByAdamState: {"mu": (optax.ScaleByAdamState, "mu"), "nu": (optax.ScaleByAdamState, "nu")},
    optax.TraceState: {"trace": (optax.TraceState, "trace")},
    optax.ScaleByLionState: {"mu": (optax.ScaleByLionState, "mu")},
}
WEIGHTS = ("mu_weight", "nu_weight")


class _Slot(NamedTuple):
    """A leaf of Optax's state that is to be moved: the state and field it is of, and the path of its parameter."""

    state: type
    field: str
    path: str

    def __str__(self) -> str:
        return f"leaf '{self.path}' of `{self.field}` in {self.state.__name__}"


def from_optax(tx: Transformation, params: Params, state: optax.OptState, count: int | None = None) -> optax.OptState:
    """The state with which `tx` goes on where an optimizer of Optax stopped.

    Moments move from `optax.adam`, `optax.adamw` and what else holds `optax.scale_by_adam` to `momentax.scale_by_adam`,
    from `optax.sgd` to `momentax.heavy_ball`, from `optax.lion` to `momentax.scale_by_lion_k`, and from
    `optax.contrib.muon` to `momentax.average_gradients`, wherever these stand in `tx`. Counts become the steps taken,
    so that schedules go on; weights that debias averages are those of averages of this age with the decays of `tx`.
    What Optax keeps in its functions and not in moments, learning rates, decays, Muon's coefficients, is what `tx`
    says. That of `optax.contrib.muon(rate, weight_decay=a, adam_weight_decay=b)` is `momentax.muon(rate,
    weight_decay=a, bias_correction="optax", eps=1e-8, rest=optax.adamw(rate, weight_decay=b, nesterov=True))`, for the
    same matrices; the rate of `rest` is its `adam_learning_rate`, where that is given.

    Args:
      tx: the transformation that is to go on.
      params: the parameters, as they are now.
      state: of the Optax optimizer.
      count: steps taken, where `state` does not say, as that of `optax.sgd` without a schedule.

    Returns:
      A state of `tx`. Its moments are the arrays of `state`, where dtypes agree: donate or drop that.

    Raises:
      ValueError: something in `state` that would be lost, something in `tx` that would have to be made up, leaves that
        do not match the parameters, or counts that disagree. Nothing is dropped.

    Example:
      >>> import jax.numpy as jnp, momentax, optax
      >>> params = {"kernel": jnp.ones((2, 3))}
      >>> before = optax.adamw(1e-3)
      >>> _, state = before.update(params, before.init(params), params)
      >>> tx = momentax.adamp(1e-3)  # Adam, and a projection
      >>> state = momentax.from_optax(tx, params, state)
      >>> int(state[0].inner.count), round(float(state[0].inner.nu_weight), 6)
      (1, 0.001)
    """
    slots, counts = _read(state)
    known = dict(named_leaves(params))
    for slot, leaf in slots.items():
        if slot.path not in known or jnp.shape(leaf) != jnp.shape(known[slot.path]):
            expected = f"{jnp.shape(known[slot.path])}" if slot.path in known else "no such leaf"
            raise ValueError(
                f"from_optax: {slot} has shape {jnp.shape(leaf)}, and the parameters have {expected}: pass the "
                "parameters that this state was made for."
            )
    taken = _one_count(counts, count)
    used: set[_Slot] = set()

    def fill(path, node):
        sources = SOURCES.get(type(node), {})
        filled = {}
        for field in sources:
            named, treedef = named_leaves(getattr(node, field)), jax.tree.structure(getattr(node, field))
            wanted = [_Slot(*sources[field], at) for at, _ in named]
            for slot in wanted:
                if slot not in slots:
                    others = sorted({f"`{o.field}` of {o.state.__name__}" for o in slots if o.path == slot.path})
                    raise ValueError(
                        f"from_optax: `{field}` of {type(node).__name__} needs {slot}, and Optax's state has "
                        f"{' and '.join(others) or 'nothing'} for this parameter: both must give it to one method. "
                        "Change the routing of `tx` (momentax.routing.explain shows it), or Optax's."
                    )
            used.update(wanted)
            moved = [jnp.asarray(slots[slot], x.dtype) for slot, (_, x) in zip(wanted, named, strict=True)]
            filled[field] = jax.tree.unflatten(treedef, moved)
        if not sources:
            return _scalar(path, node, taken)
        for field, value in node._asdict().items():
            if field in WEIGHTS:
                continue  # `_weigh` fills them
            if field not in sources:
                filled[field] = jax.tree_util.tree_map_with_path(
                    lambda at, x, field=field: _scalar((*path, jax.tree_util.GetAttrKey(field), *at), x, taken), value
                )
        return node._replace(**filled)

    template = jax.eval_shape(tx.init, params)
    result = jax.tree_util.tree_map_with_path(fill, template, is_leaf=lambda node: type(node) in SOURCES)
    lost = [slot for slot in slots if slot not in used]
    if lost:
        raise ValueError(
            f"from_optax: `tx` has no place for {lost[0]}, which would be lost: `tx` must hold that kind of momentum "
            "for this parameter, for example momentax.scale_by_adam for optax.adamw."
        )
    return _weigh(tx, params, result, taken)


def _read(state: optax.OptState) -> tuple[dict[_Slot, jax.Array], list[jax.Array]]:
    """What is to be moved, and the counts."""
    slots: dict[_Slot, jax.Array] = {}
    counts = []
    for path, node in named_leaves(state, lambda node: type(node) in THEIRS):
        if type(node) not in THEIRS:
            raise ValueError(
                f"from_optax: no rule moves leaf '{path}' of Optax's state. States of adam, adamw, "
                "sgd, lion and contrib.muon can be moved; of a wrapper such as optax.inject_hyperparams or "
                "optax.MultiSteps pass the state inside."
            )
        if "count" in node._fields:
            counts.append(node.count)
        for field in THEIRS[type(node)]:
            for at, leaf in named_leaves(getattr(node, field)):
                slot = _Slot(type(node), field, at)
                if slot in slots:
                    raise ValueError(f"from_optax: Optax's state has two of {slot}: move the parts of it one by one.")
                slots[slot] = leaf
    return slots, counts


def _one_count(counts: list[jax.Array], count: int | None) -> jax.Array:
    found = sorted({int(value) for value in counts} | ({count} if count is not None else set()))
    if len(found) > 1:
        raise ValueError(f"from_optax: the state was made in {found} steps, by its counts or `count`: they must agree.")
    if not found:
        raise ValueError("from_optax: this state does not say how many steps were taken: pass `count`.")
    return jnp.asarray(found[0], jnp.int32)


def _scalar(path: Any, leaf: Any, count: jax.Array) -> jax.Array:
    """What stands for a leaf that is no slot: the count, or nothing."""
    name = leaf_path(path)
    if name.split("/")[-1] == "count" and leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.integer):
        return jnp.copy(count)  # one buffer each: states are donated
    raise ValueError(
        f"from_optax: '{name}' in the state of `tx` has no counterpart in Optax's, and would have to be made up. Move "
        "to the part of `tx` that has one, or fill this part with `tx.init(params)` yourself."
    )


def _weigh(tx: Transformation, params: Params, state: Any, count: jax.Array) -> Any:
    """Fills what is still a type: the weights 1 - prod b of averages, with the decays of `tx` at each step."""
    flat, treedef = jax.tree.flatten(state)
    open_ = [at for at, leaf in enumerate(flat) if isinstance(leaf, jax.ShapeDtypeStruct)]
    if not open_:
        return state
    shapes = [(leaf.shape, leaf.dtype) for leaf in flat]
    update = optax.with_extra_args_support(tx).update

    def step(taken, weights, params):
        fresh = [jnp.zeros(*shape) if jnp.issubdtype(shape[1], jnp.inexact) else taken for shape in shapes]
        after = update(jax.tree.map(jnp.zeros_like, params), jax.tree.unflatten(treedef, fresh), params)[1]
        shares = [jax.tree.leaves(after)[at] for at in open_]  # of an average without weight it is 1 - b
        return [weight + share * (1 - weight) for weight, share in zip(weights, shares, strict=True)]

    start = [jnp.zeros(*shapes[at]) for at in open_]
    run = jax.jit(lambda count, params: jax.lax.fori_loop(0, count, lambda at, w: step(at, w, params), start))
    for at, weight in zip(open_, run(count, params), strict=True):
        flat[at] = weight
    return jax.tree.unflatten(treedef, flat)
