"""Arrays in, arrays out: linear algebra that knows no optimizer, no tree and no mesh."""

from momentax.linalg._newton_schulz import newton_schulz as newton_schulz
from momentax.linalg._polar import polar as polar
