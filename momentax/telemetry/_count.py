"""Counts matrix products and collectives of a compiled program, those in loops as often as these run."""

import dataclasses
import re
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from momentax.telemetry._costs import RECEIVED, convolution_flops, dot_flops, library_flops, received_bytes
from momentax.telemetry._hlo import Computation, Instruction, Program

# Attributes in which instructions name what they run once.
CALLS = {"fusion": "calls", "call": "to_apply", "async": "calls", "custom-call": "called_computations"}
# Custom calls that compute nothing.
BOOKKEEPING = {"AllocateBuffer", "AsyncCollectiveDone", "AsyncCollectiveStart", "ConcatBitcast"}


class Collectives(NamedTuple):
    """Collectives of one kind, or of all.

    Attributes:
      number: how many run on a device; each of a loop as often as the loop runs.
      in_loops: those of them that run inside loops.
      bytes: that a device receives, in the algorithm which needs the fewest.
    """

    number: int = 0
    in_loops: int = 0
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one run of a program costs each device.

    Attributes:
      flops: of matrix products and convolutions; a multiplication with its addition is two, at any precision.
      collectives: by kind, for example `counts.collectives["all-to-all"].bytes`; kinds that do not occur are left out.
      unknown_loops: loops whose number of trips depends on data or is beyond 100 000. Their bodies are counted once.
      uneven_conditionals: conditionals whose branches differ. Each is counted as its most expensive branch.
      uncounted: kernels whose operations nobody but their authors knows, by name: how many calls of each run.
      argument_bytes, output_bytes, alias_bytes, temp_bytes: memory; arguments that outputs reuse are `alias_bytes`.
        None where only a text was given.
    """

    flops: int
    collectives: dict[str, Collectives]
    unknown_loops: int
    uneven_conditionals: int
    uncounted: dict[str, int]
    argument_bytes: int | None = None
    output_bytes: int | None = None
    alias_bytes: int | None = None
    temp_bytes: int | None = None

    @property
    def total(self) -> Collectives:
        """Collectives of all kinds together."""
        return Collectives(*map(sum, zip(*self.collectives.values(), strict=True)))

    def __str__(self) -> str:
        rows = [("FLOPs", f"{self.flops:.4g}")]
        for kind, (number, in_loops, received) in self.collectives.items():
            rows.append((kind, f"{number} ({in_loops} in loops), {received / 1e6:.4g} MB received"))
        for field in ("argument_bytes", "output_bytes", "alias_bytes", "temp_bytes"):
            if (size := getattr(self, field)) is not None:
                rows.append((field.removesuffix("_bytes"), f"{size / 1e6:.4g} MB"))
        if self.unknown_loops:
            rows.append(("note", f"loops with an unknown number of trips, counted once: {self.unknown_loops}"))
        if self.uneven_conditionals:
            rows.append(("note", f"conditionals counted as their most expensive branch: {self.uneven_conditionals}"))
        rows += [("note", f"not counted: {number} x {name}") for name, number in self.uncounted.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def count(program: Any, scope: str | None = None) -> Counts:
    """Operations, collectives and memory of a compiled program, for each device.

    FLOPs are those of matrix products and convolutions, wherever they are: in fusions, calls, conditionals, and in
    loops as often as these run. Products with a vector that the compiler made into sums are not among them. Bytes of
    collectives are those which a device receives when the algorithm needs the fewest: (w - 1) / w of the result of an
    all-gather and of the operand of a reduce-scatter or all-to-all among w devices, twice that of an all-reduce, all of
    a permutation. A collective that starts and ends apart is one.

    Args:
      program: what `jax.jit(f).lower(...).compile()` returns, for any backend and for devices that are not there; or
        its text, `compiled.as_text()`.
      scope: counts only what was traced inside `jax.named_scope(scope)`; memory is that of the whole program. The
        compiler may join collectives of two scopes into one, which then bears the name of the first.

    Raises:
      ValueError: the text is no optimised HLO, or nothing in it bears the name of the scope.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def power(x):
      ...     with jax.named_scope("power"):
      ...         return jax.lax.fori_loop(0, 3, lambda _, y: x @ y, x)
      >>> counts = count(jax.jit(power).lower(jnp.ones((8, 8))).compile(), scope="power")
      >>> counts.flops == 3 * 2 * 8**3, counts.total.number
      (True, 0)
    """
    text = program if isinstance(program, str) else getattr(program, "as_text", str)()
    parsed = Program(text)
    if parsed.entry is None:
        raise ValueError(
            "count: this is no optimised HLO program; give it what jax.jit(f).lower(...).compile() returns, or its "
            "as_text()"
        )
    counter = _Counter(parsed, scope)
    tally = counter.tally(parsed.entry)
    if scope is not None and not any(
        counter.in_scope(instruction)
        for computation in parsed.computations.values()
        for instruction in computation.values()
    ):
        raise ValueError(f'count: nothing in this program was traced inside jax.named_scope("{scope}")')
    memory = None if isinstance(program, str) else program.memory_analysis()
    return Counts(
        flops=tally.flops,
        collectives={
            kind: Collectives(tally.number[kind], tally.in_loops[kind], round(tally.bytes[kind]))
            for kind in RECEIVED
            if tally.number[kind]
        },
        unknown_loops=len(counter.unknown_loops),
        uneven_conditionals=len(counter.uneven_conditionals),
        uncounted=dict(tally.uncounted),
        **{
            f"{field}_bytes": getattr(memory, f"{field}_size_in_bytes", None)
            for field in ("argument", "output", "alias", "temp")
        },
    )


@dataclasses.dataclass
class _Tally:
    flops: int = 0
    number: Counter[str] = dataclasses.field(default_factory=Counter)
    in_loops: Counter[str] = dataclasses.field(default_factory=Counter)
    bytes: defaultdict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    uncounted: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, other: "_Tally", times: int = 1, loop: bool = False) -> None:
        self.flops += times * other.flops
        for name in ("number", "bytes", "uncounted"):
            for kind, amount in getattr(other, name).items():
                getattr(self, name)[kind] += times * amount
        for kind, amount in (other.number if loop else other.in_loops).items():
            self.in_loops[kind] += times * amount

    def cost(self) -> tuple[int, float]:
        return self.flops, sum(self.bytes.values())


class _Counter:
    """Walks through a program from its entry; each computation is counted once and added as often as it runs."""

    def __init__(self, program: Program, scope: str | None):
        self.program = program
        self.scope = None if scope is None else re.compile(rf'op_name="[^"]*(?<![\w.\-]){re.escape(scope)}(?![\w.\-])')
        self.unknown_loops: set[str] = set()
        self.uneven_conditionals: set[str] = set()
        self._tallies: dict[str, _Tally] = {}
        # A TPU repeats a collective in every fusion beside which it runs; one of them hands it to AsyncCollectiveStart.
        self._starts = {
            instruction.operands[0]: computation[instruction.operands[0]].attribute(r"\bchannel_id=(\d+)")
            for computation in program.computations.values()
            for instruction in computation.values()
            if instruction.opcode == "custom-call" and '"AsyncCollectiveStart"' in instruction.rest
        }

    def in_scope(self, instruction: Instruction) -> bool:
        return self.scope is None or bool(self.scope.search(instruction.rest))

    def tally(self, computation: Computation) -> _Tally:
        """Of one run of a computation and all that it calls."""
        if computation.name not in self._tallies:
            tally = self._tallies[computation.name] = _Tally()
            for instruction in computation.values():
                self._add(tally, computation, instruction)
        return self._tallies[computation.name]

    def _called(self, instruction: Instruction, attribute: str) -> list[_Tally]:
        return [self.tally(self.program.computations[name]) for name in instruction.called(attribute)]

    def _add(self, tally: _Tally, computation: Computation, instruction: Instruction) -> None:
        kind = instruction.opcode.removesuffix("-start")
        if kind == "while":
            trips = self.program.trips(computation, instruction)
            if trips is None:
                self.unknown_loops.add(instruction.name)
            for attribute in ("condition", "body"):
                for part in self._called(instruction, attribute):
                    tally.add(part, 1 if trips is None else trips, loop=True)
        elif kind == "conditional":
            branches = [
                part
                for attribute in ("branch_computations", "true_computation", "false_computation")
                for part in self._called(instruction, attribute)
            ]
            if len({branch.cost() for branch in branches}) > 1:
                self.uneven_conditionals.add(instruction.name)
            tally.add(max(branches, key=_Tally.cost))
        elif kind in RECEIVED:
            if self.in_scope(instruction):
                self._add_collective(tally, computation, instruction, kind)
        elif kind in ("dot", "convolution"):
            if self.in_scope(instruction):
                tally.flops += (dot_flops if kind == "dot" else convolution_flops)(computation, instruction)
        elif kind in CALLS:
            for part in self._called(instruction, CALLS[kind]):
                tally.add(part)
            if kind == "custom-call" and self.in_scope(instruction):
                self._add_kernel(tally, computation, instruction)

    def _add_collective(self, tally: _Tally, computation: Computation, instruction: Instruction, kind: str) -> None:
        channel = instruction.attribute(r"\bchannel_id=(\d+)")
        if instruction.name not in self._starts and channel and channel in self._starts.values():
            return
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # which a TPU writes as a fusion of an all-reduce and a slice
        tally.number[kind] += 1
        tally.bytes[kind] += received_bytes(computation, instruction, kind, self.program.devices)

    def _add_kernel(self, tally: _Tally, computation: Computation, instruction: Instruction) -> None:
        flops = library_flops(computation, instruction)
        target = instruction.attribute(r'custom_call_target="([^"]*)"')
        if flops is not None:
            tally.flops += flops
        elif target not in BOOKKEEPING:
            tally.uncounted[target] += 1
