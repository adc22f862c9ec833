"""What a compiled program does: operations, collectives and memory, counted and not timed."""

from momentax.telemetry._count import Collectives as Collectives
from momentax.telemetry._count import Counts as Counts
from momentax.telemetry._count import count as count
from momentax.telemetry._describe_plan import describe_plan as describe_plan
