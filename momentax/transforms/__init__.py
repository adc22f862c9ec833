"""One momentum technique per file: the maths, the state, one factory."""

from momentax.transforms._adapt_memory import adapt_memory as adapt_memory
from momentax.transforms._average_gradients import average_gradients as average_gradients
from momentax.transforms._bound_spectral_norm import bound_spectral_norm as bound_spectral_norm
from momentax.transforms._clip_global_norm import clip_global_norm as clip_global_norm
from momentax.transforms._clip_to_average_max import clip_to_average_max as clip_to_average_max
from momentax.transforms._heavy_ball import HeavyBallState as HeavyBallState
from momentax.transforms._heavy_ball import heavy_ball as heavy_ball
from momentax.transforms._normalize_rows import normalize_rows as normalize_rows
from momentax.transforms._orthogonalize import orthogonalize as orthogonalize
from momentax.transforms._retract_to_sphere import retract_to_sphere as retract_to_sphere
from momentax.transforms._scale_by_adam import scale_by_adam as scale_by_adam
from momentax.transforms._scale_by_adan import scale_by_adan as scale_by_adan
from momentax.transforms._scale_by_cosh_rms import scale_by_cosh_rms as scale_by_cosh_rms
from momentax.transforms._scale_by_lion_k import scale_by_lion_k as scale_by_lion_k
from momentax.transforms._scale_by_matrix_shape import scale_by_matrix_shape as scale_by_matrix_shape
from momentax.transforms._scale_to_average_norm import scale_to_average_norm as scale_to_average_norm
from momentax.transforms._two_plane_coefficient import two_plane_coefficient as two_plane_coefficient
