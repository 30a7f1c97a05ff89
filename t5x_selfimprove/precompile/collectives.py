"""Collectives of a compiled program: which devices exchange, along which axes of the mesh, and how much."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np

from t5x_selfimprove.precompile.hlo import Instruction

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute', 'ragged-all-to-all')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange, as every device sees it."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, along which the devices that exchange differ
    size: int  # devices of a group
    bytes: float  # that a device sends in a ring


def kind_of(opcode: str) -> str | None:
    """The kind of a collective's opcode, once of its start and end; None for all else."""
    name = opcode.removesuffix('-start')
    return name if name in KINDS else None


def collective(instruction: Instruction, mesh: jax.sharding.Mesh) -> Collective | None:
    """What a collective instruction exchanges; None where no device meets another.

    Args:
      instruction: of one of KINDS.
      mesh: devices in the order that the program numbers them.
    """
    kind = kind_of(instruction.opcode)
    groups = groups_of(instruction.attributes, mesh.size)
    if groups.size == 0 or groups.shape[1] == 1:
        return None
    axes = axes_of(groups, tuple(mesh.shape.items()))
    size = 2 if kind == 'collective-permute' else groups.shape[1]
    arrays = [shape.bytes for shape in instruction.shapes if shape.sizes or shape.dtype != 'u32'] or [4.0]
    # An asynchronous start gives its operands too; the largest array is what is gathered or reduced,
    # the smallest what is left of it by a reduce-scatter.
    whole_of = min if kind == 'reduce-scatter' else max
    whole = whole_of(arrays) if instruction.opcode.endswith('-start') else sum(arrays)
    share = (size - 1) / size
    sent = {
        'all-reduce': 2 * whole * share,
        'reduce-scatter': whole * (size - 1),  # the result is one part of `size`
        'collective-permute': whole,
    }.get(kind, whole * share)
    return Collective(kind, axes, size, sent)


@functools.lru_cache(maxsize=4096)
def groups_of(attributes: str, devices: int) -> np.ndarray:
    """Who exchanges with whom: whole numbers [groups, size], or [pairs, 2] of a permutation. Empty where none is said.

    XLA writes groups as lists, as a reshaped and turned range ([8,4]<=[4,8]T(1,0)), or as axes of a mesh of its own
    (mesh['a'=8,'b'=4] {'b'}).
    """
    pairs = re.search(r'source_target_pairs=\{(.*?)\}\}', attributes)
    if pairs:
        numbers = np.array(re.findall(r'\d+', pairs[1]), int).reshape(-1, 2)
        return numbers[numbers[:, 0] != numbers[:, 1]]
    ranged = re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes)
    if ranged:
        shape, source, turned = ([int(n) for n in part.split(',')] if part else None for part in ranged.groups())
        return np.arange(math.prod(source)).reshape(source).transpose(turned).reshape(shape)
    named = re.search(r'replica_groups=mesh\[(.*?)\](?:, device_ids=\([^)]*\))? \{(.*?)\}', attributes)
    if named:
        return _of_mesh(named[1], named[2])
    listed = re.search(r'replica_groups=\{(.*?\})\}', attributes)
    if listed:
        rows = [[int(n) for n in re.findall(r'\d+', row)] for row in re.findall(r'\{([\d,]*)\}', listed[1])]
        return np.array(rows)
    return np.arange(devices)[None] if 'replica_groups={}' in attributes else np.zeros((0, 0), int)


def _of_mesh(axes: str, chosen: str) -> np.ndarray:
    """Groups along chosen axes, each whole ('a') or a part of one ('a':(2)4: before it 2, of it 4)."""
    sizes: dict[str, list[int]] = {name: [int(size)] for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    wanted = [(name, pre and (int(pre), int(size))) for name, pre, size in _CHOSEN.findall(chosen)]
    for name, part in wanted:
        if part:
            whole = math.prod(sizes[name])
            sizes[name] = [part[0], part[1], whole // (part[0] * part[1])]
    places, flat = {}, []
    for name, parts in sizes.items():
        places[name] = len(flat)
        flat += parts
    inner = [places[name] + (1 if part else 0) for name, part in wanted]
    outer = [place for place in range(len(flat)) if place not in inner]
    size = math.prod(flat[place] for place in inner)
    return np.arange(math.prod(flat)).reshape(flat).transpose(outer + inner).reshape(-1, size)


_CHOSEN = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def axes_of(groups: np.ndarray, sizes: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """The mesh axes along which members of one group differ."""
    places = np.stack(np.unravel_index(groups, [size for _, size in sizes]), axis=-1)
    differ = (places != places[:, :1]).any(axis=(0, 1))
    return tuple(name for (name, _), moves in zip(sizes, differ, strict=True) if moves)
