"""Lessons: examples of samples, packing into rows, minibatches of rows; exact arrays of small cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.learning import lessons as lessons_module
from t5x_selfimprove.learning.lessons import Packing, epoch_orders, minibatch, write_rows
from t5x_selfimprove.records import Lessons, Prompts, Samples, check
from tests.learning.batches import examples_of, packed, random_examples, unpacked


def test_examples_are_samples_behind_their_prompts():
    prompts = Prompts(
        prefix=jnp.array([2, 3]),
        tokens=jnp.array([[5, 6, 77], [7, 77, 77]]),
        length=jnp.array([2, 1], jnp.int32),
        id=jnp.zeros((2, 2), jnp.uint32),
    )
    mask = jnp.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]], bool)
    tokens = jnp.array([[11, 1, 88], [12, 13, 14], [88, 88, 88], [1, 88, 88]])
    samples = Samples(tokens, mask, jnp.zeros((4, 3)), jnp.ones(4, bool))
    got = lessons_module.examples_of(prompts, samples, jnp.array([1.0, 0.5, 0.0, 2.0]), pad=0)
    check(got)
    assert got.tokens.tolist() == [
        [2, 3, 5, 6, 11, 1, 0, 0],
        [2, 3, 5, 6, 12, 13, 14, 0],
        [2, 3, 7, 0, 0, 0, 0, 0],
        [2, 3, 7, 1, 0, 0, 0, 0],
    ]
    assert got.prompt_length.tolist() == [4, 4, 3, 3]
    assert got.length.tolist() == [6, 7, 3, 4]
    assert got.weight.tolist() == [1, 0.5, 0, 2]


def test_paths_that_ended_at_a_text_are_closed():
    """An end of text (1) behind the first, which ended at a text; the others ended with it, were cut off, are empty."""
    tokens = jnp.array([[5, 6, 0], [5, 1, 0], [5, 6, 7], [0, 0, 0]])
    mask = jnp.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
    ended = jnp.array([True, True, False, True])
    got = lessons_module.closed(Samples(tokens, mask, jnp.full((4, 3), -1.0), ended), 1)
    check(got)
    assert got.tokens.tolist() == [[5, 6, 1, 0], [5, 1, 0, 0], [5, 6, 7, 0], [0, 0, 0, 0]]
    assert got.mask.sum(axis=1).tolist() == [3, 2, 3, 0]
    full = lessons_module.closed(Samples(tokens[2:3], mask[2:3], jnp.zeros((1, 3)), jnp.ones(1, bool)), 1)
    assert full.tokens.tolist() == [[5, 6, 7, 1]] and full.mask.all()


def test_each_example_in_a_row_of_its_own():
    examples = examples_of([(2, [5, 6, 7, 8]), (1, [4, 9])], [1, 0])
    got = lessons_module.one_a_row(examples, sources=False)
    check(got)
    assert got.tokens.tolist() == [[5, 6, 7, 8], [4, 9, 0, 0]]
    assert got.targets.tolist()[0][1:3] == [7, 8] and got.segment.tolist() == [[1] * 4, [1, 1, 0, 0]]
    apart = lessons_module.one_a_row(examples, sources=True)
    assert apart.source.tokens[:, :2].tolist() == [[5, 6], [4, 0]]
    assert apart.tokens[:, :3].tolist() == [[0, 7, 8], [0, 9, 0]]


def test_places_fill_a_row_before_the_next():
    row, offset = Packing(5).places(jnp.array([3, 2, 4, 1, 5, 2, 2, 2], jnp.int32))
    #   a a a b b   c c c c d   e e e e e   f f g g .   h h . . .
    assert row.tolist() == [0, 0, 1, 1, 2, 3, 3, 4]
    assert offset.tolist() == [0, 3, 0, 4, 0, 0, 2, 0]


def test_rows_as_drawn():
    # a: 5 6 | 7 8     b: 4 | 9     c: 3 3 3 | 2 1     left out: the fourth
    examples = examples_of([(2, [5, 6, 7, 8]), (1, [4, 9]), (3, [3, 3, 3, 2, 1]), (1, [6, 6])], [1, 0.5, 1, 1])
    row, offset = jnp.array([0, 0, 1, 2], jnp.int32), jnp.array([0, 4, 0, 0], jnp.int32)
    got = write_rows(examples, row, offset, jnp.array([True, True, True, False]), 3, 7)
    check(got)
    assert got.tokens.tolist() == [[5, 6, 7, 8, 4, 9, 0], [3, 3, 3, 2, 1, 0, 0], [0] * 7]
    assert got.segment.tolist() == [[1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 0, 0], [0] * 7]
    assert got.position.tolist() == [[0, 1, 2, 3, 0, 1, 0], [0, 1, 2, 3, 4, 0, 0], [0] * 7]
    assert got.loss_weight.tolist() == [[0, 1, 1, 0, 0.5, 0, 0], [0, 0, 1, 1, 0, 0, 0], [0] * 7]
    learnt = np.asarray(got.loss_weight) > 0
    assert np.asarray(got.targets)[learnt].tolist() == [7, 8, 9, 2, 1]
    assert int(got.filled) == 2


@pytest.mark.parametrize('room', [4, 6, 10])
def test_every_example_is_placed_once(room):
    examples = random_examples(40, room, seed=room)
    got = packed(examples, row_length=20)
    wanted = []
    for tokens, prompt, length in zip(examples.tokens, examples.prompt_length, examples.length, strict=True):
        learnt = [float(prompt - 1 <= place < length - 1) for place in range(int(length))]
        wanted.append((tokens[: int(length)].tolist(), learnt))
    assert unpacked(got) == sorted(wanted)
    assert (np.asarray(got.segment) > 0).sum() == int(examples.length.sum())
    filled = int(got.filled)
    assert (np.asarray(got.segment[:filled, 0]) == 1).all() and not np.asarray(got.segment[filled:]).any()
    for field in (got.tokens, got.targets, got.loss_weight, got.position):
        assert not np.asarray(field)[np.asarray(got.segment) == 0].any()


def test_rows_are_enough_in_the_worst_case():
    # Rows of 10 hold three examples of up to 3; of examples of 2 and 3 they would hold more.
    assert Packing(10).rows_for(7, 3) == 3
    assert Packing(10).rows_for(7, 10) == 7
    for lengths in ([3] * 7, [2] * 7, [3, 2, 3, 2, 3, 2, 3]):
        packed(examples_of([(1, [5] * length) for length in lengths], room=3), row_length=10)


def test_an_overflow_is_counted():
    examples = examples_of([(1, [4, 5, 6])] * 7)
    got, dropped = Packing(6, rows=2)(examples, jax.random.key(0))
    assert int(dropped) == 3 and len(unpacked(got)) == 4 and got.tokens.shape == (2, 6)
    _, none = Packing(6, rows=4)(examples, jax.random.key(0))
    assert int(none) == 0


def test_examples_without_weight_are_left_out():
    examples = examples_of([(1, [10 + row, 5, 6]) for row in range(8)], [1, 0, 0.5, 0, 0, 2, 0, 0])
    got = packed(examples, row_length=9, rows=1)  # no row is wasted on them
    assert [tokens[0] for tokens, _ in unpacked(got)] == [10, 12, 15]
    assert [weights[0] for _, weights in unpacked(got)] == [1, 0.5, 2]


def test_nothing_kept_leaves_empty_rows():
    got = packed(examples_of([(1, [4, 5])] * 3, [0, 0, 0]), row_length=4)
    assert int(got.filled) == 0
    assert not any(np.asarray(field).any() for field in (got.tokens, got.segment, got.loss_weight))


def test_the_order_is_shuffled_and_seeded():
    examples = examples_of([(1, [10 + row, 5]) for row in range(12)])
    first = lambda seed: packed(examples, 2, seed=seed).tokens[:, 0].tolist()  # noqa: E731
    assert first(0) == first(0) != first(1)
    assert sorted(first(0)) == list(range(10, 22)) != first(0)


@pytest.mark.parametrize(
    ('make', 'said'),
    [
        (lambda: Packing(0), 'at least 1; they are 0, None'),
        (lambda: Packing(8, rows=0), 'at least 1; they are 8, 0'),
        (lambda: Packing(8).rows_for(3, 9), 'up to 9 tokens but row_length is 8; raise row_length to 9'),
        (lambda: Packing(8, rows=5).rows_for(3, 9), 'raise row_length to 9'),
    ],
)
def test_what_cannot_be_packed_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def numbered(filled: int, rows: int) -> Lessons:
    """Rows of one token, which is the row's number."""
    column = jnp.arange(rows, dtype=jnp.int32)[:, None]
    return Lessons(column, column, column.astype(jnp.float32), column, column, jnp.int32(filled))


def test_epoch_orders_permute_the_filled_rows():
    orders = np.asarray(epoch_orders(numbered(5, 9), 40, jax.random.key(0)))
    assert orders.shape == (40, 9) and orders.dtype == np.int32
    np.testing.assert_array_equal(np.sort(orders[:, :5], axis=1), np.broadcast_to(np.arange(5), (40, 5)))
    assert len({tuple(order) for order in orders[:, :5].tolist()}) > 20
    assert (orders != np.asarray(epoch_orders(numbered(5, 9), 40, jax.random.key(1)))).any()


@pytest.mark.parametrize(('filled', 'size'), [(5, 2), (5, 5), (5, 7), (1, 3), (8, 8)])
def test_every_pass_holds_each_filled_row_once(filled, size):
    lessons, epochs, passes = numbered(filled, 8), 3, 7
    order = epoch_orders(lessons, epochs, jax.random.key(2))
    seen = []
    for step in range(-(-passes * filled // size)):
        batch = minibatch(lessons, order, jnp.int32(step * size), size)
        assert batch.tokens.shape == (size, 1)
        seen += batch.tokens[:, 0].tolist()
        np.testing.assert_array_equal(batch.tokens, batch.targets)
    for number in range(passes):
        assert seen[number * filled : (number + 1) * filled] == order[number % epochs, :filled].tolist()


def test_minibatches_of_nothing_are_empty():
    lessons = packed(examples_of([(1, [4, 5])] * 3, [0, 0, 0]), row_length=4)
    batch = minibatch(lessons, epoch_orders(lessons, 2, jax.random.key(0)), jnp.int32(0), 4)
    assert batch.tokens.shape == (4, 4) and not np.asarray(batch.loss_weight).any()
