"""Rows of `momentax.transforms`."""

import momentax
from catalogue._case import MATRICES_AS_THEY_ARE, Case, halves
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
        "momentax.average_replicas",
        momentax.average_replicas,
        dict(axis_name=()),
        Traits(has_state=False, complex_ok=True, learning_rate=0.5, static_args=("axis_name",)),
        {"the_technique_acts": "no map is around the checks, and an average over nothing is the identity"},
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
    Case(
        "momentax.orthogonalize",
        momentax.orthogonalize,
        dict(steps=2),
        Traits(
            acts_on="matrices",
            plain=MATRICES_AS_THEY_ARE,
            reads_names=True,
            has_state=False,
            static_args=("steps", "safety"),
            static_choices={"normalize": "l1", "method": "jordan"},
            parts=("partition_by_rule", "scale_by_adam"),
        ),
        only_matrices=True,
    ),
    Case(
        "momentax.orthogonalize_blocks",
        momentax.orthogonalize_blocks,
        dict(period=2, steps=2, blocks=halves),
        Traits(
            acts_on="matrices",
            plain=MATRICES_AS_THEY_ARE,
            reads_names=True,
            has_state=False,
            static_args=("period", "steps", "blocks"),
            static_choices={"period": 0, "method": "jordan", "blocks": (2, 0), "scale": "kj_last_axes"},
            parts=("partition_by_rule", "orthogonalize", "scale_by_adam"),
        ),
        only_matrices=True,
    ),
    Case(
        "momentax.scale_by_matrix_shape",
        momentax.scale_by_matrix_shape,
        dict(scale="moonlight"),
        Traits(
            acts_on="matrices",
            plain=MATRICES_AS_THEY_ARE,
            reads_names=True,
            has_state=False,
            static_choices={"scale": "muon"},
            parts=("partition_by_rule", "scale_by_adam"),
        ),
        only_matrices=True,
    ),
    Case(
        "momentax.scale_by_cosh_rms",
        momentax.scale_by_cosh_rms,
        dict(gamma=1.5),
        Traits(has_state=False, learns=False, scheduled=("gamma", "eps"), static_choices={"variant": "code"}),
    ),  # steps do not shrink
    Case(
        "momentax.scale_by_cosh_rms[official]",
        momentax.scale_by_cosh_rms,
        dict(gamma=3.0, variant="official"),
        Traits(has_state=False, scheduled=("gamma", "eps"), static_choices={"variant": "code"}),
    ),
    Case(
        "momentax.normalize_rows",
        momentax.normalize_rows,
        dict(),
        Traits(
            acts_on="matrices",
            plain=MATRICES_AS_THEY_ARE,
            reads_names=True,
            scheduled=("b2", "eps"),
            static_choices={"rescale": "row"},
            parts=("partition_by_rule", "scale_by_adam"),
        ),
        only_matrices=True,
    ),
    Case(
        "momentax.retract_to_sphere",
        momentax.retract_to_sphere,
        dict(learning_rate=0.1, weight_decay=0.01, decay="cautious"),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=MATRICES_AS_THEY_ARE,
            reads_names=True,
            has_learning_rate=True,
            learns=False,  # weights keep their norms
            scheduled=("learning_rate", "weight_decay", "eps"),
            static_choices={"radius": "mean", "decay": "l2", "scope": "global"},
            parts=("partition_by_rule", "scale_by_adam"),
        ),
        {"zero_weights_stay_finite": "a zero matrix has no direction on a sphere: init refuses it"},
        only_matrices=True,
    ),
    Case(
        "momentax.bound_spectral_norm",
        momentax.bound_spectral_norm,
        dict(steps=1),
        Traits(
            acts_on="matrices",
            plain=MATRICES_AS_THEY_ARE,
            reads_names=True,
            scheduled=("kappa",),
            static_args=("steps",),
            static_choices={"method": "jordan", "steps": 0},
            parts=("partition_by_rule", "scale_by_adam"),
        ),
        only_matrices=True,
    ),
    Case(
        "momentax.bound_spectral_norm[tangent]",
        momentax.bound_spectral_norm,
        dict(steps=1, tangent=True),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=MATRICES_AS_THEY_ARE,
            reads_names=True,
            scheduled=("kappa",),
            static_args=("steps",),
            static_choices={"method": "jordan", "steps": 0},
            parts=("partition_by_rule", "scale_by_adam"),
        ),
        only_matrices=True,
    ),
]
