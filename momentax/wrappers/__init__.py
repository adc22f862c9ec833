"""Techniques that hold another transformation and need data from before and after it."""

from momentax.wrappers._keep_master_weights import keep_master_weights as keep_master_weights
from momentax.wrappers._project_radial import project_radial as project_radial
