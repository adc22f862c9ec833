"""Momentum techniques as composable Optax gradient transformations."""

from momentax import conventions as conventions
from momentax import convex as convex
from momentax import decays as decays
from momentax import routing as routing
from momentax.optimizers import adamp as adamp
from momentax.optimizers import adan as adan
from momentax.optimizers import am_adamw as am_adamw
from momentax.optimizers import am_sgd as am_sgd
from momentax.optimizers import lion_k as lion_k
from momentax.optimizers import sgdp as sgdp
from momentax.optimizers import spam as spam
from momentax.optimizers import stable_spam as stable_spam
from momentax.transforms import adapt_memory as adapt_memory
from momentax.transforms import average_gradients as average_gradients
from momentax.transforms import clip_global_norm as clip_global_norm
from momentax.transforms import clip_to_average_max as clip_to_average_max
from momentax.transforms import heavy_ball as heavy_ball
from momentax.transforms import scale_by_adam as scale_by_adam
from momentax.transforms import scale_by_adan as scale_by_adan
from momentax.transforms import scale_by_lion_k as scale_by_lion_k
from momentax.transforms import scale_to_average_norm as scale_to_average_norm
from momentax.transforms import two_plane_coefficient as two_plane_coefficient
from momentax.wrappers import clip_spikes as clip_spikes
from momentax.wrappers import keep_master_weights as keep_master_weights
from momentax.wrappers import project_radial as project_radial
from momentax.wrappers import reset_momentum as reset_momentum
from momentax.wrappers import sparse_momentum as sparse_momentum

__version__ = "0.1.0"
