"""What single instructions of a compiled program cost: floating point operations, and bytes of HBM."""

import re
from collections.abc import Iterator

import numpy as np

from t5x_selfimprove.precompile.collectives import kind_of
from t5x_selfimprove.precompile.hlo import Computation, Instruction, Program, Shape

FREE = frozenset(
    'parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id iota opt-barrier '
    'optimization-barrier async-start async-update call while conditional'.split()
)
SLICES = ('dynamic-slice', 'slice', 'gather')
WINDOW = re.compile(r'(\w+)=([\d_x\-]+)')


def operations(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Floating point operations of matrix products, those inside fusions too. Element by element work is not counted;
    a kernel's own cost estimate is taken where it gives one."""
    if instruction.opcode == 'fusion':
        inner = program.computations[instruction.called('calls')]
        return sum(operations(program, inner, each) for each in inner.instructions)
    if instruction.opcode == 'dot':
        return _of_dot(computation, instruction)
    if instruction.opcode == 'convolution':
        return _of_convolution(computation, instruction)
    if instruction.opcode == 'custom-call':
        return _of_kernel(computation, instruction)
    return 0.0


def _of_kernel(computation: Computation, instruction: Instruction) -> float:
    """Of cuBLAS the product; of the splash kernel, half of all pairs of tokens: 2 products of [T, T, h] forward, 5
    backward."""
    if '="__cublas$' in instruction.attributes:
        contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
        return _of_product(computation, instruction, contracted[1].replace('"', '') if contracted else '')
    kernel = re.search(r'splash_mha_(fwd|dkv|dq)', f'{instruction.name} {instruction.attributes}')
    if 'tpu_custom_call' not in instruction.attributes or not kernel:
        return 0.0
    arrays = [*instruction.shapes, *(computation.by_name[name].shapes[0] for name in instruction.operands)]
    queries = max((shape for shape in arrays if len(shape.sizes) > 2), key=lambda shape: shape.elements)
    products = {'fwd': 2, 'dkv': 5, 'dq': 3}[kernel[1]]
    return float(products * queries.elements * queries.sizes[-2])  # [..., heads, T, h]


def _of_dot(computation: Computation, instruction: Instruction) -> float:
    contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
    return _of_product(computation, instruction, contracted[1] if contracted else '')


def _of_product(computation: Computation, instruction: Instruction, contracted: str) -> float:
    left = computation.by_name[instruction.operands[0]].shapes[0]
    axes = [int(axis) for axis in contracted.split(',') if axis]
    return 2.0 * instruction.shapes[0].elements * float(np.prod([left.sizes[axis] for axis in axes] or [1]))


def _of_convolution(computation: Computation, instruction: Instruction) -> float:
    """2 x (batch x features in x features out) x the places where the window meets the input.

    On TPUs every matrix product is a convolution, and what was a batch is often a window whose padding meets nothing.
    """
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
    left, right = (computation.by_name[name].shapes[0].sizes for name in instruction.operands[:2])
    out = instruction.shapes[0].sizes
    source, kernel, result = (dict(zip(text, range(len(text)), strict=True)) for text in labels.groups())
    window = re.search(r'window=\{([^}]*)\}', instruction.attributes)
    fields = dict(WINDOW.findall(window[1])) if window else {}
    total = 2.0 * out[result['b']] * out[result['f']] * right[kernel['i']]
    for number, axis in enumerate(sorted(key for key in result if key.isdigit())):
        total *= _meetings(left[source[axis]], right[kernel[axis]], out[result[axis]], fields, number)
    groups = re.search(r'batch_group_count=(\d+)', instruction.attributes)
    return total / int(groups[1]) if groups else total


def _meetings(source: int, kernel: int, out: int, fields: dict[str, str], number: int) -> int:
    """Pairs of output and window places that fall on an entry of the input, along one axis."""

    def field(name: str, default: int) -> int:
        return int(fields[name].split('x')[number]) if name in fields else default

    stride, spread, dilation = field('stride', 1), field('rhs_dilate', 1), field('lhs_dilate', 1)
    low = int(fields['pad'].split('x')[number].split('_')[0]) if 'pad' in fields else 0
    place = np.arange(out)[:, None] * stride + np.arange(kernel) * spread - low
    return int(((place >= 0) & (place % dilation == 0) & (place // dilation < source)).sum())


def traffic(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Bytes of HBM that an instruction reads and writes, tiles' padding left out.

    What lies in fast memory is not counted; of what is only sliced, the slices are; what is updated in place is
    counted as the update.
    """
    reserved = instruction.opcode == 'custom-call' and not instruction.operands  # a buffer that others write
    if instruction.opcode in FREE or instruction.opcode.endswith('-done') or reserved or instruction.wrapped:
        return 0.0
    if instruction.opcode in ('copy-start', 'slice-start'):
        source, *rest = [shape for shape in instruction.shapes if shape.dtype != 'u32' or shape.sizes]
        moved = min((each.bytes for each in (source, *rest)), default=0.0)
        return moved * ((not source.fast) + any(not shape.fast for shape in rest[:1]))
    if instruction.opcode in SLICES:
        return 2 * _slow(instruction.shapes)
    if instruction.opcode == 'dynamic-update-slice':
        return 2 * _slow(computation.by_name[instruction.operands[1]].shapes)
    reads = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
    if instruction.opcode != 'fusion':
        return _slow(instruction.shapes) + sum(_slow(each.shapes) for each in reads)
    inner = program.computations[instruction.called('calls')]
    exchanged = _exchanged(program, inner)
    whole = sum(
        _read(program, inner, number, each) for number, each in enumerate(reads) if not exchanged & set(each.shapes)
    )
    return whole + sum(_written(inner, each) for each in _results(inner) if not exchanged & set(each.shapes))


def _exchanged(program: Program, inner: Computation) -> set[Shape]:
    """The arrays that a fusion exchanges with other devices while it computes: a piece of them at a time."""
    found: set[Shape] = set()
    for each in inner.instructions:
        if kind_of(each.opcode):
            found |= {*each.shapes, *(shape for name in each.operands for shape in inner.by_name[name].shapes)}
        if each.opcode == 'fusion':
            found |= _exchanged(program, program.computations[each.called('calls')])
    return found


def _slow(arrays: tuple[Shape, ...]) -> float:
    return sum(shape.bytes for shape in arrays if not shape.fast)


def _read(program: Program, inner: Computation, number: int, operand: Instruction) -> float:
    """Bytes that a fusion reads of an operand: all of it, or the slices it takes, those of fusions inside it too."""
    parameter = inner.parameters.get(number)
    if parameter is None or not _slow(operand.shapes):
        return 0.0
    uses = list(_uses(inner, parameter.name))
    parts = 0.0
    for use, name in uses:
        if use.opcode in SLICES and use.operands[0] == name:
            parts += sum(shape.bytes for shape in use.shapes)
        elif use.opcode == 'fusion':
            inside = program.computations[use.called('calls')]
            parts += sum(_read(program, inside, place, operand) for place, of in enumerate(use.operands) if of == name)
        elif use.opcode != 'dynamic-update-slice' or use.operands[0] != name:
            return _slow(operand.shapes)
    return min(parts, _slow(operand.shapes))


def _uses(inner: Computation, name: str) -> Iterator[tuple[Instruction, str]]:
    """Who reads a value, behind bitcasts, and under which name."""
    for each in inner.instructions:
        if name in each.operands:
            if each.opcode == 'bitcast':
                yield from _uses(inner, each.name)
            else:
                yield each, name


def _results(inner: Computation) -> list[Instruction]:
    root = inner.root
    return [inner.by_name[name] for name in root.operands] if root.opcode == 'tuple' else [root]


def _written(inner: Computation, result: Instruction) -> float:
    """Bytes that a fusion writes of a result: all of it, or the update."""
    if not _slow(result.shapes):
        return 0.0
    found = result
    while found.opcode in ('bitcast', 'copy') and found.operands:
        found = inner.by_name[found.operands[0]]
    if found.opcode == 'dynamic-update-slice':
        return sum(shape.bytes for shape in inner.by_name[found.operands[1]].shapes)
    return _slow(result.shapes)
