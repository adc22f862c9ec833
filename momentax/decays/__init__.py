"""Ways in which weights decay beside the step."""

from momentax.decays._after_step import after_step as after_step
from momentax.decays._cautious import cautious as cautious
from momentax.decays._decoupled import decoupled as decoupled
from momentax.decays._proximal import proximal as proximal
from momentax.decays._take_step import take_step as take_step
