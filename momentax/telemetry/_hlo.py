"""Reads the text of an optimised HLO program, as `compiled.as_text()` gives it, and follows its loops."""

import functools
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
# An opcode is the first word after a space that is followed by a parenthesis: no shape or layout has one.
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
State = dict[int, int | None]  # elements of the tuple that a loop hands on, by position
MOST_TRIPS = 100_000  # a loop that is followed through its condition, step by step

ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "minimum": min,
    "maximum": max,
    "and": operator.and_,
    "or": operator.or_,
}
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "EQ": operator.eq,
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}
SAME_VALUE = {"copy", "copy-start", "copy-done", "bitcast", "bitcast-convert", "convert", "reshape"}


class Instruction(NamedTuple):
    """`rest` is the text after the opcode: operands, attributes, metadata."""

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    def attribute(self, pattern: str) -> str:
        """What the parenthesis in the pattern matches, empty where there is no such attribute."""
        found = re.search(pattern, self.rest)
        return found[1] if found else ""

    def called(self, attribute: str) -> list[str]:
        """Names of the computations in `calls=%a` or `branch_computations={%a, %b}`."""
        return re.findall(r"%([\w.\-]+)", self.attribute(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)"))


class Computation(dict[str, Instruction]):
    """Instructions by name, in order."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.root = ""

    def operands(self, instruction: Instruction) -> Iterator[Instruction]:
        return (self[name] for name in instruction.operands)


class Program:
    """The computations of a program by name.

    Attributes:
      entry: the computation that runs first.
      devices: on which the program runs.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry: Computation | None = None
        self.devices = 1
        self._loops: dict[str, tuple[Computation, Instruction]] = {}
        computation = Computation("")
        for line in text.splitlines():
            if line.startswith(" ") and (found := INSTRUCTION.match(line)):
                root, *parts = found.groups()
                instruction = computation[parts[0]] = Instruction(*parts)
                if root:
                    computation.root = instruction.name
                if instruction.opcode == "while":
                    for name in instruction.called("condition") + instruction.called("body"):
                        self._loops[name] = computation, instruction
            elif found := HEADER.match(line):
                computation = self.computations[found[2]] = Computation(found[2])
                if found[1]:
                    self.entry = computation
            elif line.startswith("HloModule"):
                self.devices = math.prod(int(n) for n in re.findall(r"(?:num_partitions|replica_count)=(\d+)", line))

    def trips(self, caller: Computation, loop: Instruction) -> int | None:
        """How often the body of a `while` runs; None where that depends on data, or exceeds `MOST_TRIPS`."""
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition, body = (self.computations[loop.called(part)[0]] for part in ("condition", "body"))
        asked = {
            index for index in map(functools.partial(_element, condition), condition.values()) if index is not None
        }
        state = {index: self._before(caller, loop, index) for index in asked}
        for trips in range(MOST_TRIPS):
            goes_on = self._value(condition, condition.root, state)
            if not goes_on:
                return None if goes_on is None else trips
            state = {index: self._after(body, index, state) for index in asked}
        return None

    def _before(self, caller: Computation, loop: Instruction, index: int) -> int | None:
        """The element of a loop's state with which it starts."""
        (state,) = caller.operands(loop)
        return self._value(caller, state.operands[index], {}) if state.opcode == "tuple" else None

    def _after(self, body: Computation, index: int, state: State) -> int | None:
        """The element of a loop's state after one trip."""
        root = body[body.root]
        return self._value(body, root.operands[index], state) if root.opcode == "tuple" else None

    def _value(self, computation: Computation, name: str, state: State, bound: Sequence[int | None] = ()) -> int | None:
        """The value of an integer instruction, None where it depends on data.

        Args:
          state: of the loop to which the computation belongs.
          bound: values of the parameters of a fusion.
        """
        instruction = computation[name]
        opcode = instruction.opcode
        follow = functools.partial(self._value, computation, state=state, bound=bound)
        if opcode == "constant":
            literal = instruction.rest.split(")")[0]
            return {"true": 1, "false": 0}.get(literal, int(literal) if re.fullmatch(r"-?\d+", literal) else None)
        if opcode == "parameter" and bound:
            return bound[int(instruction.rest.split(")")[0])]
        if opcode in SAME_VALUE:
            return follow(instruction.operands[0])
        if opcode in ARITHMETIC or opcode == "compare":
            function = ARITHMETIC.get(opcode) or COMPARISONS[instruction.attribute(r"direction=(\w+)")]
            left, right = map(follow, instruction.operands)
            return None if left is None or right is None else int(function(left, right))
        if opcode == "fusion":
            callee = self.computations[instruction.called("calls")[0]]
            return self._value(callee, callee.root, {}, [follow(operand) for operand in instruction.operands])
        if opcode == "get-tuple-element":
            (source,), index = computation.operands(instruction), int(instruction.attribute(r"\bindex=(\d+)"))
            if source.opcode == "tuple":
                return follow(source.operands[index])
            if source.opcode == "parameter":
                return state[index] if index in state else self._unchanged(computation, index)
        return None

    def _unchanged(self, computation: Computation, index: int) -> int | None:
        """An element of a loop's state which the loop only hands on."""
        if computation.name not in self._loops:
            return None
        caller, loop = self._loops[computation.name]
        body = self.computations[loop.called("body")[0]]
        root = body[body.root]
        handed_on = root.opcode == "tuple" and _element(body, body[root.operands[index]]) == index
        return self._before(caller, loop, index) if handed_on else None


def _element(computation: Computation, instruction: Instruction) -> int | None:
    """Which element of the computation's parameter an instruction reads, None where it does something else."""
    if instruction.opcode != "get-tuple-element" or next(computation.operands(instruction)).opcode != "parameter":
        return None
    return int(instruction.attribute(r"\bindex=(\d+)"))
