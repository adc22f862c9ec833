"""A decoder-only transformer over bytes: scanned layers, rematerialised, dense or with a mixture of experts.

Parameters are a dictionary of arrays with the names of Flax; those of all layers are stacked on a leading axis, experts
on the one after it. `leaves` says for each its shape, its first values and where it lies on the mesh, whose axes are
data    copies of the model, each with its own part of the batch
fsdp    divides the batch and every matrix along one side
expert  divides the experts and the batch; to all other matrices it is more of fsdp
tensor  divides every matrix along the other side: heads, and the hidden layer of the MLP
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "expert", "tensor")
BATCH = ("data", "fsdp", "expert")  # axes that divide the batch
SHARDS = ("fsdp", "expert")  # axes that divide the matrices of the dense layers
CHOICES = 2  # experts that a byte is sent to
CAPACITY = 1.25  # places of an expert per sequence, in units of its fair share; what finds no place skips the layer
BALANCE = 0.01  # weight of the loss that keeps experts equally busy


@dataclasses.dataclass(frozen=True)
class Model:
    layers: int
    width: int
    heads: int
    hidden: int  # of the MLP, or of each expert
    experts: int = 0  # 0: a dense MLP
    dtype: Any = jnp.float32  # of activations and of the copies of the parameters that multiply them
    remat: str = "full"
    attention: str = "xla"


PRESETS = {
    "tiny": {"layers": 2, "width": 64, "heads": 8, "hidden": 192},
    # GPT-2's depth and width; a table of bytes is small, so its parameters went to the MLP
    "124m": {"layers": 12, "width": 768, "heads": 12, "hidden": 3456},
    # the layers of a Llama of 7 B; 6.5 B without its tables of tokens
    "7b": {"layers": 32, "width": 4096, "heads": 32, "hidden": 11008},
}


class Leaf(NamedTuple):
    shape: tuple[int, ...]
    spec: P
    deviation: float | None  # of the normal distribution that it starts from; None: ones


def leaves(model: Model) -> dict[str, Any]:
    """The parameters as a tree of `Leaf`: the only place that names them."""

    def kernel(rows: int, columns: int, row_axes: Any, column_axes: Any, experts: int = 0, depth: int = 1) -> Any:
        axes = (model.layers, *((experts,) if experts else ()), rows, columns)
        spec = P(None, *(("expert",) if experts else ()), row_axes, column_axes)
        return {"kernel": Leaf(axes, spec, (rows * depth) ** -0.5)}

    d, hidden, deep = model.width, model.hidden, 2 * model.layers  # residual branches start small
    scale = {"scale": Leaf((model.layers, d), P(), None)}
    blocks = {"attention_norm": scale, "mlp_norm": scale}
    blocks["attention"] = {name: kernel(d, d, SHARDS, "tensor") for name in ("query", "key", "value")}
    blocks["attention"]["out"] = kernel(d, d, "tensor", SHARDS, depth=deep)
    many, rest = model.experts, "fsdp" if model.experts else SHARDS
    mlp = {name: kernel(d, hidden, rest, "tensor", many) for name in ("gate", "up")}
    mlp["down"] = kernel(hidden, d, "tensor", rest, many, deep)
    if many:
        blocks |= {"router": kernel(d, many, SHARDS, None), "experts": mlp}
    else:
        blocks["mlp"] = mlp
    return {
        "embed": {"embedding": Leaf((256, d), P(None, SHARDS), 1.0)},
        "blocks": blocks,
        "norm": {"scale": Leaf((d,), P(), None)},
        "head": {"kernel": Leaf((d, 256), P(SHARDS, None), d**-0.5)},
    }


def is_leaf(node: Any) -> bool:
    return isinstance(node, Leaf)


def start(model: Model, key: jax.Array) -> Any:
    """The first parameters, float32; the same on every mesh."""
    tree, structure = jax.tree.flatten(leaves(model), is_leaf=is_leaf)
    keys = jax.random.split(key, len(tree))
    values = [
        jnp.ones(leaf.shape) if leaf.deviation is None else leaf.deviation * jax.random.normal(one, leaf.shape)
        for leaf, one in zip(tree, keys, strict=True)
    ]
    return structure.unflatten(values)


def losses(model: Model, mesh: Mesh, params: Any, windows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What to minimise, and the bits per byte, of windows `(batch, sequence + 1)`; both float32."""

    def place(x: jax.Array, *spec: Any) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

    def used(params: Any, leaves: Any, dropped: int = 0) -> Any:
        """The parameters as they multiply: rounded, which halves what travels, then whole along all axes but tensor."""

        def one(leaf: Leaf, p: jax.Array) -> jax.Array:
            spec = leaf.spec[dropped:]
            whole = P(*[None if axes in (SHARDS, "fsdp") else axes for axes in spec])
            return gathered(p.astype(model.dtype), NamedSharding(mesh, P(*spec)), NamedSharding(mesh, whole))

        return jax.tree.map(one, leaves, params, is_leaf=is_leaf)

    described = leaves(model)
    outer = {name: used(params[name], described[name]) for name in ("embed", "norm", "head")}
    tokens, targets = windows[:, :-1], windows[:, 1:]
    # A product, as the table is small: the gradient of a lookup is a scatter, which meshes divide badly.
    x = place(jax.nn.one_hot(tokens, 256, dtype=model.dtype) @ outer["embed"]["embedding"], BATCH)
    angles = rotations(tokens.shape[1], model.width // model.heads)

    def layer(x: jax.Array, params: Any) -> tuple[jax.Array, jax.Array]:
        params = used(params, described["blocks"], dropped=1)
        x = x + attend(model, place, params["attention"], normalize(x, params["attention_norm"]), angles)
        h = normalize(x, params["mlp_norm"])
        if not model.experts:
            return place(x + mlp(place, params["mlp"], h), BATCH), jnp.zeros((), jnp.float32)
        h, balance = mixture(model, place, params, h)
        return place(x + h, BATCH), balance

    if model.remat != "none":
        policies = jax.checkpoint_policies
        policy = policies.dots_with_no_batch_dims_saveable if model.remat == "dots" else policies.nothing_saveable
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)  # a scan cannot undo it
    x, balance = jax.lax.scan(layer, x, params["blocks"])
    logits = place((normalize(x, outer["norm"]) @ outer["head"]["kernel"]).astype(jnp.float32), BATCH)
    nats = optax.softmax_cross_entropy(logits, jax.nn.one_hot(targets, 256)).mean()
    return nats + BALANCE * balance.mean(), nats / math.log(2)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gathered(x: jax.Array, stored: NamedSharding, used: NamedSharding) -> jax.Array:
    """x where it is used; its gradient where it is stored. Left to itself the compiler may move activations instead."""
    return jax.lax.with_sharding_constraint(x, used)


gathered.defvjp(
    lambda x, stored, used: (gathered(x, stored, used), None),
    lambda stored, used, _, gradient: (jax.lax.with_sharding_constraint(gradient, stored),),
)


def normalize(x: jax.Array, params: Any) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + 1e-6)
    return wide.astype(x.dtype) * params["scale"]


def rotations(sequence: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines `(sequence, 1, size / 2)` of the rotary position embedding."""
    rates = 10_000.0 ** (-jnp.arange(size // 2) / (size // 2))
    angles = jnp.arange(sequence)[:, None, None] * rates
    return jnp.cos(angles), jnp.sin(angles)


def attend(model: Model, place: Callable, params: Any, x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    def project(name: str) -> jax.Array:
        y = x @ params[name]["kernel"]
        return place(y.reshape(*y.shape[:2], model.heads, -1), BATCH, None, "tensor")

    def rotate(y: jax.Array) -> jax.Array:
        (cosine, sine), (a, b) = angles, jnp.split(y.astype(jnp.float32), 2, -1)
        return jnp.concatenate([a * cosine - b * sine, a * sine + b * cosine], -1).astype(y.dtype)

    query, key, value = rotate(project("query")), rotate(project("key")), project("value")
    y = jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation=model.attention)
    return place(y.reshape(x.shape), BATCH, None, "tensor") @ params["out"]["kernel"]


def mlp(place: Callable, params: Any, x: jax.Array) -> jax.Array:
    h = jax.nn.silu(x @ params["gate"]["kernel"]) * (x @ params["up"]["kernel"])
    return place(h, BATCH, None, "tensor") @ params["down"]["kernel"]


def mixture(model: Model, place: Callable, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sends each byte to `CHOICES` experts; the second result is 1 where all are equally busy, and more elsewhere.

    Places are counted in each sequence alone: what is computed does not depend on the mesh.
    """
    batch, sequence, width = x.shape
    places = math.ceil(CAPACITY * CHOICES * sequence / model.experts)
    odds = jax.nn.softmax((x @ params["router"]["kernel"]).astype(jnp.float32))
    weights, chosen = jax.lax.top_k(odds, CHOICES)  # (batch, sequence, CHOICES)
    weights = weights / weights.sum(-1, keepdims=True)
    chosen = chosen.reshape(batch, -1)
    asked = jax.nn.one_hot(chosen, model.experts, dtype=jnp.int32)  # (batch, sequence * CHOICES, experts)
    queue = jnp.sum(jnp.cumsum(asked, 1) * asked, -1) - 1
    slot = jnp.where(queue < places, chosen * places + queue, model.experts * places)  # the last: no place

    sent = jax.vmap(lambda x, slot: jnp.zeros((model.experts * places, width), x.dtype).at[slot].set(x, mode="drop"))
    h = place(sent(jnp.repeat(x, CHOICES, 1), slot), BATCH).reshape(batch, model.experts, places, width)
    h = place(h, ("data", "fsdp"), "expert")  # bytes travel to their experts
    experts = {name: params["experts"][name]["kernel"] for name in ("gate", "up", "down")}
    gate, up = (jnp.einsum("becd,edf->becf", h, experts[name]) for name in ("gate", "up"))
    h = place(jax.nn.silu(gate) * up, ("data", "fsdp"), "expert", None, "tensor")
    h = place(jnp.einsum("becf,efd->becd", h, experts["down"]), ("data", "fsdp"), "expert")
    h = place(h, BATCH).reshape(batch, -1, width)  # and back
    back = jax.vmap(lambda h, slot: h.at[slot].get(mode="fill", fill_value=0))(h, slot)
    y = jnp.sum(back.reshape(batch, sequence, CHOICES, width) * weights[..., None].astype(x.dtype), 2)
    busy = asked.astype(jnp.float32).mean((0, 1))
    return y, model.experts * jnp.sum(busy * odds.mean((0, 1)))
