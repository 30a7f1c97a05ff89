"""What each process reads of a batch, and how the processes' shares become one array on the devices.

A process reads, from a bank, the items whose rows its own devices hold, and no other; it alone turns them into tokens.
Where the `tensor` or `sequence` axis of the mesh lies across processes, these hold the same rows, and each reads them.
Of the texts process 0 gets to know those that it writes to the sample store, from the processes that have read them.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt32, UInt64

from t5x_selfimprove import partitioning, processes
from t5x_selfimprove.data.items import Item
from t5x_selfimprove.partitioning import LEARNING, Axes

Batch = TypeVar('Batch')  # a record with a weight, 0 where a row is padding


def rows_here(mesh: jax.sharding.Mesh, size: int) -> Int64[np.ndarray, 'R']:
    """Which rows of a batch of `size` the devices of this process hold, rising.

    Raises:
      ValueError: the batch cannot be split over the mesh.
    """
    parts = partitioning.batch_parts(mesh)
    if size % parts:
        raise ValueError(
            f'a batch of {size} cannot be split over data x fsdp x expert = {parts} devices; make its size '
            f'(per_batch, examples_per_chunk) a multiple of {parts}, or choose another mesh'
        )
    held = _split(mesh, 0).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in held]))


def place(mesh: jax.sharding.Mesh, share: Batch, outer: int, size: int) -> tuple[Batch, Bool[np.ndarray, '*rounds E']]:
    """Makes one record of the shares of all processes, split over the devices. All of them call it together.

    Args:
      mesh: of the devices.
      share: NumPy arrays [*outer, R, ...]: the rows of `rows_here`.
      outer: axes before that of the rows: none, batches, or rounds and batches.
      size: Q, rows of a batch.

    Returns:
      The record [*outer, Q, ...], in each round of which padding is last; and which rows were none as they were read,
      [E] or [rounds, E] with the E = Q rows of each of a round's batches one behind the other. In every process the
      same.
    """
    rows, split = rows_here(mesh, size), _split(mesh, outer)

    def whole(array: np.ndarray) -> jax.Array:
        # (jax.make_array_from_process_local_data refuses meshes on which two processes share a part of their rows.)
        part = lambda index: array.take(np.searchsorted(rows, np.arange(size)[index[outer]]), axis=outer)  # noqa: E731
        return jax.make_array_from_callback((*array.shape[:outer], size, *array.shape[outer + 1 :]), split, part)

    placed = jax.tree.map(whole, share)
    there = partitioning.fetch(placed.weight) > 0
    there = there.reshape(*there.shape[: max(outer - 1, 0)], -1)
    order = np.argsort(~there, axis=-1, kind='stable')
    if (order != np.arange(there.shape[-1])).any():
        first = np.arange(0, there.size, there.shape[-1]).reshape(*there.shape[:-1], 1)
        placed = _reordered(outer, split)(placed, (first + order).ravel())
    return placed, there


def ids(words: UInt32[np.ndarray, '*outer Q 2'], weight: Float32[np.ndarray, '*outer Q']) -> UInt64[np.ndarray, 'E']:
    """The 64-bit ids of questions, from `id` and `weight` of their record; padding has none."""
    words = words[weight > 0].astype(np.uint64)
    return words[:, 0] << np.uint64(32) | words[:, 1]


def gather(what: str, read: Mapping[int, Item], places: Sequence[int]) -> list[Item]:
    """The items at some places, in process 0; none elsewhere. All processes call it together.

    Args:
      what: they are; named in the message, where a process is late.
      read: what this process has read, by place.
      places: the same in every process.

    Returns:
      Id, question and answer of each.
    """
    own = [(place, read[place]) for place in places if place in read]
    told = processes.gather(what, [[place, item.id, item.question, item.answer] for place, item in own])
    found = {place: Item(id, question, None, answer) for one in told for place, id, question, answer in one}
    return [found[place] for place in places] if processes.first() else []


def _split(mesh: jax.sharding.Mesh, outer: int) -> jax.NamedSharding:
    return jax.NamedSharding(mesh, partitioning.spec_of(Axes((None,) * outer + ('batch',)), LEARNING))


@functools.cache
def _reordered(outer: int, split: jax.NamedSharding) -> Any:
    """A program that puts the rows of all rounds and batches in another order."""

    def reorder(batch: Batch, order: jax.Array) -> Batch:
        return jax.tree.map(
            lambda array: array.reshape(-1, *array.shape[outer + 1 :])[order].reshape(array.shape), batch
        )

    return jax.jit(reorder, out_shardings=split)
