"""The loss: the same however rows are packed and padded, and blind to what has no weight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from t5x_selfimprove.learning.losses import next_token
from tests.learning.batches import packed, random_examples
from tests.models.tiny import close, largest_difference, model, row_logits

loss_and_gradient = jax.jit(
    jax.value_and_grad(lambda tiny, lessons: next_token(tiny, lessons, None), has_aux=True)
)
ROOM = 8


def test_by_the_formula():
    examples = dataclasses.replace(random_examples(5, ROOM), weight=jnp.array([1, 0.5, 2, 1, 1.0]))
    total = weights = 0.0
    for tokens, prompt, length, weight in zip(*map(np.asarray, jax.tree.leaves(examples)), strict=True):
        logits = row_logits(model(), tokens[:length]).astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for place in range(prompt, length):
            total -= weight * log_probs[place - 1, tokens[place]]
            weights += weight
    (got, weight), _ = loss_and_gradient(model(), packed(examples, ROOM))
    close(got, total)
    close(weight, weights)


def test_packing_and_padding_change_nothing():
    examples = random_examples(12, ROOM)
    alone = packed(examples, ROOM)  # hardly ever two to a row
    (wanted, weight), gradient = loss_and_gradient(model(), alone)
    for lessons in (packed(examples, 3 * ROOM), packed(examples, 3 * ROOM + 5, rows=20, seed=1)):
        assert int(lessons.segment.max()) > 3
        (got, same_weight), same_gradient = loss_and_gradient(model(), lessons)
        close(got / weight, wanted / weight, 1e-6)
        assert same_weight == weight
        assert largest_difference(same_gradient, gradient) < 1e-5 * float(weight)


def test_nothing_is_learnt_without_weight():
    lessons = packed(random_examples(6, ROOM), 2 * ROOM)
    lessons = dataclasses.replace(lessons, loss_weight=0 * lessons.loss_weight)
    (total, weight), gradient = loss_and_gradient(model(), lessons)
    assert total == weight == 0
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_an_example_without_weight_does_not_move_the_others():
    examples = random_examples(6, ROOM)
    some = dataclasses.replace(examples, weight=jnp.array([1, 0, 1, 1, 0, 1.0]))
    rows = jnp.array([0, 2, 3, 5])
    alone = packed(jax.tree.map(lambda x: x[rows], examples), 2 * ROOM)
    within = packed(examples, 2 * ROOM)
    # The two examples stay in their rows and lose their weight.
    lost = {tuple(examples.tokens[row, : int(examples.length[row])].tolist()) for row in (1, 4)}
    weights = np.array(within.loss_weight)
    for row in range(weights.shape[0]):
        for segment in range(1, int(within.segment[row].max()) + 1):
            here = np.asarray(within.segment[row]) == segment
            if tuple(np.asarray(within.tokens)[row, here].tolist()) in lost:
                weights[row, here] = 0
    within = dataclasses.replace(within, loss_weight=jnp.asarray(weights))
    results = [loss_and_gradient(model(), lessons) for lessons in (alone, within, packed(some, 2 * ROOM))]
    assert float(results[0][0][0]) > 1
    for result in results[1:]:
        assert largest_difference(result, results[0]) < 1e-4
