"""Techniques that hold another transformation and need data from before and after it."""

from momentax.wrappers._clip_spikes import clip_spikes as clip_spikes
from momentax.wrappers._keep_master_weights import keep_master_weights as keep_master_weights
from momentax.wrappers._project_radial import project_radial as project_radial
from momentax.wrappers._reset_momentum import reset_momentum as reset_momentum
from momentax.wrappers._sparse_momentum import sparse_momentum as sparse_momentum
