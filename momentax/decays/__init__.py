"""Ways in which weights decay beside the step."""

from momentax.decays._cautious import cautious as cautious
from momentax.decays._decoupled import decoupled as decoupled
from momentax.decays._proximal import proximal as proximal
