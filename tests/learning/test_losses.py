"""The loss: the same however rows are packed and padded, and blind to what has no weight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from t5x_selfimprove.learning.lessons import write_rows
from t5x_selfimprove.learning.losses import next_token
from tests.learning.batches import packed, random_examples
from tests.models.tiny import close, largest_difference, model, row_logits

ROOM, ROWS, LENGTH = 8, 12, 24  # of an example, of the lessons
TINY = model(vocabulary_chunk=64)

loss_and_gradient = jax.jit(jax.value_and_grad(lambda tiny, lessons: next_token(tiny, lessons, None), has_aux=True))


def alone(examples):
    """A row for each example; those without weight are there and have no loss."""
    count = examples.weight.shape[0]
    row = jnp.arange(count, dtype=jnp.int32)
    return write_rows(examples, row, 0 * row, jnp.ones(count, bool), ROWS, LENGTH)


def test_by_the_formula():
    examples = dataclasses.replace(random_examples(5, ROOM), weight=jnp.array([1, 0.5, 2, 1, 1.0]))
    total = weights = 0.0
    for tokens, prompt, length, weight in zip(*map(np.asarray, jax.tree.leaves(examples)), strict=True):
        logits = row_logits(TINY, tokens[:length]).astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for place in range(prompt, length):
            total -= weight * log_probs[place - 1, tokens[place]]
            weights += weight
    (got, weight), _ = loss_and_gradient(TINY, packed(examples, LENGTH, ROWS))
    close(got, total)
    close(weight, weights)


def test_packing_and_padding_change_nothing():
    examples = random_examples(ROWS, ROOM)
    (wanted, weight), gradient = loss_and_gradient(TINY, alone(examples))
    for seed in range(2):
        lessons = packed(examples, LENGTH, ROWS, seed)
        assert int(lessons.segment.max()) > 3 and int(lessons.filled) < ROWS / 2
        (got, same_weight), same_gradient = loss_and_gradient(TINY, lessons)
        close(got / weight, wanted / weight, 1e-6)
        assert same_weight == weight
        assert largest_difference(same_gradient, gradient) < 1e-6 * float(weight)


def test_nothing_is_learnt_without_weight():
    lessons = packed(random_examples(6, ROOM), LENGTH, ROWS)
    lessons = dataclasses.replace(lessons, loss_weight=0 * lessons.loss_weight)
    (total, weight), gradient = loss_and_gradient(TINY, lessons)
    assert total == weight == 0
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_examples_without_weight_do_not_move_the_others():
    examples = random_examples(6, ROOM)
    some = dataclasses.replace(examples, weight=jnp.array([1, 0, 1, 1, 0, 1.0]))
    wanted = loss_and_gradient(TINY, alone(jax.tree.map(lambda x: x[jnp.array([0, 2, 3, 5])], examples)))
    assert float(wanted[0][0]) > 1
    for lessons in (alone(some), packed(some, LENGTH, ROWS)):  # in rows of their own, and left out
        assert largest_difference(loss_and_gradient(TINY, lessons), wanted) < 1e-5
    row = jnp.zeros(6, jnp.int32)
    together = write_rows(some, row, jnp.cumsum(some.length) - some.length, row == 0, ROWS, 6 * ROOM)
    assert largest_difference(loss_and_gradient(TINY, together), wanted) < 1e-5  # and between the others
