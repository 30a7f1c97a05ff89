"""What each process reads of a batch, and one array of their shares; several real ones are in test_many_processes."""

import re

import jax
import numpy as np
import pytest

from t5x_selfimprove import partitioning, shares
from t5x_selfimprove.data.items import make_item
from t5x_selfimprove.partitioning import MeshShape
from t5x_selfimprove.records import Questions

Q = 8


def numbered(*outer: int, left_out: tuple[int, ...] = ()) -> Questions:
    """Questions that are told apart by their numbers; those that are left out are padding."""
    number = np.arange(np.prod(outer), dtype=np.int32).reshape(outer)
    there = ~np.isin(number, left_out)
    tokens = np.where(there[..., None], number[..., None] + np.arange(3, dtype=np.int32), 0)
    blank = np.zeros((*outer, 1), np.uint8)
    words = np.stack([number % 3, number], axis=-1).astype(np.uint32)
    return Questions(tokens, np.int32(there), blank, there, np.float32(there), words)


@pytest.mark.parametrize('mesh', [MeshShape(), MeshShape(data=2, fsdp=2, tensor=2), MeshShape(data=1, tensor=8)])
def test_nothing_is_moved_where_padding_is_last(mesh):
    mesh = mesh.build()
    assert shares.rows_here(mesh, Q).tolist() == [*range(Q)]  # of the one process
    whole = numbered(2, Q, left_out=(14, 15))
    placed, there = shares.place(mesh, whole, 1, Q)
    assert there.tolist() == [True] * 14 + [False] * 2
    assert placed.tokens.sharding.shard_shape((2, Q, 3)) == (2, Q // partitioning.batch_parts(mesh), 3)
    jax.tree.map(np.testing.assert_array_equal, placed, whole)


@pytest.mark.parametrize(('outer', 'left_out'), [((Q,), (0, 5)), ((2, Q), (3, 8)), ((2, 2, Q), (0, 1, 17, 31))])
def test_padding_goes_to_the_end_of_each_round(outer, left_out):
    mesh, whole = MeshShape(data=4, tensor=2).build(), numbered(*outer, left_out=left_out)
    placed, there = shares.place(mesh, whole, len(outer) - 1, Q)
    lead = outer[:-2]
    assert there.shape[:-1] == lead and np.flatnonzero(~there).tolist() == list(left_out)
    for array, moved in zip(jax.tree.leaves(whole), jax.tree.leaves(placed), strict=True):
        assert moved.sharding.shard_shape(moved.shape)[len(outer) - 1] == Q // 4
        rounds = np.asarray(moved).reshape(np.prod(lead, dtype=int), -1, *array.shape[len(outer) :])
        flat = array.reshape(rounds.shape)
        for before, after, kept in zip(flat, rounds, there.reshape(len(flat), -1), strict=True):
            np.testing.assert_array_equal(after, np.concatenate([before[kept], before[~kept]]))


class Other:
    """Half of what a mesh of two processes' devices says: that of one process."""

    def __init__(self, *indices: slice):
        self.indices = indices

    def addressable_devices_indices_map(self, shape):
        return dict(enumerate((index,) for index in self.indices))


@pytest.mark.parametrize(
    ('indices', 'rows'),
    [
        ((slice(0, 2), slice(4, 6)), [0, 1, 4, 5]),
        ((slice(4, 8), slice(0, 4), slice(4, 8)), [*range(8)]),  # copies along another axis
        ((slice(None),), [*range(8)]),
    ],
)
def test_rows_are_those_of_the_devices(monkeypatch, indices, rows):
    monkeypatch.setattr(shares, '_split', lambda mesh, outer: Other(*indices))
    assert shares.rows_here(MeshShape().build(), Q).tolist() == rows


def test_a_batch_that_cannot_be_split():
    with pytest.raises(ValueError, match=r'a batch of 12 cannot be split over .* = 8 devices; make its size'):
        shares.rows_here(MeshShape().build(), 12)


def test_ids_are_those_of_the_items():
    items = [make_item(text) for text in ('a', 'b')]
    words = [[int(item.id[:8], 16), int(item.id[8:], 16)] for item in items] + [[0, 0]]
    found = shares.ids(np.array(words, np.uint32)[None], np.float32([[1, 1, 0]]))
    assert [f'{id:016x}' for id in found] == [item.id for item in items]


def test_gathered_are_the_places_asked_for():
    items = {place: make_item(f'{place}?', 'because', str(place)) for place in (0, 1, 2, 5)}
    found = shares.gather('questions', items, [1, 5])
    assert [(item.id, item.question, item.answer) for item in found] == [
        (items[place].id, f'{place}?', str(place)) for place in (1, 5)
    ]
    assert not re.search('because', str(found))  # what is not written stays where it was read
