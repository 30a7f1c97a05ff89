"""Examples and lessons written out, for tests of learning."""

import jax
import jax.numpy as jnp
import numpy as np

from t5x_selfimprove.learning.lessons import Packing
from t5x_selfimprove.records import Examples, Lessons


def examples_of(rows: list[tuple[int, list[int]]], weights: list[float] | None = None, room: int | None = None) -> Examples:
    """Examples from (prompt length, tokens) pairs. What stands behind a row's end is no padding token."""
    lengths = [len(tokens) for _, tokens in rows]
    tokens = np.full((len(rows), room or max(lengths)), 37, np.int32)
    for row, (_, mine) in enumerate(rows):
        tokens[row, : len(mine)] = mine
    return Examples(
        tokens=jnp.asarray(tokens),
        prompt_length=jnp.array([prompt for prompt, _ in rows], jnp.int32),
        length=jnp.array(lengths, jnp.int32),
        weight=jnp.ones(len(rows)) if weights is None else jnp.array(weights, jnp.float32),
    )


def random_examples(count: int, room: int, seed: int = 0, vocabulary: int = 40) -> Examples:
    """Examples of 2..room tokens, of which the first 1..length-1 are the prompt."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, room + 1, count)
    rows = [(int(generator.integers(1, length)), generator.integers(3, vocabulary, length).tolist()) for length in lengths]
    return examples_of(rows, room=room)


def packed(examples: Examples, row_length: int, rows: int | None = None, seed: int = 0) -> Lessons:
    """Lessons, none of the examples dropped."""
    lessons, dropped = jax.jit(Packing(row_length, rows))(examples, jax.random.key(seed))
    assert int(dropped) == 0
    return lessons


def unpacked(lessons: Lessons) -> list[tuple[list[int], list[float]]]:
    """(tokens, loss weights) of every example in the rows, found by their segments, sorted."""
    found = []
    for row in range(lessons.tokens.shape[0]):
        for segment in range(1, int(lessons.segment[row].max()) + 1):
            here = np.asarray(lessons.segment[row]) == segment
            assert here.any(), f'row {row} has no segment {segment}'
            found.append((np.asarray(lessons.tokens)[row, here].tolist(), np.asarray(lessons.loss_weight)[row, here].tolist()))
    return sorted(found)
