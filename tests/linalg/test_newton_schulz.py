"""Newton-Schulz in all its forms: the polynomial of the singular values that it says it is, at the price it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax.linalg import apply, coefficients, gram, newton_schulz, polar, polynomial, singular_value_range

RNG = np.random.default_rng(0)
NORMALIZATIONS = ["frobenius", "schatten", "spectral", "aol"]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.partial(jax.jit, static_argnames=("steps", "coefficients", "normalize", "eps", "form", "compute_dtype"))
def ns(x, steps=5, coefficients="polar_express", **options):
    return newton_schulz(x, steps, coefficients, **options)


def orthogonal(size):
    return np.linalg.qr(RNG.standard_normal((size, size)))[0]


def with_singular_values(s, n):
    """u diag(s) v', u and v."""
    u, v = orthogonal(len(s)), orthogonal(n)[:, : len(s)]
    return jnp.asarray((u * s) @ v.T), u, v


def gaussian(*shape, dtype=float):
    return jnp.asarray(RNG.standard_normal(shape), dtype)


def relative(actual, expected):
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("form", ["standard", "gram"])
@pytest.mark.parametrize(
    "table",
    [coefficients("muon", 5), coefficients("cans", 4), ((2.1875, -2.1875, 1.3125, -0.3125),) * 3, ((1.5, -0.5),)],
    ids=["quintics", "cubics", "degree 7", "one step"],
)
def test_it_is_its_polynomial_of_the_singular_values(form, table):
    s = np.array([1.0, 0.7, 0.3, 0.05, 1e-3, 0.0])
    x, u, v = with_singular_values(s, 10)
    expected = s
    for row in table:
        expected = sum(c * expected ** (2 * j + 1) for j, c in enumerate(row))
    actual = ns(x, len(table), table, normalize=None, form=form)
    np.testing.assert_allclose(u.T @ np.asarray(actual) @ v, np.diag(expected), atol=1e-12)


@pytest.mark.parametrize("form", ["standard", "gram"])
@pytest.mark.parametrize("normalize", ["frobenius", "aol"])
def test_transposition_and_orthogonal_maps(normalize, form):
    """f(x') = f(x)' always; f(P x Q) = P f(x) Q except for "aol", which knows rows: P is a permutation there."""
    x, p, q = gaussian(6, 10), orthogonal(6), orthogonal(10)
    if normalize == "aol":
        p = np.eye(6)[RNG.permutation(6)]
    options = dict(normalize=normalize, form=form)
    y = ns(x, **options)
    np.testing.assert_allclose(ns(x.T, **options), y.T, atol=1e-14)
    np.testing.assert_allclose(ns(jnp.asarray(p @ x @ q), **options), p @ np.asarray(y) @ q, atol=1e-11)


@pytest.mark.parametrize("name", ["muon", "you", "polar_express", "classical"])
def test_singular_values_of_ill_conditioned_matrices_stay_in_the_promised_range(name):
    s = np.geomspace(1e-9, 1, 24)
    x, _, _ = with_singular_values(s, 24)
    low, high = singular_value_range(coefficients(name, 5), 1e-9 / np.linalg.norm(s), 1.0)
    actual = np.linalg.svd(ns(x, 5, name), compute_uv=False)
    assert low - 1e-12 <= actual.min() and actual.max() <= high + 1e-12
    assert actual.min() < 0.1  # nothing better can be promised


def test_errors_on_gaussian_matrices():
    x = RNG.standard_normal((128, 512)).astype(np.float32)
    u, _, v = np.linalg.svd(x, full_matrices=False)

    @jax.jit
    def errors(x, factor):
        factors = [
            newton_schulz(x, 5, "muon"),
            newton_schulz(x, 5, "you"),
            newton_schulz(x, 5, "polar_express", safety=1.01),
            newton_schulz(x, 4, "aol", normalize="aol"),
        ]
        return [jnp.linalg.norm(y - factor) / jnp.linalg.norm(factor) for y in factors]

    np.testing.assert_allclose(errors(x, u @ v), [0.22, 0.018, 0.087, 0.031], rtol=0.04)


def test_normalisations_are_what_they_are_called():
    """Also their limits: the polar factor of x itself, but for "aol": that of x with its rows scaled."""
    x, _, _ = with_singular_values(np.geomspace(0.1, 30, 6), 10)
    norms = {
        "frobenius": np.linalg.norm(x),
        "schatten": np.linalg.norm(x @ x.T) ** 0.5,
        "spectral": np.linalg.norm(x, 2),
        "aol": np.sqrt(np.abs(x @ x.T).sum(1, keepdims=True)),
    }

    @jax.jit
    def results(x):
        def all_of(steps, table, **options):
            return [newton_schulz(x, steps, table, normalize=normalize, **options) for normalize in norms]

        return all_of(1, (1.0, 0.0)), all_of(1, (1.0, 0.0), eps=0.5), all_of(10, "polar_express")

    for norm, plain, with_eps, limit in zip(norms.values(), *results(x), strict=True):
        assert np.linalg.norm(x / norm, 2) <= 1 + 1e-12
        np.testing.assert_allclose(plain, x / norm, rtol=1e-12)
        np.testing.assert_allclose(with_eps, x / (norm + 0.5), rtol=1e-12)
        u, _, v = np.linalg.svd(x / norm, full_matrices=False)
        np.testing.assert_allclose(limit, u @ v, atol=1e-12)
    assert relative(limit, polar(x)) > 0.01  # what "aol" changes
    np.testing.assert_array_equal(newton_schulz(x, 1, (1.0, 0.0), normalize=None), x)


@pytest.mark.parametrize(
    "normalize, form", [(normalize, "standard") for normalize in NORMALIZATIONS] + [("frobenius", "gram")]
)
def test_scale_zero_and_what_is_not_finite(normalize, form):
    """One batch: nothing depends on size, zero gives zero, NaN and infinity stay in their matrix."""
    x = gaussian(4, 6, dtype=jnp.float32)
    batch = jnp.stack([x, 1e-30 * x, 1e36 * x, 0 * x, x.at[1, 2].set(jnp.nan), x.at[0, 0].set(-jnp.inf), x])
    options = dict(normalize=normalize, form=form)
    without = lambda x: newton_schulz(x, 5, "muon", **options)  # noqa: E731
    y, alone, with_eps = jax.jit(
        lambda batch, x: (without(batch), without(x), newton_schulz(batch, 5, "muon", eps=1e-7, **options))
    )(batch, x)
    for one, other in ((y[0], alone), (y[0], y[1]), (y[0], y[2]), (y[0], y[6]), (y[0], with_eps[0])):
        np.testing.assert_allclose(one, other, atol=5e-5)
    for result in (y, with_eps):
        assert np.all(np.isfinite(result[:2])) and np.all(np.isnan(result[4:6])) and not np.any(result[3])
    assert np.max(np.abs(with_eps[1])) < 1e-15  # x / eps: far below it the formula as printed gives up


def test_small_shapes():
    row, one = gaussian(1, 7), jnp.array([[-3.0]])

    @jax.jit
    def factors(*matrices):
        return [
            [newton_schulz(x, 8, "polar_express", normalize=n, form="auto") for x in matrices]
            for n in ("aol", "frobenius")
        ]

    for y, y_transposed, unit in factors(row, row.T, one):
        np.testing.assert_allclose(y, row / jnp.linalg.norm(row), rtol=1e-12)
        np.testing.assert_allclose(y_transposed, y.T, rtol=1e-14)
        np.testing.assert_allclose(unit, [[-1.0]], rtol=1e-12)
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        assert newton_schulz(jnp.zeros(shape), 2).shape == shape


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float64, 1e-12), (jnp.float32, 2e-4)])
def test_the_gram_form_is_the_standard_form(dtype, tolerance):
    s = np.geomspace(1e-2, 1, 8)
    x = jnp.stack([with_singular_values(s, 24)[0], gaussian(8, 24)]).astype(dtype)

    @jax.jit
    def both(x):
        cases = [dict(steps=steps) for steps in (1, 2, 3)] + [dict(steps=6, normalize="schatten")]
        return [
            [newton_schulz(x, coefficients="polar_express", form=form, **case) for case in cases]
            for form in ("standard", "gram")
        ]

    for expected, actual in zip(*both(x), strict=True):
        np.testing.assert_allclose(actual, expected, atol=tolerance)


def test_the_pieces_of_the_gram_form_leave_room_for_a_reduction():
    """Shards of the long axis: their Gram matrices add up, and each shard is multiplied alone."""
    x = gaussian(4, 12) / 8
    table = coefficients("polar_express", 5)
    shards = jnp.split(x, 3, axis=1)
    for rows in (table[:2], table[2:]):
        q = polynomial(sum(gram(shard) for shard in shards), rows)
        shards = [apply(q, shard) for shard in shards]
    np.testing.assert_allclose(jnp.concatenate(shards, axis=1), ns(x, normalize=None), atol=1e-12)


def operations(f, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(f).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("steps, shape", [(5, (64, 192)), (8, (64, 192)), (5, (192, 64)), (5, (2, 64, 192))])
def test_operations_of_the_gram_form(steps, shape):
    m, n = 64, 192
    expected = (8 * m**2 * n + (8 * steps - 12) * m**3) * (2 if len(shape) == 3 else 1)
    expected += 4 * m**2 * n - 6 * m**3 if steps > 5 else 0  # a second restart
    actual = operations(lambda x: newton_schulz(x, steps, "muon", form="auto"), shape)
    assert abs(actual / expected - 1) < 0.02


@pytest.mark.parametrize("decades", [0, 7, 30])
def test_many_steps_of_the_gram_form_stay_near_the_standard_form(decades):
    """Without restarts every three steps the rounding of small singular values grows beyond all bounds."""
    u, _, v_t = np.linalg.svd(np.asarray(gaussian(16, 128)), full_matrices=False)
    x = jnp.asarray((u * np.logspace(0, -decades, 16)) @ v_t, jnp.float32)
    for form in ("standard", "gram"):
        values = jnp.linalg.svd(newton_schulz(x, 20, "classical", form=form), compute_uv=False)
        assert values.max() <= 1 + 1e-5


def test_the_form_is_chosen_by_shape():
    text = lambda shape, form: str(jax.make_jaxpr(lambda x: ns(x, form=form))(jnp.zeros(shape)))  # noqa: E731
    assert text((4, 6), "auto") == text((4, 6), "standard") != text((4, 6), "gram")
    assert text((4, 7), "auto") == text((4, 7), "gram") != text((4, 7), "standard")


@pytest.mark.parametrize(
    "normalize, form", [(normalize, "standard") for normalize in NORMALIZATIONS] + [("frobenius", "gram")]
)
def test_derivatives(normalize, form):
    x, d, w = gaussian(3, 5), gaussian(3, 5), gaussian(3, 5)

    f = functools.partial(newton_schulz, steps=3, coefficients="you", normalize=normalize, form=form)

    @jax.jit
    def both(x, d):
        ahead, behind = f(jnp.stack([x + 1e-6 * d, x - 1e-6 * d]))
        of_x, of_zero = jax.vjp(f, jnp.stack([x, 0 * x]))[1](jnp.stack([w, w]))[0]
        return jnp.sum(of_x * d), jnp.sum(w * (ahead - behind)) / 2e-6, of_zero

    exact, difference, at_zero = both(x, d)
    np.testing.assert_allclose(exact, difference, rtol=1e-6)
    assert np.all(np.isfinite(at_zero))


def test_vmap_is_the_batch():
    x = gaussian(3, 2, 4, 5)
    for form in ("standard", "gram"):
        np.testing.assert_allclose(jax.vmap(lambda x: ns(x, form=form))(x), ns(x, form=form), atol=1e-13)  # noqa: B023


def kj(x, rounded):
    """Muon's own iteration, written again in float64 with each operation rounded by `rounded`."""
    x = rounded(x)
    x = rounded(x / rounded(rounded(np.linalg.norm(x)) + 1e-7))
    for _ in range(5):
        a = rounded(x @ x.T)
        b = rounded(rounded(-4.7750 * a) + rounded(rounded(2.0315 * a) @ a))
        x = rounded(rounded(3.4445 * x) + rounded(b @ x))
    return x


def test_bfloat16_rounds_where_muon_does():
    """Ties aside, which a float32 sum may break the other way, to the last bit."""

    def rounded(x):
        return np.asarray(x, jnp.bfloat16).astype(float)

    x = np.asarray(gaussian(6, 9, dtype=jnp.float32))
    expected = kj(x.astype(float), rounded)
    actual = np.asarray(ns(jnp.asarray(x), 5, "muon", eps=1e-7, compute_dtype=jnp.bfloat16))
    assert actual.dtype == np.float32 and np.array_equal(rounded(actual), actual)
    assert np.mean(actual == expected) > 0.9
    assert relative(actual, expected) < 2e-3
    assert relative(kj(x.astype(float), lambda x: x), expected) > 5e-3


@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 0.15), (jnp.float16, 0.02)])
@pytest.mark.parametrize("options", [{}, {"normalize": "aol", "form": "gram"}], ids=["standard", "gram"])
def test_half_precision(dtype, tolerance, options):
    """Sizes whose squares and sums no half precision holds; the result is near that of float64."""
    x = gaussian(16, 48)
    f = functools.partial(newton_schulz, steps=5, coefficients="muon", **options)
    sizes = jnp.array([1.0, 1e4, 1e-4]).reshape(3, 1, 1)
    small, mixed, expected = jax.jit(
        lambda x: (f((sizes * x[None]).astype(dtype)), f(x.astype(jnp.float32), compute_dtype=dtype), f(x))
    )(x)
    assert small.dtype == dtype and mixed.dtype == jnp.float32
    assert max(relative(y, expected) for y in (*small, mixed)) < tolerance


def test_half_precision_multiplies_in_half_and_sums_in_float32():
    for form in ("standard", "gram"):
        text = ns.lower(jnp.zeros((4, 8)), compute_dtype=jnp.bfloat16, form=form).as_text()
        products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        assert products and all(line.rstrip().split("-> ")[1].split()[0].endswith("f32>") for line in products)
        assert any("4x8xbf16" in line for line in products)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("compute_dtype", [None, jnp.float32, jnp.bfloat16])
def test_no_dtype_is_promoted_in_silence(dtype, compute_dtype):
    x = jax.ShapeDtypeStruct((2, 3, 4), dtype)
    with jax.numpy_dtype_promotion("strict"):
        for normalize in (*NORMALIZATIONS, None):
            for form in ("standard", "gram"):
                options = dict(normalize=normalize, form=form, compute_dtype=compute_dtype, eps=1e-7)
                y = jax.eval_shape(lambda x: newton_schulz(x, 5, "muon", **options), x)  # noqa: B023
                assert (y.shape, y.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize(
    "error, call, message",
    [
        (ValueError, lambda: newton_schulz(jnp.ones(3), 5), "matrices"),
        (ValueError, lambda: newton_schulz(jnp.ones((3, 3)), 5, "keller"), "'keller'"),
        (ValueError, lambda: newton_schulz(jnp.ones((3, 3)), 0), "`steps`"),
        (ValueError, lambda: newton_schulz(jnp.ones((3, 3)), 5, normalize="nuclear"), "`normalize`.*'aol'"),
        (ValueError, lambda: newton_schulz(jnp.ones((3, 3)), 5, form="fast"), "`form`.*'gram'"),
        (TypeError, lambda: newton_schulz(jnp.ones((3, 3), int), 5), "floating"),
        (TypeError, lambda: newton_schulz(jnp.ones((3, 3), complex), 5), "floating"),
    ],
)
def test_bad_input(error, call, message):
    with pytest.raises(error, match=f"(newton_schulz|coefficients).*{message}"):
        call()
