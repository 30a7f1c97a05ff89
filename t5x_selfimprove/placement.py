"""Where the parameters lie: every kind with its logical axes, its split in learning and in sampling, and bytes."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from t5x_selfimprove import partitioning
from t5x_selfimprove.checkpoints import names_of
from t5x_selfimprove.display import Display, number_of_bytes
from t5x_selfimprove.models import parameters
from t5x_selfimprove.partitioning import COPIED, LEARNING, SAMPLING, Axes, Rules


@dataclasses.dataclass(frozen=True)
class Kind:
    """Parameters of the same shape and axes."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    axes: Axes | None
    learning: tuple[Any, ...]  # mesh axes of each axis
    sampling: tuple[Any, ...]
    learning_bytes: int  # of a device, all of the names together, in the dtype of the parameters
    sampling_bytes: int  # in the dtype that the model computes in

    @property
    def copied(self) -> tuple[str, ...]:
        """Logical axes that the rules would split, were they large enough."""
        names = self.axes.names if self.axes else ()
        pairs = zip(names, self.learning, strict=False)
        return tuple(name for name, split in pairs if name in COPIED and LEARNING[name] and split is None)


def kinds(model: Any, mesh: jax.sharding.Mesh) -> list[Kind]:
    """The parameters of a model (or of its shapes), collapsed by shape and axes.

    Raises:
      ValueError: one cannot be divided over the mesh; says which, and the numbers.
    """
    leaves = jax.tree.leaves(model)
    together: dict[tuple[Any, ...], list[str]] = {}
    for name, leaf, axes in zip(names_of(model), leaves, parameters.logical_axes(model), strict=True):
        together.setdefault((leaf.shape, leaf.dtype, axes), []).append(name)
    found = []
    for (shape, dtype, axes), names in together.items():
        specs, sizes = [], []
        for rules, kept in ((LEARNING, dtype), (SAMPLING, model.config.dtype)):
            spec, parts = _split(names[0], shape, axes, mesh, rules)
            specs.append(spec)
            sizes.append(len(names) * math.prod(shape) // parts * np.dtype(kept).itemsize)
        found.append(Kind(tuple(names), shape, axes, *specs, *sizes))
    return found


def _split(
    name: str, shape: tuple[int, ...], axes: Axes | None, mesh: jax.sharding.Mesh, rules: Rules
) -> tuple[tuple[Any, ...], int]:
    spec = partitioning.sharding(name, shape, axes, mesh, rules).spec
    return tuple(spec), math.prod(partitioning.parts_of(entry, mesh) for entry in spec)


def show(display: Display, model: Any, mesh: jax.sharding.Mesh) -> None:
    """Prints the table, its sums, and what is copied by necessity. Raises as `kinds` does."""
    found = kinds(model, mesh)
    rows = [
        (
            _joined(kind.names),
            ' x '.join(map(str, kind.shape)),
            ' '.join(kind.axes.names) if kind.axes else '-',
            _words(kind.learning, mesh),
            number_of_bytes(kind.learning_bytes),
            _words(kind.sampling, mesh),
            number_of_bytes(kind.sampling_bytes),
        )
        for kind in found
    ]
    total = [sum(kind.learning_bytes for kind in found), sum(kind.sampling_bytes for kind in found)]
    rows.append(('all', '', '', '', number_of_bytes(total[0]), '', number_of_bytes(total[1])))
    columns = ('parameters', 'shape', 'axes', 'learning', 'a device', 'sampling', 'a device')
    display.table('Parameters', columns, rows)
    for kind in found:
        for axis in kind.copied:
            size = kind.shape[kind.axes.names.index(axis)]
            parts = partitioning.parts_of(LEARNING[axis], mesh)
            display.say(
                f'{_joined(kind.names)}: {size} {axis} do not divide by {LEARNING[axis]} = {parts}, so that every '
                'device has all of them, and the cache of all of them'
            )


def cache_bytes(model: Any, prompts: Any, sampler: Any, mesh: jax.sharding.Mesh) -> int:
    """Bytes of a device for the keys and values of a batch: of what is drawn, and of the prompts.

    Args:
      model: as it is sampled from, or its shapes.
      prompts: of a batch, or their shapes.
      sampler: that draws.
      mesh: in context.
    """
    plan = sampler.plan(model, prompts)
    rows = plan.sizes[0] * plan.parts

    def kept(model: Any, prompts: Any) -> Any:
        return model.new_own(rows, sampler.max_tokens, sampler.cache), model.prefill(prompts.tokens, prompts.length)[1]

    total = 0
    for leaf in jax.tree.leaves(jax.eval_shape(kept, model, prompts)):
        heads = partitioning.parts_of(LEARNING['kv_heads'], mesh) if leaf.ndim > 3 else 1  # [..., K, h, U]
        split = plan.parts * (heads if leaf.ndim > 3 and leaf.shape[-3] % heads == 0 else 1)
        total += leaf.size * leaf.dtype.itemsize // split
    return total


def _joined(names: tuple[str, ...]) -> str:
    """'blocks.gate, up' of several names that begin alike."""
    start, *rest = names
    stem = start.rpartition('.')[0]
    return ', '.join([start, *(name.removeprefix(f'{stem}.') for name in rest)])


def _words(spec: tuple[Any, ...], mesh: jax.sharding.Mesh) -> str:
    """Mesh axes of more than one device that an array is split over, or 'on all'."""
    flat = [axis for entry in spec for axis in ((entry,) if isinstance(entry, str) else entry or ())]
    used = [axis for axis in flat if mesh.shape[axis] > 1]
    return ' x '.join(used) or 'on all'


def describe(mesh: jax.sharding.Mesh) -> str:
    """The axes of a mesh and their sizes."""
    return ' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
