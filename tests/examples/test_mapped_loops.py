"""The loops written with jax.shard_map and jax.pmap learn, and eight devices do what one does."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)
    return loop


@pytest.mark.parametrize("name", ["shard_map_loop", "pmap_loop"])
def test_learns_alike_on_one_device_and_on_eight(name, capsys):
    loop = load(name)
    with jax.numpy_rank_promotion("allow"):  # as JAX has it by default: kernels and biases without a library
        losses = loop.main()
        alone = loop.main(steps=20, devices=jax.devices()[:1])

    assert min(losses[-10:]) > 0 and max(losses[-10:]) < losses[0] / 10, losses[-10:]
    assert f"step 100  loss {losses[-1]:.4f}" in capsys.readouterr().out
    np.testing.assert_allclose(losses[:20], alone, rtol=1e-5)


def test_both_loops_are_the_same_problem():
    with jax.numpy_rank_promotion("allow"):
        losses = [load(name).main(steps=1, devices=jax.devices()[:1]) for name in ("shard_map_loop", "pmap_loop")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
