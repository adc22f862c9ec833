"""One row for each public factory: cheap arguments, what it promises, and failures that are known, with reasons.

A factory whose arguments change what it does has several rows, told apart by [...] after the name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

import momentax
from momentax.testing import Subject, Traits


@dataclasses.dataclass(frozen=True)
class Case:
    """A row: a public name, the factory behind it, keyword arguments, traits, expected failures with reasons."""

    name: str
    factory: Callable[..., optax.GradientTransformation]
    arguments: Mapping[str, Any]
    traits: Traits
    expected_failures: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def subject(self) -> Subject:
        """What the checks take; every technique of the library is documented."""
        return Subject(self.factory, (), self.arguments, dataclasses.replace(self.traits, documented=True))


HEAVY_BALL_WITH_DECAY = optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1))

CASES = [
    Case(
        "momentax.adamp",
        momentax.adamp,
        dict(learning_rate=0.05, b2=0.99, weight_decay=0.01),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=optax.adamw(0.05, b2=0.99, weight_decay=0.01),
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2", "eps", "weight_decay", "delta", "wd_ratio"),
            parts=("project_radial", "scale_by_adam"),
        ),
    ),
    Case(
        "momentax.sgdp",
        momentax.sgdp,
        dict(learning_rate=0.02, b1=0.9, weight_decay=0.01),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=optax.chain(HEAVY_BALL_WITH_DECAY, optax.scale_by_learning_rate(0.02)),
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "dampening", "eps", "weight_decay", "delta", "wd_ratio"),
            static_choices={"variant": "code"},
            parts=("project_radial", "heavy_ball"),
        ),
    ),
    Case(
        "momentax.sgdp[official]",
        momentax.sgdp,
        dict(learning_rate=0.02, b1=0.9, variant="official"),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=optax.sgd(0.02, momentum=0.9),
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "dampening", "eps", "delta", "wd_ratio"),
            static_choices={"variant": "code"},
            parts=("project_radial", "heavy_ball"),
        ),
    ),
    Case(
        "momentax.adan",
        momentax.adan,
        dict(learning_rate=0.05, weight_decay=0.01, restart_every=100),
        Traits(
            needs_params=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2", "b3", "eps", "weight_decay"),
            static_args=("restart_every",),
            static_choices={"decay": "l2"},
            parts=("scale_by_adan", "proximal"),
        ),
    ),
    Case(
        "momentax.adan[clipped]",
        momentax.adan,
        dict(learning_rate=0.05, weight_decay=0.01, max_grad_norm=10.0, decay="decoupled"),
        Traits(
            needs_params=True,
            couples_leaves=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2", "b3", "eps", "weight_decay", "max_grad_norm"),
            static_choices={"decay": "l2", "restart_every": 0},
            parts=("scale_by_adan", "clip_global_norm", "decoupled"),
        ),
    ),
    Case(
        "momentax.lion_k",
        momentax.lion_k,
        dict(learning_rate=0.01),
        Traits(
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2"),
            static_choices={"decay": "l2"},
            parts=("scale_by_lion_k",),
        ),
    ),
    Case(
        "momentax.lion_k[proximal]",
        momentax.lion_k,
        dict(learning_rate=0.01, convex=momentax.convex.huber(0.1), weight_decay=0.01, decay="proximal"),
        Traits(
            needs_params=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2", "weight_decay"),
            static_choices={"decay": "l2"},
            parts=("scale_by_lion_k", "proximal"),
        ),
    ),
    Case(
        "momentax.am_sgd",
        momentax.am_sgd,
        dict(learning_rate=0.5, weight_decay=0.001),
        Traits(
            needs_params=True,
            couples_leaves=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1_max", "proximity", "weight_decay"),
            static_choices={"scope": "row", "offset": "second_order"},
            parts=("adapt_memory", "decoupled"),
        ),
    ),
    Case(
        "momentax.am_sgd[value]",
        momentax.am_sgd,
        dict(learning_rate=0.5, offset="value", skip_non_finite=True),
        Traits(
            needs_value=True,
            couples_leaves=True,
            has_learning_rate=True,
            non_finite="skips",
            scheduled=("learning_rate", "b1_max", "proximity"),
            static_choices={"scope": "row", "offset": "second_order"},
            parts=("adapt_memory",),
        ),
    ),
    Case(
        "momentax.am_adamw",
        momentax.am_adamw,
        dict(learning_rate=0.05, weight_decay=0.01),
        Traits(
            needs_params=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1_max", "b2", "eps", "proximity", "weight_decay"),
            static_choices={"scope": "row", "offset": "second_order"},
            parts=("adapt_memory",),
        ),
    ),
    Case(
        "momentax.am_adamw[skip_non_finite]",
        momentax.am_adamw,
        dict(learning_rate=0.05, skip_non_finite=True),
        Traits(
            has_learning_rate=True,
            non_finite="skips",
            scheduled=("learning_rate", "b1_max", "b2", "eps", "proximity"),
            static_choices={"scope": "row", "offset": "second_order"},
            parts=("adapt_memory",),
        ),
    ),
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
        dict(restart_every=2),
        Traits(scheduled=("b1", "b2", "b3", "eps"), static_args=("restart_every",)),
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
        "momentax.project_radial[gated]",
        momentax.project_radial,
        dict(inner=momentax.heavy_ball(0.9), weight_decay=0.1),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=HEAVY_BALL_WITH_DECAY,
            reads_names=True,
            learning_rate=0.02,
            scheduled=("delta", "wd_ratio", "weight_decay", "eps"),
            static_choices={"views": ("row",)},
            parts=("heavy_ball",),
        ),
    ),
    Case(
        "momentax.project_radial[always]",
        momentax.project_radial,
        dict(delta=None),
        Traits(
            needs_params=True,
            acts_on="matrices",
            reads_names=True,
            learns=False,  # lengths of columns stay what they are
            scheduled=("wd_ratio", "eps"),
            static_choices={"views": ("row",)},
        ),
    ),
    Case(
        "momentax.keep_master_weights",
        momentax.keep_master_weights,
        dict(inner=momentax.scale_by_adam(b2=0.99)),
        Traits(
            needs_params=True,
            plain=momentax.scale_by_adam(b2=0.99),
            acts_in="bfloat16",
            static_args=("dtype",),
            parts=("scale_by_adam",),
        ),
    ),
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
]
