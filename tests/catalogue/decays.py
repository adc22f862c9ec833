"""Rows of `momentax.decays`."""

import momentax
from catalogue._case import Case
from momentax.testing import Traits

CASES = [
    Case(
        "momentax.decays.decoupled",
        momentax.decays.decoupled,
        dict(weight_decay=0.1),
        Traits(needs_params=True, complex_ok=True, scheduled=("weight_decay",)),
    ),
    Case(
        "momentax.decays.proximal",
        momentax.decays.proximal,
        dict(learning_rate=0.5, weight_decay=0.01),
        Traits(needs_params=True, has_learning_rate=True, complex_ok=True, scheduled=("learning_rate", "weight_decay")),
    ),
    Case(
        "momentax.decays.cautious",
        momentax.decays.cautious,
        dict(weight_decay=0.1),
        Traits(needs_params=True, scheduled=("weight_decay",)),
    ),
    Case(
        "momentax.decays.after_step",
        momentax.decays.after_step,
        dict(learning_rate=0.5, weight_decay=0.01),
        Traits(needs_params=True, has_learning_rate=True, complex_ok=True, scheduled=("learning_rate", "weight_decay")),
    ),
    Case(
        "momentax.decays.take_step",
        momentax.decays.take_step,
        dict(learning_rate=0.5, weight_decay=0.01),
        Traits(
            needs_params=True,
            has_learning_rate=True,
            complex_ok=True,
            scheduled=("learning_rate", "weight_decay"),
            static_choices={"decay": "l2"},
            parts=("decoupled",),
        ),
    ),
]
