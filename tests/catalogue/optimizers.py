"""Rows of `momentax.optimizers`."""

import optax

import momentax
from catalogue._case import Case, halves
from momentax.testing import Traits

HEAVY_BALL_WITH_DECAY = optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1))
MOMENTUM = optax.chain(momentax.average_gradients(0.95, debias=False, nesterov=True), optax.scale(-0.05))

DESCENT_BESIDE_ADAMW = momentax.partition_by_rule(
    {"matrix": optax.sgd(0.05), "rest": optax.adamw(0.05, 0.9, 0.95, 1e-10, weight_decay=0.01)}
)


def beside_adamw(b1, weight_decay):
    """Momentum for matrices, for the rest what NAMO and AuON give it."""
    adamw = optax.chain(
        momentax.scale_by_adam(b1, 0.95, 1e-8, eps_hat=True), momentax.decays.take_step(0.05, weight_decay)
    )
    return momentax.partition_by_rule({"matrix": MOMENTUM, "rest": adamw})


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
            parts=("scale_by_adan", "proximal", "reset_momentum"),
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
        "momentax.lion_k[row_norm]",
        momentax.lion_k,
        dict(learning_rate=0.01, convex=momentax.convex.row_norm()),
        Traits(
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2"),
            static_choices={"decay": "l2"},
            parts=("scale_by_lion_k",),
        ),
    ),
    Case(
        "momentax.lion_k[nuclear]",
        momentax.lion_k,
        dict(learning_rate=0.01, convex=momentax.convex.nuclear()),
        Traits(
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2"),
            static_choices={"decay": "l2"},
            parts=("scale_by_lion_k",),
        ),
    ),
    Case(
        "momentax.lion_k[l2 global]",
        momentax.lion_k,
        dict(learning_rate=0.05, convex=momentax.convex.l2(scope="global")),
        Traits(
            couples_leaves=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2"),
            static_choices={"decay": "l2"},
            parts=("scale_by_lion_k",),
        ),
    ),
    Case(
        "momentax.lion_k[top_k]",
        momentax.lion_k,
        dict(learning_rate=0.1, convex=momentax.convex.top_k(1)),
        Traits(
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2"),
            static_choices={"decay": "l2"},
            parts=("scale_by_lion_k",),
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
        "momentax.spam",
        momentax.spam,
        dict(learning_rate=0.05, b2=0.99, weight_decay=0.01, threshold=2.0, clip_after=1, reset_every=3, warmup=2),
        Traits(
            needs_params=True,
            has_learning_rate=True,
            learns=False,  # resets that come so often leave too few full steps
            scheduled=("learning_rate", "b1", "b2", "eps", "weight_decay", "threshold"),
            static_args=("clip_after", "reset_every", "warmup", "key"),
            static_choices={"variant": "code", "reset_every": 1},
            parts=("clip_spikes", "scale_by_adam", "reset_momentum", "after_step"),
        ),
    ),
    Case(
        "momentax.spam[sparse]",
        momentax.spam,
        dict(learning_rate=0.2, weight_decay=0.001, density=0.5, reset_every=20, warmup=3, restart_bias=True),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=optax.chain(
                momentax.scale_by_adam(eps=1e-6, eps_hat=True),
                momentax.decays.take_step(0.2, 0.001, decay="after_step"),
            ),
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2", "eps", "weight_decay", "threshold"),
            static_args=("clip_after", "reset_every", "warmup", "density", "key"),
            static_choices={"variant": "code", "density": 0.0},
            parts=("sparse_momentum", "clip_spikes", "scale_by_adam", "reset_momentum", "after_step"),
        ),
        {
            "state_maps_onto_parameters": "buffers have the size of the kept entries: that is the technique",
            "order_does_not_matter": "the choice of entries depends on the path of the leaf",
        },
    ),
    Case(
        "momentax.stable_spam",
        momentax.stable_spam,
        dict(learning_rate=0.05, weight_decay=0.01, reset_every=40, total_steps=200),
        Traits(
            needs_params=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2", "eps", "weight_decay", "gamma1", "gamma2", "gamma3"),
            static_args=("reset_every", "total_steps"),
            static_choices={"variant": "code", "reset_every": 0},
            parts=("clip_to_average_max", "scale_to_average_norm", "scale_by_adam", "reset_momentum", "decoupled"),
        ),
    ),
    Case(
        "momentax.stable_spam[official]",
        momentax.stable_spam,
        dict(learning_rate=0.05, reset_every=2, amsgrad=True, variant="official"),
        Traits(
            has_learning_rate=True,
            learns=False,  # every second step is that of a single gradient
            scheduled=("learning_rate", "b1", "b2", "eps", "gamma1", "gamma2", "gamma3"),
            static_args=("reset_every", "total_steps"),
            static_choices={"variant": "code", "reset_every": 0},
            parts=("clip_to_average_max", "scale_to_average_norm", "scale_by_adam", "reset_momentum"),
        ),
    ),
    Case(
        "momentax.muon",
        momentax.muon,
        dict(learning_rate=0.05, weight_decay=0.01, steps=1, rest_learning_rate=0.05),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=DESCENT_BESIDE_ADAMW,
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "weight_decay", "rest_learning_rate"),
            static_args=("steps",),
            static_choices={"bias_correction": "adam", "scale": "muon", "method": "jordan"},
            parts=(
                "partition_by_rule",
                "average_gradients",
                "orthogonalize",
                "scale_by_matrix_shape",
                "scale_by_adam",
                "decoupled",
            ),
        ),
    ),
    Case(
        "momentax.namo",
        momentax.namo,
        dict(learning_rate=0.05, weight_decay=0.01, steps=1, rest_learning_rate=0.05),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=beside_adamw(0.9, 0.01),
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2", "eps", "weight_decay", "rms", "rest_learning_rate"),
            static_args=("steps", "norm_eps"),
            static_choices={"variant": "code", "scale": "muon", "method": "jordan"},
            parts=("partition_by_rule", "scale_by_norm_snr", "orthogonalize", "scale_by_adam", "decoupled"),
        ),
    ),
    Case(
        "momentax.namo_d[official]",
        momentax.namo_d,
        dict(learning_rate=0.05, weight_decay=0.01, steps=1, variant="official", rest_learning_rate=0.05),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=beside_adamw(0.9, 0.01),
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2", "eps", "weight_decay", "clamp", "rms", "rest_learning_rate"),
            static_args=("steps", "norm_eps"),
            static_choices={"variant": "code", "scale": "muon", "method": "jordan", "axis": "row"},
            parts=("partition_by_rule", "scale_by_column_snr", "orthogonalize", "scale_by_adam", "decoupled"),
        ),
    ),
    Case(
        "momentax.auon",
        momentax.auon,
        dict(learning_rate=0.05, gamma=1.0, rest_learning_rate=0.05),
        Traits(
            acts_on="matrices",
            plain=beside_adamw(0.8, None),
            reads_names=True,
            has_learning_rate=True,
            learns=False,  # steps do not shrink
            scheduled=("learning_rate", "b1", "gamma", "rest_learning_rate"),
            static_choices={"variant": "code", "scale": "muon"},
            parts=(
                "partition_by_rule",
                "average_gradients",
                "scale_by_cosh_rms",
                "scale_by_matrix_shape",
                "scale_by_adam",
            ),
        ),
    ),
    Case(
        "momentax.hybrid_auon",
        momentax.hybrid_auon,
        dict(learning_rate=0.05, weight_decay=0.01, gamma=1.5, rest_learning_rate=0.05),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=beside_adamw(0.8, 0.01),
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "weight_decay", "gamma", "rest_learning_rate"),
            static_args=("steps", "eps"),
            static_choices={"variant": "code", "scale": "muon", "method": "jordan"},
            parts=(
                "partition_by_rule",
                "average_gradients",
                "orthogonalize",
                "scale_by_cosh_rms",
                "scale_by_matrix_shape",
                "scale_by_adam",
                "decoupled",
            ),
        ),
    ),
    Case(
        "momentax.normuon",
        momentax.normuon,
        dict(learning_rate=0.05, weight_decay=0.01, steps=1, decay="cautious", rest_learning_rate=0.05),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=momentax.partition_by_rule(
                {
                    "matrix": optax.sgd(0.05),
                    "rest": optax.chain(
                        optax.scale_by_adam(0.9, 0.95, 1e-10), momentax.decays.take_step(0.05, 0.01, decay="cautious")
                    ),
                }
            ),
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2", "weight_decay", "rest_learning_rate"),
            static_args=("steps",),
            static_choices={"rescale": "row", "scale": "muon", "decay": "l2"},
            parts=("partition_by_rule", "normalize_rows", "scale_by_matrix_shape", "cautious", "scale_by_adam"),
        ),
    ),
    Case(
        "momentax.muonh",
        momentax.muonh,
        dict(learning_rate=0.05, steps=1),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=momentax.partition_by_rule({"matrix": optax.sgd(0.05), "rest": optax.adam(0.05, 0.9, 0.95)}),
            reads_names=True,
            has_learning_rate=True,
            learns=False,  # matrices keep their norms
            scheduled=("learning_rate", "b1", "adam_b1", "adam_b2"),
            static_args=("steps",),
            static_choices={"radius": "mean", "scope": "global", "decay": "l2"},
            parts=("partition_by_rule", "heavy_ball", "orthogonalize", "retract_to_sphere", "scale_by_adam"),
        ),
        {"zero_weights_stay_finite": "a zero matrix has no direction on a sphere: init refuses it"},
    ),
    Case(
        "momentax.adamh",
        momentax.adamh,
        dict(learning_rate=0.05, weight_decay=0.01),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=optax.adamw(0.05, b2=0.95, weight_decay=0.01),
            reads_names=True,
            has_learning_rate=True,
            learns=False,  # matrices keep their norms
            scheduled=("learning_rate", "b1", "b2", "eps", "weight_decay"),
            static_choices={"radius": "mean", "scope": "global", "decay": "l2"},
            parts=("partition_by_rule", "retract_to_sphere", "scale_by_adam", "decoupled"),
        ),
        {"zero_weights_stay_finite": "a zero matrix has no direction on a sphere: init refuses it"},
    ),
    Case(
        "momentax.fismo",
        momentax.fismo,
        dict(learning_rate=0.05, weight_decay=0.01, steps=1, rest_learning_rate=0.05),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=DESCENT_BESIDE_ADAMW,
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "b2", "damping", "weight_decay", "rest_learning_rate"),
            static_args=("steps", "update_every", "max_dim"),
            static_choices={"scale": "muon", "method": "jordan", "root": "svd"},
            parts=(
                "partition_by_rule",
                "whiten_by_fisher",
                "average_gradients",
                "orthogonalize",
                "scale_by_matrix_shape",
                "scale_by_adam",
                "decoupled",
            ),
        ),
    ),
    Case(
        "momentax.muon_bp",
        momentax.muon_bp,
        dict(
            learning_rate=0.05,
            block_learning_rate=0.04,
            weight_decay=0.01,
            period=2,
            blocks=halves,
            steps=1,
            rest_learning_rate=0.05,
        ),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=DESCENT_BESIDE_ADAMW,
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "block_learning_rate", "b1", "weight_decay", "rest_learning_rate"),
            static_args=("period", "steps", "blocks"),
            static_choices={"period": 0, "method": "jordan", "blocks": (2, 0), "scale": "kj_last_axes"},
            parts=(
                "partition_by_rule",
                "average_gradients",
                "orthogonalize_blocks",
                "orthogonalize",
                "scale_by_adam",
                "decoupled",
            ),
        ),
    ),
    Case(
        "momentax.muon_pp",
        momentax.muon_pp,
        dict(learning_rate=0.05, weight_decay=0.01, steps=1, rest_learning_rate=0.05),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=DESCENT_BESIDE_ADAMW,
            reads_names=True,
            has_learning_rate=True,
            scheduled=("learning_rate", "b1", "kappa", "weight_decay", "rest_learning_rate"),
            static_args=("steps",),
            static_choices={"method": "jordan", "steps": 0},
            parts=("partition_by_rule", "average_gradients", "bound_spectral_norm", "scale_by_adam", "decoupled"),
        ),
    ),
]
