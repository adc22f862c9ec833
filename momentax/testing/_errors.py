"""Checks that what cannot work is refused, in words that say where and what to do."""

import functools

import jax.numpy as jnp

from momentax.testing._subject import Subject, gradients, parameters
from momentax.testing._when import when


def _error(call, kinds, what):
    """The message of the error that `call` must raise."""
    try:
        call()
    except kinds as error:
        return str(error)
    except Exception as error:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise AssertionError(f"{what} should raise {wanted}, not {type(error).__name__}: {error}") from error
    raise AssertionError(f"{what} should raise {' or '.join(kind.__name__ for kind in kinds)}, but passes.")


def _assert_says(subject, message, word, what):
    """The message contains the word and the name of the factory or of one of its parts."""
    names = (subject.name, *subject.traits.parts)
    named = any(name in message for name in names)
    assert named, f"the error of {what} should name {' or '.join(names)}; it says: {message}"
    assert word in message, f"the error of {what} should name '{word}'; it says: {message}"


def _init_and_update(subject, params, grads):
    return subject.update(subject.transform.init(params), grads, params)


@when(lambda traits: traits.needs_params)
def check_names_missing_params(subject: Subject):
    """Without `params` a ValueError names the transform and the call that mends it."""
    state = subject.transform.init(parameters())
    call = functools.partial(subject.update, state, gradients()[0], None)
    what = "update(updates, state) without params"
    _assert_says(subject, _error(call, (ValueError,), what), "update(updates, state, params", what)


@when(lambda traits: traits.needs_value)
def check_names_missing_value(subject: Subject):
    """Without `value=` a ValueError names the transform and the argument."""
    params, grads = parameters(), gradients()[0]
    call = functools.partial(subject.transform.update, grads, subject.transform.init(params), params)
    message = _error(call, (ValueError,), "update without value=")
    _assert_says(subject, message, "value=", "update without value=")


@when(lambda traits: bool(traits.static_choices))
def check_refuses_bad_static_choices(subject: Subject):
    """A choice that does not exist fails in the factory, naming the factory and the argument."""
    for argument, bad in subject.traits.static_choices.items():
        what = f"{subject.name}({argument}={bad!r})"
        message = _error(functools.partial(subject.build, **{argument: bad}), (ValueError, TypeError), what)
        _assert_says(subject, message, argument, what)


@when(lambda traits: traits.has_state or traits.needs_params)
def check_names_a_leaf_missing_from_the_gradients(subject: Subject):
    """Gradients without one of the leaves raise a ValueError with the path of that leaf."""
    grads = gradients()[0]
    del grads["mlp"]["up"]["bias"]
    state = subject.transform.init(parameters())
    what = "update with a leaf missing"
    message = _error(lambda: subject.update(state, grads, parameters()), (ValueError,), what)
    _assert_says(subject, message, "mlp/up/bias", what)


@when(lambda traits: traits.has_state or traits.needs_params)
def check_names_an_extra_leaf_in_the_gradients(subject: Subject):
    """Gradients with a leaf that `init` did not see raise a ValueError with the path of that leaf."""
    grads = gradients()[0]
    grads["norm"]["bias"] = jnp.ones(8)
    state = subject.transform.init(parameters())
    what = "update with a leaf too many"
    message = _error(lambda: subject.update(state, grads, parameters()), (ValueError,), what)
    _assert_says(subject, message, "norm/bias", what)


@when(lambda traits: traits.has_state or traits.needs_params)
def check_names_a_leaf_of_the_wrong_shape(subject: Subject):
    """Gradients with a leaf of another shape, even one that broadcasts, raise a ValueError with its path."""
    state = subject.transform.init(parameters())
    for change in (jnp.transpose, lambda leaf: leaf[:1]):
        grads = gradients()[0]
        grads["mlp"]["up"]["kernel"] = change(grads["mlp"]["up"]["kernel"])
        shape = grads["mlp"]["up"]["kernel"].shape
        what = f"update with a leaf of shape {shape} for a parameter of shape (8, 16)"
        message = _error(lambda grads=grads: subject.update(state, grads, parameters()), (ValueError,), what)
        _assert_says(subject, message, "mlp/up/kernel", what)


def check_names_an_integer_leaf(subject: Subject):
    """An integer leaf raises an error with its path, at `init` or at `update`."""
    params, grads = parameters(), gradients()[0]
    params["norm"]["steps"] = grads["norm"]["steps"] = jnp.ones((4,), jnp.int32)
    what = "a tree with an integer leaf"
    message = _error(lambda: _init_and_update(subject, params, grads), (TypeError, ValueError), what)
    _assert_says(subject, message, "norm/steps", what)


@when(lambda traits: not traits.complex_ok)
def check_names_a_complex_leaf(subject: Subject):
    """A complex leaf raises an error with its path, at `init` or at `update`."""
    params, grads = parameters(), gradients()[0]
    params["norm"]["phase"] = grads["norm"]["phase"] = jnp.ones((4,), jnp.complex64)
    what = "a tree with a complex leaf"
    message = _error(lambda: _init_and_update(subject, params, grads), (TypeError, ValueError), what)
    _assert_says(subject, message, "norm/phase", what)
