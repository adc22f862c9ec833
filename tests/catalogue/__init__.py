"""One row for each public factory: cheap arguments, what it promises, and failures that are known, with reasons.

A factory whose arguments change what it does has several rows, told apart by [...] after the name. The rows of a room
of the library stand in the file of its name.
"""

from catalogue import decays, optimizers, transforms, wrappers
from catalogue._case import Case as Case

CASES = [*optimizers.CASES, *transforms.CASES, *wrappers.CASES, *decays.CASES]
