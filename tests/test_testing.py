"""The battery catches planted bugs: each mutant below has one, and the check made for it must say so."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from momentax.testing import Subject, Traits, check_transform, checks_for

STATELESS = Traits(has_state=False)
LEAKED = []


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Slot:
    """A container that JAX knows and flax.serialization does not."""

    value: jax.Array


def stateless(leaf_fn, needs_params=False):
    """A factory for a transformation without state, from a function of the update (and of the parameter)."""

    def factory():
        def update(updates, state, params=None, **extra_args):
            trees = (updates, params) if needs_params else (updates,)
            return jax.tree.map(leaf_fn, *trees), state

        return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)

    return factory


def average(init=jnp.zeros_like, step=lambda m, g: (0.9 * m + g).astype(m.dtype)):
    """A factory for a transformation with one slot."""

    def factory():
        def update(updates, state, params=None, **extra_args):
            state = jax.tree.map(step, state, updates)
            return jax.tree.map(lambda m, g: m.astype(g.dtype), state, updates), state

        return optax.GradientTransformationExtraArgs(lambda params: jax.tree.map(init, params), update)

    return factory


def branches_on_a_number(decay=0.9):
    return optax.with_extra_args_support(optax.trace(decay) if decay else optax.identity())


def keeps_a_tracer():
    return stateless(lambda u: LEAKED.append(2 * u) or 3 * u)()


def counts_in_python():
    calls = []

    def update(updates, state, params=None, **extra_args):
        calls.append(None)
        return jax.tree.map(lambda u: len(calls) * u, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def counts_in_weak_types():
    def update(updates, state, params=None, **extra_args):
        return jax.tree.map(lambda u: 2 * u, updates), state + 1.0

    return optax.GradientTransformationExtraArgs(lambda params: 0, update)


def divides_by_the_norm_of_all():
    def update(updates, state, params=None, **extra_args):
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(u)) for u in jax.tree.leaves(updates)))
        return jax.tree.map(lambda u: (u / norm).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def knows_no_extra_arguments():
    return optax.GradientTransformationExtraArgs(optax.init_empty_state, lambda u, s, params=None: (u, s))


def fails_late(mode="sum"):
    def leaf(u):
        if mode != "sum":
            raise ValueError(f"fails_late: unknown mode {mode}")
        return u

    return stateless(leaf)()


def reads_names_in_secret():
    def update(updates, state, params=None, **extra_args):
        def leaf(path, u):
            return 2 * u if "kernel" in jax.tree_util.keystr(path) else u

        return jax.tree_util.tree_map_with_path(leaf, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def follows_the_schedule_late(factor=2.0):
    def update(updates, state, params=None, **extra_args):
        value = factor(state) if callable(factor) else factor - (state == 2)
        return jax.tree.map(lambda u: (value * u).astype(u.dtype), updates), state + 1

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros([], jnp.int32), update)


def remembers_the_first_tree():
    sizes = []

    def init(params):
        sizes.append(len(jax.tree.leaves(params)))
        return optax.EmptyState()

    def update(updates, state, params=None, **extra_args):
        doubled = [2 * u for _, u in zip(range(sizes[0]), jax.tree.leaves(updates), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(updates), doubled), state

    return optax.GradientTransformationExtraArgs(init, update)


def doubles_the_first_leaf():
    def update(updates, state, params=None, **extra_args):
        first, *rest = jax.tree.leaves(updates)
        return jax.tree.unflatten(jax.tree.structure(updates), [2 * first, *rest]), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def fills_none():
    def update(updates, state, params=None, **extra_args):
        return jax.tree.map(lambda u: 0.0 if u is None else 2 * u, updates, is_leaf=lambda u: u is None), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def keeps(state):
    """A factory for a transformation that carries `state(params)` along."""

    def factory():
        def update(updates, state, params=None, **extra_args):
            return jax.tree.map(lambda u: 2 * u, updates), state

        return optax.GradientTransformationExtraArgs(state, update)

    return factory


def gram(u):
    return u @ u.T @ u if u.ndim == 2 else u


def low_precision_norm(u):
    return u / jnp.sqrt(jax.lax.reduce(u * u, u.dtype.type(0), jax.lax.add, range(u.ndim)))


NEEDS_PARAMS = Traits(needs_params=True, has_state=False)
DOCUMENTED = Traits(documented=True)
double = stateless(lambda u: 2 * u)
add_params = stateless(lambda u, w: u + w, needs_params=True)

PLANTED = [  # (check, factory, traits)
    ("returns_updates_like_the_gradients", stateless(lambda u: u[None]), STATELESS),
    ("ignores_unknown_extra_arguments", knows_no_extra_arguments, STATELESS),
    ("works_in_masked", remembers_the_first_tree, STATELESS),
    ("works_in_partition", remembers_the_first_tree, STATELESS),
    ("works_in_multi_steps", counts_in_python, STATELESS),
    ("works_in_inject_hyperparams", branches_on_a_number, Traits()),
    ("works_in_apply_if_finite", counts_in_weak_types, STATELESS),
    ("names_missing_params", add_params, NEEDS_PARAMS),
    ("works_without_params", add_params, STATELESS),
    ("names_missing_value", double, Traits(needs_value=True)),
    ("refuses_bad_static_choices", fails_late, Traits(static_choices={"mode": "mean"})),
    ("names_a_leaf_of_the_wrong_shape", average(), Traits()),
    ("names_a_leaf_missing_from_the_gradients", average(), Traits()),
    ("names_an_extra_leaf_in_the_gradients", average(), Traits()),
    ("names_an_integer_leaf", average(), Traits()),
    ("names_a_complex_leaf", average(), Traits()),
    ("works_on_complex_leaves", stateless(jnp.real), Traits(complex_ok=True)),
    ("updates_have_the_dtype_of_the_parameters", stateless(lambda u: u * jnp.float32(2)), STATELESS),
    ("updates_have_the_dtype_of_the_parameters", average(step=lambda m, g: m + jnp.float32(1) * g), Traits()),
    ("float64_does_not_leak", stateless(lambda u: u * np.float64(0.5)), STATELESS),
    ("float64_stays_float64", stateless(lambda u: u.astype(jnp.float32)), STATELESS),
    ("init_works_on_shapes", keeps(lambda params: jnp.zeros(int(params["temperature"]) ** 2)), STATELESS),
    ("promotes_explicitly", stateless(lambda u: u * jnp.float32(2)), STATELESS),
    ("half_precision_follows_float32", stateless(low_precision_norm), STATELESS),
    ("jit_equals_eager", counts_in_python, STATELESS),
    ("scan_equals_loop", stateless(lambda u: 2 * np.asarray(u)), STATELESS),
    ("vmap_equals_loop", stateless(lambda u: jax.pure_callback(np.asarray, u, u)), STATELESS),
    ("compiles_once", counts_in_weak_types, STATELESS),
    ("donation_is_safe", average(init=lambda p: p), Traits()),
    ("leaks_no_tracers", keeps_a_tracer, STATELESS),
    ("works_on_an_empty_tree", doubles_the_first_leaf, STATELESS),
    ("leaves_none_alone", fills_none, STATELESS),
    ("names_do_not_matter", reads_names_in_secret, STATELESS),
    ("order_does_not_matter", doubles_the_first_leaf, Traits(reads_names=True)),
    ("state_maps_onto_parameters", keeps(lambda params: jax.tree.map(jnp.sum, params)), Traits()),
    ("other_leaves_do_not_matter", divides_by_the_norm_of_all, STATELESS),
    ("leaves_are_coupled", double, Traits(couples_leaves=True)),
    ("the_technique_acts", stateless(lambda u: u), STATELESS),
    ("the_technique_acts", stateless(lambda u: 2 * u if u.ndim > 1 else u), STATELESS),
    ("the_technique_acts", double, Traits(acts_on="matrices")),
    ("zero_gradients_stay_finite", divides_by_the_norm_of_all, Traits(couples_leaves=True)),
    ("tiny_gradients_stay_finite", divides_by_the_norm_of_all, Traits(couples_leaves=True)),
    ("zero_weights_stay_finite", stateless(lambda u, w: u / jnp.sum(w * w), True), NEEDS_PARAMS),
    ("a_spike_stays_finite", stateless(lambda u: u**5 / (1 + u**4)), STATELESS),
    ("nan_propagates", stateless(lambda u: jnp.nan_to_num(2 * u)), STATELESS),
    ("nan_is_skipped", double, Traits(non_finite="skips")),
    ("sharded_on_an_auto_mesh", average(init=lambda p: jnp.zeros(p.shape)), Traits()),
    ("sharded_on_an_auto_mesh_of_two_axes", average(init=lambda p: jnp.zeros(p.shape)), Traits()),
    ("sharded_on_an_explicit_mesh", stateless(gram), STATELESS),
    ("sharded_on_an_explicit_mesh", stateless(lambda u: u / (1 + jnp.vdot(u, u))), STATELESS),
    ("sharded_on_an_explicit_mesh_of_two_axes", stateless(lambda u: u.ravel().reshape(u.shape)), STATELESS),
    ("survives_orbax", keeps(lambda params: jnp.zeros((0,))), STATELESS),
    ("survives_flax_serialization", keeps(lambda params: Slot(jnp.ones(2))), STATELESS),
    ("learns_a_quadratic", stateless(lambda u: -u), STATELESS),
    ("learns_least_squares", stateless(lambda u: u if u.ndim == 1 else jnp.zeros_like(u)), STATELESS),
    ("a_constant_schedule_equals_the_constant", follows_the_schedule_late, Traits(scheduled=("factor",))),
    ("the_docstring_explains_every_argument", branches_on_a_number, DOCUMENTED),
    ("the_example_runs_in_the_docstring", branches_on_a_number, DOCUMENTED),
    ("the_module_has_numbered_equations", branches_on_a_number, DOCUMENTED),
    ("the_module_names_source_and_contract", branches_on_a_number, DOCUMENTED),
]


@pytest.mark.parametrize(("name", "factory", "traits"), PLANTED, ids=[name for name, *_ in PLANTED])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_check_catches_its_mutant(name, factory, traits):
    check = dict(checks_for(traits))[name]
    with pytest.raises(Exception):  # noqa: B017
        check(Subject(factory, traits=traits))
    gc.collect()  # here, not in the next test: an Orbax save that fails leaves a coroutine behind


def test_failures_are_listed_together_and_expected_ones_are_strict():
    with pytest.raises(AssertionError) as error:
        check_transform(stateless(lambda u: -u), traits=STATELESS, expected_failures={"works_in_chain": "no reason"})
    assert "learns_a_quadratic" in str(error.value)
    assert "names_an_integer_leaf" in str(error.value)
    assert "works_in_chain: passes, expected to fail (no reason)" in str(error.value)


def test_expected_failures_name_checks_that_exist():
    with pytest.raises(AssertionError, match="works_in_chains: expected to fail"):
        check_transform(stateless(lambda u: -u), traits=STATELESS, expected_failures={"works_in_chains": "typo"})
