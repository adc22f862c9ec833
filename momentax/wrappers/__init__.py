"""Techniques that hold another transformation and need data from before and after it."""

from momentax.wrappers._clip_spikes import clip_spikes as clip_spikes
from momentax.wrappers._keep_master_weights import keep_master_weights as keep_master_weights
from momentax.wrappers._offload_state import offload_state as offload_state
from momentax.wrappers._on_mesh import on_mesh as on_mesh
from momentax.wrappers._partition_by_rule import partition_by_rule as partition_by_rule
from momentax.wrappers._project_radial import project_radial as project_radial
from momentax.wrappers._reset_momentum import reset_momentum as reset_momentum
from momentax.wrappers._round_state import round_state as round_state
from momentax.wrappers._scale_by_column_snr import scale_by_column_snr as scale_by_column_snr
from momentax.wrappers._scale_by_norm_snr import scale_by_norm_snr as scale_by_norm_snr
from momentax.wrappers._sparse_momentum import sparse_momentum as sparse_momentum
from momentax.wrappers._whiten_by_fisher import whiten_by_fisher as whiten_by_fisher
