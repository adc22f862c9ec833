"""Replays every golden trajectory in float64: a file added to tests/golden is a test added.

`pytest tests/test_golden.py --golden DIR` replays the files of another folder as well; a file of a method that has no
adapter fails, it is never skipped. An adapter turns the file's hyperparameters into a call of the public factory and
contains none of the technique's arithmetic. Leaves stay in the layout of the source (axis 0 is the output), which the
adapters state through `routing`.

Tolerances are relative to the largest entry of each array; they are written once, in ADAPTERS, and never loosened
without a reason in the commit.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import momentax

FOLDER = pathlib.Path(__file__).parent / "golden"


def pytest_generate_tests(metafunc):
    if "golden_file" in metafunc.fixturenames:
        folders = [FOLDER, *map(pathlib.Path, metafunc.config.getoption("golden") or [])]
        files = [file for folder in folders for file in sorted(folder.glob("*.npz"))]
        empty = [str(folder) for folder in folders if not list(folder.glob("*.npz"))]
        if empty:
            raise pytest.UsageError(f"--golden: no .npz file in {', '.join(empty)}.")
        metafunc.parametrize("golden_file", files, ids=lambda file: f"{file.parent.name}/{file.stem}")


class Golden(NamedTuple):
    """One file, unpacked."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def hyper(self) -> dict[str, Any]:
        return self.meta["hyperparameters"]

    def tree(self, prefix: str) -> dict[str, np.ndarray]:
        return {key[len(prefix) :]: value for key, value in self.arrays.items() if key.startswith(prefix)}

    def learning_rate(self) -> Any:
        """A number, or a schedule where the file gives one rate a step."""
        rates = self.arrays.get("lr", self.meta.get("lr_schedule"))
        if rates is None:
            return self.hyper["lr"]
        rates = jnp.asarray(rates)
        return lambda count: rates[count]


class Replay(NamedTuple):
    """What an adapter returns: the optimizer, and where its state holds quantities that the file records."""

    tx: optax.GradientTransformation
    state: dict[str, Callable[[Any], Any]] = {}


AXIS_0_IS_OUTPUT = lambda path, leaf: (  # noqa: E731
    momentax.routing.matrix(range(1, leaf.ndim), (0,)) if leaf.ndim > 1 else momentax.routing.vector()
)


WITHOUT_EFFECT = ("case", "foreach", "framework", "layout", "leaves")


def take(hyper: dict[str, Any], *known: str, ignored: tuple[str, ...] = ()) -> list[Any]:
    """The hyperparameters by name; a file with one that the adapter does not know is refused."""
    unknown = set(hyper) - set(known) - set(ignored) - set(WITHOUT_EFFECT)
    assert not unknown, f"the adapter does not know the hyperparameters {sorted(unknown)}"
    return [hyper[name] for name in known]


def adamp(golden: Golden) -> Replay:
    _, betas, eps, decay, delta, ratio, nesterov = take(
        golden.hyper, "lr", "betas", "eps", "weight_decay", "delta", "wd_ratio", "nesterov"
    )
    tx = momentax.adamp(
        golden.learning_rate(),
        *betas,
        eps,
        decay,
        delta=delta,
        wd_ratio=ratio,
        nesterov=nesterov,
        routing=AXIS_0_IS_OUTPUT,
    )
    return Replay(tx, {"exp_avg": lambda s: s[0].inner.mu, "exp_avg_sq": lambda s: s[0].inner.nu})


def sgdp(golden: Golden) -> Replay:
    _, b1, dampening, decay, nesterov, eps, delta, ratio = take(
        golden.hyper, "lr", "momentum", "dampening", "weight_decay", "nesterov", "eps", "delta", "wd_ratio"
    )
    tx = momentax.sgdp(
        golden.learning_rate(),
        b1,
        dampening,
        eps,
        decay or None,
        delta=delta,
        wd_ratio=ratio,
        nesterov=nesterov,
        variant="official",
        routing=AXIS_0_IS_OUTPUT,
    )
    return Replay(tx, {"momentum": lambda s: s[0].inner.mu})


def adan(golden: Golden) -> Replay:
    _, betas, eps, decay, bound, decoupled = take(
        golden.hyper, "lr", "betas", "eps", "weight_decay", "max_grad_norm", "no_prox"
    )
    restart = golden.meta.get("restart_before_step_index")
    tx = momentax.adan(
        golden.learning_rate(),
        *betas,
        eps,
        decay,
        max_grad_norm=bound or None,
        decay="decoupled" if decoupled else "proximal",
        restart_when=None if restart is None else lambda count, updates, params: count == restart,
    )
    names = {"m": "mu", "v": "mu_difference", "n": "nu"}

    def direction(state):
        state = state[1 if bound else 0]
        return state if restart is None else state.inner

    return Replay(tx, {key: lambda s, f=field: getattr(direction(s), f) for key, field in names.items()})


def lion(golden: Golden) -> Replay:
    _, betas, decay = take(golden.hyper, "lr", "betas", "weight_decay")
    return Replay(
        momentax.lion_k(golden.learning_rate(), momentax.convex.l1(), *betas, decay), {"m": lambda s: s[0].mu}
    )


CONVEX = {
    "l1": ("l1",),
    "l2": ("l2",),
    "lp": ("lp", "p"),
    "linf": ("linf",),
    "topk": ("top_k", "k"),
    "deadzone": ("dead_zone", "e"),
    "huber": ("huber", "e"),
    "tanh": ("tanh", "s"),
    "relativistic": ("relativistic", "e"),
    "rownorm": ("row_norm",),
    "quadratic": ("quadratic",),
    "nuclear": ("nuclear",),
}  # from K to the function of momentax.convex and the hyperparameter it takes


def lion_k(golden: Golden) -> Replay:
    kind, betas, decay = take(golden.hyper, "K", "betas", "weight_decay", ignored=("lr", "e", "s", "p", "k"))
    assert kind in CONVEX, f"momentax has no convex function '{kind}'"
    factory, *parameters = CONVEX[kind]
    K = getattr(momentax.convex, factory)(*(golden.hyper[name] for name in parameters))
    tx = momentax.lion_k(golden.learning_rate(), K, *betas, decay, routing=AXIS_0_IS_OUTPUT)
    return Replay(tx, {"m": lambda s: s[0].mu})


def spam(golden: Golden) -> Replay:
    _, betas, eps, decay, debias, warmup, threshold, every, wait = take(
        golden.hyper,
        "lr",
        "betas",
        "eps",
        "weight_decay",
        "correct_bias",
        "warmup_steps",
        "threshold",
        "DeltaT",
        "grad_accu_steps",
        ignored=("no_deprecation_warning",),
    )
    masks = golden.tree("s/mask/")
    assert set(masks) == set(golden.meta.get("density_leaves") or ()), "every leaf with a density has its masks"
    tx = momentax.spam(
        golden.learning_rate(),
        *betas,
        eps,
        decay,
        threshold=threshold or None,
        clip_after=wait or None,
        reset_every=every,
        warmup=warmup or None,
        masks=masks or None,
        debias=debias,
        variant="official",
    )
    adam = (lambda s: s[0].inner) if masks else (lambda s: s[0])
    clipped = (lambda s: adam(s).inner.inner) if threshold else (lambda s: adam(s).inner)
    return Replay(tx, {"m": lambda s: clipped(s).mu, "v": lambda s: clipped(s).nu})


def stable_spam(golden: Golden) -> Replay:
    _, betas, eps, decay, amsgrad, gamma1, gamma2, gamma3, total, floor, every = take(
        golden.hyper,
        "lr",
        "betas",
        "eps",
        "weight_decay",
        "amsgrad",
        "gamma1",
        "gamma2",
        "gamma3",
        "total_T",
        "eta_min",
        "update_proj_gap",
    )
    tx = momentax.stable_spam(
        golden.learning_rate(),
        *betas,
        eps,
        decay,
        gamma1=None if gamma1 == -1 else gamma1,
        gamma2=gamma2,
        gamma3=gamma3,
        reset_every=every or None,
        total_steps=total,
        eta_min=floor,
        amsgrad=amsgrad,
        variant="official",
    )
    names = sorted(golden.tree("p0/"))
    vectors = {
        "m_max_t": lambda s: s[0].max_average,
        "m_norm_t": lambda s: s[1].norm_average,
        "v_norm_t": lambda s: s[1].norm_square_average,
    }
    return Replay(
        tx, {key: lambda s, read=read: dict(zip(names, read(s), strict=True)) for key, read in vectors.items()}
    )


def matrices_decay(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def am_msgd(golden: Golden) -> Replay:
    _, b1_max, proximity, decay = take(golden.hyper, "lr", "beta_max", "model_lambda", "weight_decay")
    tx = momentax.am_sgd(golden.learning_rate(), b1_max, proximity, decay, weight_decay_mask=matrices_decay)
    return Replay(tx, {"direction": lambda s: s[1].mu})


def am_adamw(golden: Golden) -> Replay:
    _, betas, eps, decay, proximity = take(golden.hyper, "lr", "betas", "eps", "weight_decay", "model_lambda")
    tx = momentax.am_adamw(golden.learning_rate(), *betas, eps, proximity, decay, weight_decay_mask=matrices_decay)
    return Replay(tx, {"direction": lambda s: s.mu, "exp_avg_sq": lambda s: s.nu})


def torch_sgd(golden: Golden) -> Replay:
    _, b1, dampening, nesterov, decay = take(golden.hyper, "lr", "momentum", "dampening", "nesterov", "weight_decay")
    momentum = momentax.heavy_ball(b1, dampening, nesterov) if b1 else optax.identity()
    return Replay(
        optax.chain(
            momentax.decays.decoupled(decay),  # in front of the momentum this is torch's coupled L2
            momentum,
            optax.scale_by_learning_rate(golden.learning_rate()),
        )
    )


def torch_layout(*vectors: str) -> Callable[[str, Any], Any]:
    """Leaves as torch has them: (out, in...), and (batch, out, in) at rank 3, where KJ's code takes a batch; the named
    ones are no matrices."""

    def rule(path, leaf):
        if leaf.ndim < 2 or path in vectors:
            return momentax.routing.vector()
        if leaf.ndim == 3:
            return momentax.routing.matrix((2,), (1,), (0,))
        return momentax.routing.matrix(range(1, leaf.ndim), (0,))

    return rule


def of_matrices(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What the chain for matrices keeps, without the leaves that are none."""
    return lambda s: read(s.inner_states["matrix"].inner_state)


def muon(golden: Golden) -> Replay:
    ours, theirs = take(golden.hyper, "muon", "aux_adam", ignored=("lr",))
    rate, b1, decay, steps, nesterov, table, eps, biased = take(
        ours,
        "lr",
        "momentum",
        "weight_decay",
        "ns_steps",
        "nesterov",
        "ns_coeffs",
        "eps",
        "bias_correction",
        ignored=("scale",),
    )
    assert biased is False, "the code does not debias"
    rest_rate, betas, rest_eps, rest_decay, debias = take(
        theirs, "lr", "betas", "eps", "weight_decay", "bias_correction", ignored=("leaves",)
    )
    scheduled = "lr" in golden.arrays or golden.meta.get("lr_schedule") is not None
    tx = momentax.muon(
        golden.learning_rate() if scheduled else rate,
        b1,
        decay,
        nesterov=nesterov,
        method=table,
        steps=steps,
        eps=eps,
        scale="kj_last_axes",
        rest=optax.chain(
            momentax.scale_by_adam(*betas, rest_eps, debias=debias), momentax.decays.take_step(rest_rate, rest_decay)
        ),
        compute_dtype=golden.meta["ns_dtype"],
        routing=torch_layout(*theirs["leaves"]),
    )
    return Replay(tx, {"momentum": of_matrices(lambda s: s[0].mu)})


def moonlight(golden: Golden) -> Replay:
    _, b1, nesterov, steps, decay, betas, eps = take(
        golden.hyper, "lr", "momentum", "nesterov", "ns_steps", "wd", "adamw_betas", "adamw_eps"
    )
    rate = golden.learning_rate()
    return Replay(
        momentax.muon(
            rate,
            b1,
            decay,
            nesterov=nesterov,
            steps=steps,
            # the code accumulates gradients where Muon averages them: its eps counts in units of the sum
            eps=momentax.conventions.average_to_heavy_ball(1e-7, b1),
            scale="moonlight",
            rest=optax.chain(momentax.scale_by_adam(*betas, eps, eps_hat=True), momentax.decays.take_step(rate, decay)),
            routing=torch_layout(),
        )
    )


def muonh(golden: Golden) -> Replay:
    """ArchScale's MuonH, dion's, and the one without casts: what they keep and round differs, the method does not."""
    stored = golden.meta["method"] == "MuonH, stored-radius variant"
    if stored:
        _, b1, nesterov, flatten, eps, _, adjust, normalization = take(
            golden.hyper,
            "lr",
            "mu",
            "nesterov",
            "flatten",
            "epsilon",
            "hyperball_eps",
            "adjust_lr",
            "normalization",
        )
        assert adjust is None and normalization is None, "neither is part of the method"
        betas, decay, cautious, table = (0.9, 0.95), 0.0, False, golden.meta["orth"]["ns_coefficients"]
        groups = {"muonh": golden.meta["leaves"]}
    else:
        _, b1, betas, decay, eps, nesterov, flatten, cautious = take(
            golden.hyper, "lr", "mu", "betas", "weight_decay", "epsilon", "nesterov", "flatten", "cautious_wd"
        )
        table, groups = golden.meta["ns_coefficients"], golden.meta["groups"]
    how = golden.meta.get("newton_schulz", "")
    exact, rounds = isinstance(table, str) or "polar" in how, stored or bool(how)
    kinds = {leaf: group.split()[0] for group, members in groups.items() for leaf in members}

    def rule(path, leaf):
        if kinds[path] == "adamw":
            return momentax.routing.vector()
        if kinds[path] == "adamh":
            return momentax.routing.head((1,), (0,))
        if flatten:
            return momentax.routing.matrix(range(1, leaf.ndim), (0,))
        return momentax.routing.matrix((-1,), (-2,), range(leaf.ndim - 2))

    def in_bfloat16(x):
        options = dict(eps=eps, compute_dtype=jnp.bfloat16, form="powers")
        return momentax.linalg.newton_schulz(x, len(table), table, **options)

    tx = momentax.muonh(
        golden.learning_rate(),
        float(np.float32(b1)) if rounds else b1,  # as the codes hold it, or some entries of N round otherwise
        decay or None,
        nesterov=nesterov,
        method="exact" if exact else in_bfloat16 if how.startswith("shipped") else table,
        steps=5 if exact else len(table),
        eps=eps,
        radius="initial" if stored else "current",
        scope="matrix" if stored else "leaf",
        decay="cautious" if cautious else "decoupled",
        adam_b1=betas[0],
        adam_b2=betas[1],
        input_dtype=jnp.bfloat16 if rounds else None,
        routing=rule,
    )

    def momentum(state):
        trees = [state.inner_states[kind].inner_state[0].mu for kind in ("matrix", "head", "rest")]
        return {leaf: x for tree in trees for leaf, x in tree.items() if not isinstance(x, optax.MaskedNode)}

    def radius(state):
        sizes = {leaf: value.size for leaf, value in sorted(golden.tree("s/radius/").items())}
        parts = jnp.split(state.inner_states["matrix"].inner_state[2].radius, np.cumsum([*sizes.values()])[:-1])
        return dict(zip(sizes, parts, strict=True))

    return Replay(tx, {"radius": radius} if stored else {"momentum": momentum})


def namo(golden: Golden) -> Replay:
    _, decay, b1, b2, eps, nesterov, steps, exact, rms, clamp, betas, rest_eps, rest_decay = take(
        {"col_state_clamp_c": None, **golden.hyper},
        "lr",
        "wd",
        "momentum",
        "mu2",
        "adamnorm_eps",
        "nesterov",
        "ns_steps",
        "use_exact_svd",
        "scale_coeff",
        "col_state_clamp_c",
        "adamw_betas",
        "adamw_eps",
        "adamw_wd",
    )
    rate, method = golden.learning_rate(), golden.meta["method"]
    tx = {"namo": momentax.namo, "namo_d": momentax.namo_d}[method](
        rate,
        b1,
        b2,
        eps,
        decay,
        variant="official",
        nesterov=nesterov,
        method="exact" if exact else "muon",
        steps=steps,
        scale="moonlight_first_axes",
        rms=rms,
        rest=optax.chain(
            momentax.scale_by_adam(*betas, rest_eps, eps_hat=True), momentax.decays.take_step(rate, rest_decay)
        ),
        routing=torch_layout(*golden.meta["adamw_leaves"]),
        **({"clamp": clamp or None} if method == "namo_d" else {}),
    )
    ours = {leaf: x for leaf, x in sorted(golden.tree("p0/").items()) if leaf not in golden.meta["adamw_leaves"]}
    ends = np.cumsum([x[0].size if method == "namo_d" else 1 for x in ours.values()])[:-1]

    def squares(state):
        parts = zip(ours.items(), jnp.split(state.nu, ends), strict=True)
        return {leaf: part.astype(x.dtype) for (leaf, x), part in parts}

    return Replay(tx, {"momentum": of_matrices(lambda s: s.mu), "v": of_matrices(squares)})


def auon(golden: Golden) -> Replay:
    """Every leaf goes through the method, hence the chain for vectors."""
    _, b1, decay, gamma = take(golden.hyper, "lr", "momentum", "weight_decay", "gamma", ignored=("ns_steps",))
    rate = golden.learning_rate()
    vectors = optax.chain(
        momentax.average_gradients(b1, debias=False, nesterov=True),
        momentax.scale_by_cosh_rms(gamma, variant="official"),
        momentax.decays.take_step(rate, decay),
    )

    def rule(path, leaf):
        if leaf.ndim < 2:
            return momentax.routing.vector()
        return momentax.routing.matrix((-1,), (-2,), range(leaf.ndim - 2))

    options = dict(gamma=gamma, variant="official", rest=vectors, routing=rule)
    if golden.meta["method"] == "auon":
        tx = momentax.auon(rate, b1, decay, **options)
    else:
        tx = momentax.hybrid_auon(rate, b1, decay, steps=golden.hyper["ns_steps"], **options)

    def momentum(state):
        trees = [state.inner_states[kind].inner_state[0].mu for kind in ("matrix", "rest")]
        return {leaf: x for tree in trees for leaf, x in tree.items() if not isinstance(x, optax.MaskedNode)}

    return Replay(tx, {"momentum": momentum})


def fismo(golden: Golden) -> Replay:
    _, b1, b2, damping = take(golden.hyper, "lr", "beta", "gamma", "mu")
    tx = momentax.fismo(golden.learning_rate(), b1, b2, damping, method="exact", routing=AXIS_0_IS_OUTPUT)
    start = golden.tree("p0/")
    outs = [len(start[key]) for key in sorted(start)]
    ins = [start[key].size // len(start[key]) for key in sorted(start)]

    def factors(side):
        def read(state):
            parts = momentax.scalars.unpack("fismo", state[0].factors, [(n, n) for n in outs + ins])
            return dict(zip(sorted(start), parts[: len(outs)] if side == "P" else parts[len(outs) :], strict=True))

        return of_matrices(read)

    return Replay(tx, {"P": factors("P"), "Q": factors("Q"), "M": of_matrices(lambda s: s[0].inner[0].mu)})


class Adapter(NamedTuple):
    """How a method is replayed, and how closely in float64 and float32."""

    replay: Callable[[Golden], Replay]
    float64: float
    float32: float = 2e-5


ADAPTERS = {
    "adamp": Adapter(adamp, 1e-9),
    "sgdp": Adapter(sgdp, 1e-9),
    "adan": Adapter(adan, 1e-9),
    "lion": Adapter(lion, 1e-9),
    "lionk": Adapter(lion_k, 1e-9),
    "spam": Adapter(spam, 1e-9),
    "stablespam": Adapter(stable_spam, 1e-9),
    "AM-MSGD": Adapter(am_msgd, 1e-12),
    "AM-AdamW": Adapter(am_adamw, 1e-10),
    "torch SGD momentum": Adapter(torch_sgd, 1e-12),
    "muon": Adapter(muon, 1e-9),
    "muon_moonlight": Adapter(moonlight, 1e-9),
    "namo": Adapter(namo, 1e-9),
    "namo_d": Adapter(namo, 1e-9),
    "auon": Adapter(auon, 1e-9),
    "hybrid_auon": Adapter(auon, 1e-9),
    "MuonH (Muon hyperball) with AdamH/AdamW auxiliaries": Adapter(muonh, 2e-5, 5e-3),  # rounds to bfloat16
    "MuonH, stored-radius variant": Adapter(muonh, 1e-6),  # rounds to bfloat16, sums in float32
    "MuonH (no low-precision casts)": Adapter(muonh, 1e-10),
    "fismo": Adapter(fismo, 1e-9),
}
BFLOAT16_ITERATIONS = 5e-3  # the code rounds the factor of the shape to bfloat16, too; a tie that falls otherwise: 1e-3
CLIPPED_ADAN = 1e-6  # the official code sums the clipping norm in float32 even for float64 leaves


def test_replay(golden_file):
    with np.load(golden_file) as file:
        arrays = {key: file[key] for key in file.files}
    golden = Golden(json.loads(str(arrays.pop("meta"))), arrays)
    method = golden.meta["method"]
    if method in TABLES:
        with jax.enable_x64(True):
            TABLES[method](golden)
        return
    assert method in ADAPTERS, f"no adapter for the method '{method}': write one in tests/test_golden.py"
    adapter = ADAPTERS[method]
    with jax.enable_x64(True):
        compare_trajectory(golden, adapter.replay(golden), tolerance(golden, adapter))


def tolerance(golden: Golden, adapter: Adapter) -> float:
    if golden.meta.get("ns_dtype") == "bfloat16":
        return BFLOAT16_ITERATIONS
    narrow = golden.meta.get("ns_dtype") == "float32"
    narrow |= any(value.dtype == np.float32 for value in golden.tree("p/").values())
    if narrow:
        return adapter.float32
    clipped = golden.meta["method"] == "adan" and golden.hyper["max_grad_norm"]
    return CLIPPED_ADAN if clipped else adapter.float64


def compare_trajectory(golden: Golden, replay: Replay, limit: float) -> None:
    params = {key: jnp.asarray(value) for key, value in golden.tree("p0/").items()}
    gradients = {key: jnp.asarray(value) for key, value in golden.tree("g/").items()}

    def step(carry, g):
        params, state = carry
        updates, state = replay.tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        recorded = {name: read(state) for name, read in replay.state.items()}
        return (params, state), (params, recorded)

    _, (path, recorded) = jax.jit(lambda p: jax.lax.scan(step, (p, replay.tx.init(p)), gradients))(params)
    for key, expected in golden.tree("p/").items():
        assert_close(f"p/{key}", path[key], expected, limit)
    for name, leaves in recorded.items():
        for key, expected in golden.tree(f"s/{name}/").items():
            actual = leaves[key]
            if expected.size < actual.size:  # recorded once: it never changes
                expected = np.broadcast_to(expected.reshape(actual.shape[1:]), actual.shape)
            assert_close(f"s/{name}/{key}", actual.reshape(expected.shape), expected, limit)


def assert_close(name: str, actual: Any, expected: np.ndarray, limit: float) -> None:
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} against {expected.dtype}"
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected)), f"{name}: finite at other places"
    scale = np.max(np.abs(expected), initial=0, where=np.isfinite(expected)) or 1.0
    error = np.max(np.abs(actual - expected), initial=0, where=np.isfinite(expected)) / scale
    assert error <= limit, f"{name}: relative error {error:.2e} exceeds {limit:.0e}"


def two_plane_dual(golden: Golden) -> None:
    """Independent problems, one a row: the coefficient, the direction and the gap of the planes at the solution."""
    a = {key: jnp.asarray(value) for key, value in golden.arrays.items()}

    def solve(g, d, P, x, lam, eta, height, mu, b1_max):
        return momentax.two_plane_coefficient(
            g,
            d,
            height,
            learning_rate=eta,
            proximity=lam,
            metric=P,
            weight_decay=mu,
            params=x,
            b1_max=b1_max,
        )

    rows = [a[key] for key in ("g", "d", "P", "x", "lam", "eta", "a", "mu")]
    clipped = jax.vmap(lambda *row: solve(*row, 1.0))(*rows)
    unclipped = jax.vmap(lambda *row: solve(*row, None))(*rows)
    assert_close("beta", clipped, golden.arrays["beta"], 1e-10)
    assert_close("beta_unclipped", unclipped, golden.arrays["beta_unclipped"], 1e-10)


def optax_ema(golden: Golden) -> None:
    """A table of averages instead of parameters, with debiasing and without."""
    (decay,) = take(golden.hyper, "decay")
    gradients = {key: jnp.asarray(value) for key, value in golden.tree("g/").items()}
    for prefix, debias in (("u_debias/", True), ("u_raw/", False)):
        tx = momentax.average_gradients(decay, debias=debias)
        state = tx.init({key: value[0] for key, value in gradients.items()})
        _, path = jax.lax.scan(lambda state, g, tx=tx: tx.update(g, state)[::-1], state, gradients)
        for key, expected in golden.tree(prefix).items():
            assert_close(prefix + key, path[key], expected, 1e-12)


TABLES = {
    "AMM two-plane proximal dual": two_plane_dual,
    "optax.ema with and without debias": optax_ema,
}


def test_adan_is_not_the_adan_of_optax():
    """The official trajectory tells the two apart: optax multiplies by 1 - b2 where the code multiplies by b2."""
    with np.load(FOLDER / "adan_default.npz") as file:
        golden = Golden(json.loads(str(file["meta"])), {key: file[key] for key in file.files if key != "meta"})
    b1, b2, b3 = golden.hyper["betas"]
    theirs = optax.adan(golden.learning_rate(), b1, b2, b3, eps=golden.hyper["eps"], eps_root=0.0)
    with jax.enable_x64(True), pytest.raises(AssertionError, match="relative error"):
        compare_trajectory(golden, Replay(theirs), 1e-3)
