"""The text of a compiled program (HLO) as instructions, and how often its loops go round.

XLA's own cost analysis counts the body of a loop once. Here a loop's number of iterations is read from its condition
(counter < limit), its start and its step, as XLA wrote them.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BYTES = {
    'pred': 1,
    's4': 0.5,
    'u4': 0.5,
    's8': 1,
    'u8': 1,
    's16': 2,
    'u16': 2,
    'bf16': 2,
    'f16': 2,
    's32': 4,
    'u32': 4,
    'f32': 4,
    's64': 8,
    'u64': 8,
    'f64': 8,
    'c64': 8,
}
ARRAY = re.compile(r'([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?')
HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\([^\n]*)?\{')
NAME = re.compile(r'%([\w.\-]+)')
FAST = 'S(1)'  # a layout that ends so is of the chip's fast memory, which is not HBM


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array as the program holds it on a device."""

    dtype: str
    sizes: tuple[int, ...]
    fast: bool  # whether it lies outside HBM

    @property
    def elements(self) -> int:
        return math.prod(self.sizes)

    @property
    def bytes(self) -> float:
        return self.elements * BYTES.get(self.dtype, 1)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result; several where it is a tuple
    operands: tuple[str, ...]
    inside: str  # what stands in the brackets of the operands: of a constant its value
    attributes: str
    root: bool

    @property
    def scope(self) -> str:
        """Where the traced program made it: op_name of the metadata, '' where XLA made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ''

    def called(self, attribute: str) -> str | None:
        """The name of a computation that an attribute names, as 'calls', 'body', 'condition', 'to_apply'."""
        found = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.attributes)
        return found[1] if found else None

    def all_called(self, attribute: str) -> tuple[str, ...]:
        """Names of the computations that an attribute lists in braces; none without it."""
        return tuple(NAME.findall(self.attributes.partition(f'{attribute}={{')[2].partition('}')[0]))

    @property
    def wrapped(self) -> tuple[str, ...]:
        """The computations that a custom call stands for, as that of a gather which a TPU's SparseCore does."""
        return self.all_called('called_computations') if self.opcode == 'custom-call' else ()


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        return next(each for each in reversed(self.instructions) if each.root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by number."""
        return {int(each.inside): each for each in self.instructions if each.opcode == 'parameter'}


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations of a compiled program."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """Reads the text of a compiled program.

    Raises:
      ValueError: there is no entry computation in it.
    """
    computations, entry, name, lines = {}, None, None, []
    for line in text.splitlines():
        header = None if line.startswith(' ') else HEADER.match(line)
        if header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif line.partition(',')[0] == '}' and name:  # behind the comma, the thread that it runs in
            computations[name] = Computation(name, tuple(map(instruction, lines)))
            name = None
        elif name and re.match(r'\s+(ROOT )?%?[\w.\-]+ = ', line):
            lines.append(line.strip())
        elif name and lines:
            lines[-1] += line  # what a kernel says of itself may take several
    if entry is None:
        raise ValueError('the text holds no entry computation; it is not the text of a compiled program')
    return Program(computations, entry)


def instruction(line: str) -> Instruction:
    """One line, as '%add.3 = f32[8]{0} add(%a, %b), metadata={...}'."""
    root = line.startswith('ROOT ')
    name, rest = line.removeprefix('ROOT ').split(' = ', 1)
    end = closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
    shape, rest = rest[:end], rest[end:].strip()
    opening = rest.index('(')
    close = closing(rest, opening)
    inside = rest[opening + 1 : close]
    return Instruction(
        name=name.lstrip('%'),
        opcode=rest[:opening],
        shapes=shapes(shape),
        operands=tuple(NAME.findall(inside)),
        inside=inside,
        attributes=rest[close + 1 :],
        root=root,
    )


def closing(text: str, opening: int) -> int:
    """Index of the bracket that closes the round one at `opening`."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == '(') - (text[index] == ')')
        if depth == 0:
            return index
    raise ValueError(f'a bracket is never closed: {text[:80]}')


@functools.lru_cache(maxsize=1 << 14)
def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a shape, which may be a tuple."""
    return tuple(
        Shape(dtype, tuple(map(int, filter(None, sizes.split(',')))), FAST in (layout or ''))
        for dtype, sizes, layout in ARRAY.findall(text)
    )


@dataclasses.dataclass(frozen=True)
class Trips:
    """How often a loop goes round."""

    count: int
    bound: bool = False  # the most it may: the data can end it before
    known: bool = True  # False: it could not be read, and is counted once


def trips(program: Program, outer: Computation, loop: Instruction) -> Trips:
    """Iterations of a while loop."""
    condition, body = (inlined(program, loop.called(attribute)) for attribute in ('condition', 'body'))
    stated = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if stated:
        return Trips(int(stated[1]))
    root = condition.root
    bound = root.opcode != 'compare'
    for compare in compares(condition, root):
        limit, index = constant(condition, compare.operands[1]), counter(condition, compare.operands[0])
        if limit is None or index is None:
            continue
        step = step_of(body, index) or 1
        return Trips(max(0, -(-(limit - start_of(outer, loop, index)) // step)), bound)
    return Trips(1, bound, known=False)


def inlined(program: Program, name: str) -> Computation:
    """A computation with the instructions of its fusions in their place; compilers for GPUs fuse every comparison."""
    found: list[Instruction] = []
    for each in program.computations[name].instructions:
        if each.opcode != 'fusion':
            found.append(each)
            continue
        for inner in program.computations[each.called('calls')].instructions:
            operands = tuple(f'{each.name}/{operand}' for operand in inner.operands)
            if inner.opcode == 'parameter':
                operands, inner = (each.operands[int(inner.inside)],), dataclasses.replace(inner, opcode='bitcast')
            label = each.name if inner.root else f'{each.name}/{inner.name}'
            root = each.root and inner.root
            found.append(dataclasses.replace(inner, name=label, operands=operands, root=root))
    return Computation(name, tuple(found))


def compares(condition: Computation, root: Instruction) -> Iterator[Instruction]:
    """Comparisons 'counter < limit' that the condition cannot hold without."""
    if root.opcode == 'compare' and 'direction=LT' in root.attributes:
        yield root
    elif root.opcode == 'and':
        for operand in root.operands:
            yield from compares(condition, condition.by_name[operand])


def constant(computation: Computation, name: str) -> int | None:
    """The value of a whole-number constant, or None."""
    found = follow(computation, name)
    whole = found.opcode == 'constant' and re.fullmatch(r'-?\d+', found.inside)
    return int(found.inside) if whole else None


def follow(computation: Computation, name: str) -> Instruction:
    """What a name stands for, behind copies and bitcasts."""
    found = computation.by_name[name]
    while found.opcode in ('copy', 'bitcast', 'convert', 'copy-done', 'copy-start') and found.operands:
        found = computation.by_name[found.operands[0]]
    return found


def counter(computation: Computation, name: str) -> int | None:
    """Number of the element of the loop's state that a name reads (give or take a constant), or None."""
    found = follow(computation, name)
    if found.opcode == 'add':
        inner = [each for each in found.operands if constant(computation, each) is None]
        found = follow(computation, inner[0]) if len(inner) == 1 else found
    index = re.search(r'index=(\d+)', found.attributes)
    return int(index[1]) if found.opcode == 'get-tuple-element' and index else None


def step_of(body: Computation, index: int) -> int | None:
    """What the loop adds to an element of its state in an iteration."""
    if body.root.opcode != 'tuple':
        return None
    total, name = 0, body.root.operands[index]
    while True:
        found = follow(body, name)
        if found.opcode == 'get-tuple-element':
            return total or None
        constants = [constant(body, each) for each in found.operands] if found.opcode == 'add' else []
        if sum(each is None for each in constants) != 1:
            return None
        total += sum(each for each in constants if each is not None)
        name = found.operands[constants.index(None)]


def start_of(outer: Computation, loop: Instruction, index: int) -> int:
    """What an element of the loop's state begins with; 0 where it is no constant."""
    state = follow(outer, loop.operands[0])
    if state.opcode != 'tuple':
        return 0
    return constant(outer, state.operands[index]) or 0
