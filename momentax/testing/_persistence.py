"""Checks that a run saved half way and loaded again continues identically. They need Flax and Orbax."""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from momentax.testing._compare import assert_identical
from momentax.testing._subject import LOSSES, Subject, gradients, parameters

NEEDED = "this check needs Flax and Orbax: pip install flax orbax-checkpoint"


def _assert_continues(subject, restored, what):
    first, second = subject.reference[0], subject.reference[1]
    assert_identical(restored, {"params": first.params, "state": first.state}, what)
    restored = jax.tree.map(_uncommitted, restored)
    moment = subject.advance()(restored["params"], restored["state"], gradients()[1], LOSSES[1])
    assert_identical(moment, second, f"the step after {what}")


def _uncommitted(leaf):
    """An array bound to no device, for which the step is compiled already."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def check_survives_flax_serialization(subject: Subject):
    """Through `flax.serialization`, into the state of a fresh `init`."""
    try:
        from flax import serialization
    except ImportError as error:
        raise AssertionError(NEEDED) from error
    saved = {"params": subject.reference[0].params, "state": subject.reference[0].state}
    fresh = {"params": parameters(), "state": subject.transform.init(parameters())}
    restored = serialization.from_bytes(fresh, serialization.to_bytes(saved))
    _assert_continues(subject, restored, "saving and loading with flax.serialization")


def check_survives_orbax(subject: Subject):
    """Through an Orbax checkpoint, into the types of a fresh `init`."""
    try:
        from orbax.checkpoint import v1 as orbax
    except ImportError as error:
        raise AssertionError(NEEDED) from error
    saved = {"params": subject.reference[0].params, "state": subject.reference[0].state}
    fresh = {"params": parameters(), "state": subject.transform.init(parameters())}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), fresh)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "checkpoint"
        orbax.save(path, saved)
        restored = orbax.load(path, like)
    _assert_continues(subject, restored, "saving and loading with Orbax")
