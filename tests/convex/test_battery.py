"""Lion-K along every convex function, placed on explicit meshes, in other dtypes, and at the edges.

Four rows of the catalogue go through the whole battery; these checks are those that a convex function can fail.
"""

import functools

import pytest
from convex.functions import FUNCTIONS, name

import momentax
from momentax.testing import Subject, Traits, checks_for

CHECKS = (
    "sharded_on_an_explicit_mesh",
    "sharded_on_an_explicit_mesh_of_two_axes",
    "promotes_explicitly",
    "half_precision_follows_float32",
    "zero_gradients_stay_finite",
    "tiny_gradients_stay_finite",
    "a_spike_stays_finite",
)
# The parameters of the battery hold a scalar, which has one entry.
ONE_ENTRY = [K for K in FUNCTIONS if not K.smallest]
KS = [*ONE_ENTRY, momentax.convex.top_k(1), momentax.convex.nuclear(steps=6)]


@functools.cache
def subject(K):
    traits = Traits(couples_leaves=K.scope == "global", reads_names=K.needs_axes, learning_rate=0.01)
    return Subject(momentax.scale_by_lion_k, (K,), {}, traits)


@pytest.mark.parametrize("check_name", CHECKS)
@pytest.mark.parametrize("K", KS, ids=name)
def test_check(K, check_name):
    found = dict(checks_for(subject(K).traits))
    found[check_name](subject(K))
