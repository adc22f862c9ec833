"""Arrays in, arrays out: linear algebra that knows no optimizer, no tree and no mesh."""

from momentax.linalg._coefficients import coefficients as coefficients
from momentax.linalg._gram import apply as apply
from momentax.linalg._gram import gram as gram
from momentax.linalg._gram import polynomial as polynomial
from momentax.linalg._inverse_root import inverse_root as inverse_root
from momentax.linalg._newton_schulz import newton_schulz as newton_schulz
from momentax.linalg._polar import polar as polar
from momentax.linalg._polar import polar_by_products as polar_by_products
from momentax.linalg._power_iteration import power_iteration as power_iteration
from momentax.linalg._schedules import cans as cans
from momentax.linalg._schedules import polar_express as polar_express
from momentax.linalg._schedules import singular_value_range as singular_value_range
