"""Rows of `momentax.optimizers`."""

import optax

import momentax
from catalogue._case import Case
from momentax.testing import Traits

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
]
