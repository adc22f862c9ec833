"""Rows of `momentax.transforms`."""

import momentax
from catalogue._case import Case
from momentax.testing import Traits

CASES = [
    Case(
        "momentax.heavy_ball",
        momentax.heavy_ball,
        dict(b1=0.9, dampening=0.5, nesterov=True),
        Traits(complex_ok=True, scheduled=("b1", "dampening")),
    ),
    Case(
        "momentax.average_gradients",
        momentax.average_gradients,
        dict(b1=0.9),
        Traits(complex_ok=True, learning_rate=0.5, scheduled=("b1",)),
    ),
    Case(
        "momentax.scale_by_adam", momentax.scale_by_adam, dict(b1=0.9, b2=0.99), Traits(scheduled=("b1", "b2", "eps"))
    ),
    Case(
        "momentax.scale_by_adan",
        momentax.scale_by_adan,
        dict(),
        Traits(scheduled=("b1", "b2", "b3", "eps")),
    ),
    Case(
        "momentax.scale_by_lion_k",
        momentax.scale_by_lion_k,
        dict(convex=momentax.convex.tanh(2.0)),
        Traits(learning_rate=0.01, scheduled=("b1", "b2")),
    ),
    Case(
        "momentax.clip_global_norm",
        momentax.clip_global_norm,
        dict(max_norm=1.0),
        Traits(has_state=False, couples_leaves=True, scheduled=("max_norm", "eps")),
    ),
    Case(
        "momentax.adapt_memory[identity]",
        momentax.adapt_memory,
        dict(),
        Traits(
            couples_leaves=True,
            learning_rate=0.5,
            scheduled=("b1_max", "proximity"),
            static_choices={"metric": "full", "scope": "row", "offset": "second_order"},
        ),
    ),
    Case(
        "momentax.adapt_memory[diagonal]",
        momentax.adapt_memory,
        dict(metric="diagonal", scope="leaf"),
        Traits(
            scheduled=("b1_max", "b2", "eps", "proximity"),
            static_choices={"metric": "full", "scope": "row", "offset": "second_order"},
        ),
    ),
    Case(
        "momentax.scale_by_adam[amsgrad]",
        momentax.scale_by_adam,
        dict(b1=0.9, b2=0.99, eps_hat=True, amsgrad=True),
        Traits(scheduled=("b1", "b2", "eps")),
    ),
    Case(
        "momentax.clip_to_average_max",
        momentax.clip_to_average_max,
        dict(gamma3=0.9),
        Traits(learning_rate=0.5, scheduled=("gamma3",)),
    ),
    Case(
        "momentax.scale_to_average_norm",
        momentax.scale_to_average_norm,
        dict(),
        Traits(learns=False, scheduled=("gamma1", "gamma2", "eps")),  # steps do not shrink
    ),
]
