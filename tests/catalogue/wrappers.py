"""Rows of `momentax.wrappers`."""

import optax

import momentax
from catalogue._case import MATRICES_AS_THEY_ARE, Case
from momentax.testing import Traits

HEAVY_BALL_WITH_DECAY = optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1))
AVERAGED_MATRICES = momentax.partition_by_rule(
    {"matrix": momentax.average_gradients(0.95, debias=False, nesterov=True), "rest": momentax.scale_by_adam()}
)

CASES = [
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
        "momentax.on_mesh",
        momentax.on_mesh,
        dict(inner=momentax.scale_by_adam(b2=0.99)),
        Traits(
            static_args=("wire_dtype",),
            static_choices={"layout": "diagonal"},
            parts=("scale_by_adam",),
        ),
    ),
    Case(
        "momentax.clip_spikes",
        momentax.clip_spikes,
        dict(inner=momentax.scale_by_adam(b2=0.99), threshold=2.0, clip_after=2),
        Traits(
            plain=momentax.scale_by_adam(b2=0.99),
            scheduled=("threshold",),
            static_args=("clip_after",),
            static_choices={"variant": "code", "reset_every": 0},
            parts=("scale_by_adam",),
        ),
    ),
    Case(
        "momentax.clip_spikes[alone]",
        momentax.clip_spikes,
        dict(threshold=2.0, clip_after=2, b2=0.99),
        Traits(
            learning_rate=0.5,
            scheduled=("threshold", "b2"),
            static_args=("clip_after",),
            static_choices={"variant": "code", "reset_every": 0},
        ),
    ),
    Case(
        "momentax.reset_momentum",
        momentax.reset_momentum,
        dict(inner=momentax.heavy_ball(0.9), every=2),
        Traits(
            plain=momentax.heavy_ball(0.9),
            static_args=("every", "warmup"),
            static_choices={"every": 0, "warmup": -1, "when": "never"},
            complex_ok=True,
            parts=("heavy_ball",),
        ),
    ),
    Case(
        "momentax.reset_momentum[after, with warm-up]",
        momentax.reset_momentum,
        dict(inner=momentax.scale_by_adam(b2=0.99), every=3, warmup=2, restart_counts=True, when="after"),
        Traits(
            plain=momentax.scale_by_adam(b2=0.99),
            learning_rate=0.2,
            static_args=("every", "warmup"),
            static_choices={"every": 0, "warmup": -1, "when": "never"},
            parts=("scale_by_adam",),
        ),
    ),
    Case(
        "momentax.sparse_momentum",
        momentax.sparse_momentum,
        dict(
            inner=momentax.scale_by_adam(b2=0.99),
            density=0.25,
            refresh=2,
            density_mask=momentax.routing.only_matrices,
        ),
        Traits(
            plain=momentax.reset_momentum(momentax.scale_by_adam(b2=0.99), every=2),
            reads_names=True,
            acts_on="matrices",
            learning_rate=0.1,
            static_args=("density", "refresh", "density_mask", "shards", "key"),
            static_choices={"density": 1.5, "refresh": 0, "shards": 0},
            parts=("scale_by_adam", "reset_momentum"),
        ),
        {
            "state_maps_onto_parameters": "buffers have the size of the kept entries: that is the technique",
            "order_does_not_matter": "the choice of entries depends on the path of the leaf",
        },
    ),
    Case(
        "momentax.partition_by_rule",
        momentax.partition_by_rule,
        dict(transforms={"matrix": momentax.average_gradients(), "rest": momentax.scale_by_adam()}),
        Traits(
            acts_on="matrices",
            plain=MATRICES_AS_THEY_ARE,
            reads_names=True,
            parts=("average_gradients", "scale_by_adam"),
        ),
    ),
    Case(
        "momentax.scale_by_norm_snr",
        momentax.scale_by_norm_snr,
        dict(inner=optax.identity(), weight_decay=0.01),
        Traits(
            needs_params=True,
            acts_on="matrices",
            plain=AVERAGED_MATRICES,
            reads_names=True,
            scheduled=("b1", "b2", "eps", "rms", "weight_decay"),
            static_choices={"scale": "muon"},
            parts=("partition_by_rule", "scale_by_adam"),
        ),
        only_matrices=True,
    ),
    Case(
        "momentax.scale_by_column_snr",
        momentax.scale_by_column_snr,
        dict(inner=optax.identity()),
        Traits(
            acts_on="matrices",
            plain=AVERAGED_MATRICES,
            reads_names=True,
            scheduled=("b1", "b2", "eps", "clamp", "rms"),
            static_choices={"scale": "muon", "axis": "row"},
            parts=("partition_by_rule", "scale_by_adam"),
        ),
        only_matrices=True,
    ),
    Case(
        "momentax.whiten_by_fisher",
        momentax.whiten_by_fisher,
        dict(inner=momentax.heavy_ball(0.9), normalize_stats=True, update_every=2, max_dim=16),
        Traits(
            acts_on="matrices",
            plain=MATRICES_AS_THEY_ARE,
            reads_names=True,
            learning_rate=0.02,
            scheduled=("b2", "damping"),
            static_args=("update_every", "max_dim"),
            static_choices={"root": "svd", "update_every": 0, "max_dim": 0},
            parts=("partition_by_rule", "heavy_ball", "scale_by_adam"),
        ),
        only_matrices=True,
    ),
    Case(
        "momentax.round_state",
        momentax.round_state,
        dict(inner=momentax.scale_by_adam(b2=0.99)),
        Traits(
            plain=momentax.scale_by_adam(b2=0.99),
            static_args=("slots", "key"),
            static_choices={"rounding": "down"},
            reads_names=True,
            parts=("scale_by_adam",),
        ),
        {
            "the_technique_acts": "a scalar stays as it is; tests/wrappers/test_round_state.py asks for more",
            "order_does_not_matter": "the noise depends on the path of the leaf",
        },
    ),
    Case(
        "momentax.round_state[nearest]",
        momentax.round_state,
        dict(inner=momentax.heavy_ball(0.9), slots=("mu",), rounding="nearest"),
        Traits(
            plain=momentax.heavy_ball(0.9),
            static_args=("slots", "key"),
            static_choices={"rounding": "down"},
            complex_ok=True,
            parts=("heavy_ball",),
        ),
        {"the_technique_acts": "a scalar stays as it is; tests/wrappers/test_round_state.py asks for more"},
    ),
    Case(
        "momentax.offload_state",
        momentax.offload_state,
        dict(inner=momentax.scale_by_adam(b2=0.99)),
        Traits(
            plain=momentax.scale_by_adam(b2=0.99),
            static_args=("slots",),
            parts=("scale_by_adam",),
        ),
        {
            "the_technique_acts": "the state lies elsewhere and the updates are the same",
            **dict.fromkeys(
                (
                    "sharded_on_an_auto_mesh",
                    "sharded_on_an_auto_mesh_of_two_axes",
                    "sharded_on_an_explicit_mesh",
                    "sharded_on_an_explicit_mesh_of_two_axes",
                ),
                "slots lie in another memory than their parameters: tests/wrappers/test_offload_state.py",
            ),
            "data_parallel_in_shard_map": "a state on one device is bound to it: tests/wrappers/test_offload_state.py",
            "data_parallel_in_pmap": "jax.pmap takes no arrays from host memory",
        },
    ),
]
