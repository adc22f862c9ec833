"""Orthogonalised updates: what the polynomial does to singular values, and which matrices it is applied to."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax
from momentax import linalg
from momentax.routing import matrix, vector


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def orthogonalized(tree, *args, **kwargs):
    tx = momentax.orthogonalize(*args, **kwargs)
    return jax.jit(lambda tree: tx.update(tree, tx.init(tree))[0])(tree)


def singular_values(x):
    return np.linalg.svd(np.asarray(x), compute_uv=False)


def test_each_leaf_is_orthogonalised_as_if_alone():
    """Leaves share batches with others of their shape, and come back as what they were."""
    tree = {
        "conv": {"kernel": normal(3, 3, 2, 4), "bias_free": normal(4, 6, seed=1)},
        "experts": normal(5, 4, 6, seed=2),
        "query": normal(4, 2, 3, seed=3),
        "tall": normal(6, 4, seed=4),
        "wide": normal(4, 6, seed=5),
    }
    rules = {
        "experts": matrix((1,), (2,), (0,)),
        "query": matrix((0,), (1, 2)),
        "*": None,
    }
    routing = lambda path, leaf: rules.get(path) or matrix(range(leaf.ndim - 1), (-1,))  # noqa: E731
    with jax.enable_x64(True):
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
        actual = orthogonalized(tree, routing=routing)
        alone = lambda x: linalg.newton_schulz(x, 5, "muon", eps=1e-7)  # noqa: E731
        expected = {
            "conv": {
                "kernel": alone(tree["conv"]["kernel"].reshape(18, 4)).reshape(3, 3, 2, 4),
                "bias_free": alone(tree["conv"]["bias_free"]),
            },
            "experts": jnp.stack([alone(x) for x in tree["experts"]]),
            "query": alone(tree["query"].reshape(4, 6)).reshape(4, 2, 3),
            "tall": alone(tree["tall"]),
            "wide": alone(tree["wide"]),
        }
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), actual, expected)


def test_matrices_side_by_side_are_orthogonalised_apart():
    w = normal(6, 12)
    [together] = jax.tree.leaves(orthogonalized({"qkv": w}, routing={"qkv": matrix((0,), (1,), blocks=3)}))
    parts = [orthogonalized({"w": part}, routing=matrix((0,), (1,)))["w"] for part in jnp.split(w, 3, axis=1)]
    np.testing.assert_allclose(together, jnp.concatenate(parts, axis=1), atol=1e-6)


def test_orthogonal_maps_commute_with_it():
    """O(P U Q) = P O(U) Q for orthogonal P and Q, and O(U') = O(U)'."""
    with jax.enable_x64(True):
        u = jnp.asarray(normal(5, 7), jnp.float64)
        p, _ = jnp.linalg.qr(jnp.asarray(normal(5, 5, seed=1), jnp.float64))
        q, _ = jnp.linalg.qr(jnp.asarray(normal(7, 7, seed=2), jnp.float64))
        routing = matrix((0,), (1,))
        actual = orthogonalized({"turned": p @ u @ q, "flat": u, "transposed": u.T}, routing=routing)
        np.testing.assert_allclose(actual["turned"], p @ actual["flat"] @ q, atol=1e-12)
        np.testing.assert_allclose(actual["transposed"], actual["flat"].T, atol=1e-12)


@pytest.mark.parametrize(("table", "steps"), [("muon", 5), ("you", 5), ("polar_express", 5), ("polar_express", 6)])
def test_the_ranges_of_singular_values_that_are_printed(table, steps):
    row = re.search(rf"{table} +{steps} +\[([\d.]+), ([\d.]+)\]", inspect.getmodule(momentax.orthogonalize).__doc__)
    digits = len(row[1].split(".")[1])
    actual = linalg.singular_value_range(linalg.coefficients(table, steps), 1e-3, 1.0)
    assert [f"{value:.{digits}f}" for value in actual] == [row[1], row[2]]


@pytest.mark.parametrize(("method", "steps", "largest"), [("muon", 5, 1.2024), ("classical", 10, 1.0)])
def test_singular_values_stay_below_the_bound_however_ill_conditioned_the_update(method, steps, largest):
    u, _, v_t = np.linalg.svd(np.asarray(normal(8, 12)), full_matrices=False)
    for decades in (0, 3, 6):
        x = {"kernel": jnp.asarray((u * np.logspace(0, -decades, 8)) @ v_t, jnp.float32)}
        values = singular_values(orthogonalized(x, method, steps)["kernel"])
        assert 0 < values.min() and values.max() <= largest + 1e-5


def test_exact_and_custom_methods():
    x = {"kernel": normal(4, 6)}
    np.testing.assert_allclose(singular_values(orthogonalized(x, "exact")["kernel"]), np.ones(4), atol=1e-5)
    np.testing.assert_array_equal(orthogonalized(x, lambda stack: 2 * stack)["kernel"], 2 * x["kernel"])


def test_eps_counts_in_units_of_the_update_and_none_does_not_count():
    x = normal(4, 6)
    norm = float(jnp.linalg.norm(x))

    def first(scale, eps):
        return orthogonalized({"kernel": scale * x}, steps=1, eps=eps)["kernel"]

    np.testing.assert_allclose(first(1e-9, None), first(1.0, None), rtol=1e-5)
    # (1) by hand: as a matrix that much smaller, whose norm is not added to
    share = 1e-9 * norm / (1e-9 * norm + 1e-7)
    expected = linalg.newton_schulz(share * x / norm, 1, "muon", normalize=None)
    np.testing.assert_allclose(first(1e-9, 1e-7), expected, rtol=1e-4)


def test_zero_dead_and_non_finite():
    x = np.array(normal(6, 4), np.float32)
    dead = x.copy()
    dead[2], dead[:, 1] = 0, 0
    bad = x.copy()
    bad[0, 0] = np.nan
    tree = {"bad": bad, "dead": dead, "good": x, "zero": np.zeros_like(x), "stack": np.stack([x, bad])}
    rules = {"stack": matrix((1,), (2,), (0,)), "*": matrix((0,), (1,))}
    actual = orthogonalized(jax.tree.map(jnp.asarray, tree), routing=rules)
    assert np.isnan(actual["bad"]).all() and np.isnan(actual["stack"][1]).all()
    alone = orthogonalized({"good": jnp.asarray(x)}, routing=rules)["good"]
    np.testing.assert_allclose(actual["good"], alone, atol=1e-6)
    np.testing.assert_allclose(actual["stack"][0], alone, atol=1e-6)
    assert not actual["zero"].any() and not actual["dead"][2].any() and not actual["dead"][:, 1].any()
    assert np.isfinite(actual["dead"]).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_comes_near(dtype):
    x = normal(8, 12)
    expected = orthogonalized({"kernel": x})["kernel"]
    low = orthogonalized({"kernel": x.astype(dtype)})["kernel"]
    cast = orthogonalized({"kernel": x}, compute_dtype=dtype)["kernel"]
    assert low.dtype == dtype and cast.dtype == x.dtype
    for actual in (low, cast):
        np.testing.assert_allclose(actual.astype(jnp.float32), expected, atol=8 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("method", ["polar_express", linalg.polar_express(8)], ids=["named", "rows"])
@pytest.mark.parametrize("steps", [5, 8])
def test_polar_express_stays_bounded_in_bfloat16(method, steps):
    """The published table alone does not: its polynomials run away beyond 1, where rounding brings singular values."""
    x = {"kernel": normal(64, 128)}
    largest = singular_values(orthogonalized(x, method, steps, compute_dtype=jnp.bfloat16)["kernel"]).max()
    assert largest < 1.13
    assert singular_values(orthogonalized(x, "polar_express", 8, safety=1.0, compute_dtype="bfloat16")["kernel"])[0] > 2


def test_input_dtype_only_rounds_the_input():
    x = normal(4, 6)
    rounded = orthogonalized({"kernel": x.astype(jnp.bfloat16).astype(x.dtype)})["kernel"]
    np.testing.assert_array_equal(orthogonalized({"kernel": x}, input_dtype=jnp.bfloat16)["kernel"], rounded)


@pytest.mark.parametrize(
    ("tree", "routing", "says"),
    [
        ({"scale": jnp.ones(4)}, None, r"'scale' \(4,\) is read as a vector.*partition_by_rule"),
        ({"temperature": jnp.ones(())}, None, r"'temperature' \(\) is read as a vector"),
        ({"embedding": jnp.ones((4, 3))}, None, r"'embedding' \(4, 3\) is read as an embedding"),
        ({"lm_head": {"kernel": jnp.ones((4, 3))}}, {"lm_head/*": vector()}, "is read as a vector"),
        ({"kernel": jnp.ones((4, 3))}, matrix((0,), (0,)), "not partitioned.*name every axis once"),
        ({"w": jnp.ones((2, 4, 3))}, None, "'w'.*cannot be told"),
    ],
)
def test_what_is_no_matrix_is_refused(tree, routing, says):
    with pytest.raises(ValueError, match=says):
        momentax.orthogonalize(routing=routing).init(tree)


@pytest.mark.parametrize("bad", [dict(method="jordan"), dict(steps=0), dict(normalize="l1"), dict(eps=-1.0)])
def test_bad_choices_are_refused_at_once(bad):
    with pytest.raises(ValueError):
        momentax.orthogonalize(**bad)
