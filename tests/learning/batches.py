"""Examples and lessons written out, and a model that compiles at once, for tests of learning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from t5x_selfimprove.learning.lessons import Packing
from t5x_selfimprove.models import layers
from t5x_selfimprove.records import Examples, Lessons


def examples_of(
    rows: list[tuple[int, list[int]]], weights: list[float] | None = None, room: int | None = None
) -> Examples:
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
    prompts = [int(generator.integers(1, length)) for length in lengths]
    rows = [generator.integers(3, vocabulary, length).tolist() for length in lengths]
    return examples_of(list(zip(prompts, rows, strict=True)), room=room)


def packed(examples: Examples, row_length: int, rows: int | None = None, seed: int = 0) -> Lessons:
    """Lessons, none of the examples dropped."""
    lessons, dropped = jax.jit(Packing(row_length, rows))(examples, jax.random.key(seed))
    assert int(dropped) == 0
    return lessons


def unpacked(lessons: Lessons) -> list[tuple[list[int], list[float]]]:
    """(tokens, loss weights) of every example in the rows, found by their segments, sorted."""
    rows, found = jax.tree.map(np.asarray, lessons), []
    for tokens, weights, segments in zip(rows.tokens, rows.loss_weight, rows.segment, strict=True):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            assert here.any(), f'no segment {segment} in {segments}'
            found.append((tokens[here].tolist(), weights[here].tolist()))
    return sorted(found)


@dataclasses.dataclass(frozen=True)
class BigramConfig:
    """What the learner reads of a model's settings."""

    dropout: float = 0.0


@functools.partial(jax.tree_util.register_dataclass, data_fields=['embedding', 'head'], meta_fields=['config'])
@dataclasses.dataclass(frozen=True)
class Bigram:
    """The next token from the token alone."""

    embedding: jax.Array
    head: jax.Array
    config: BigramConfig

    def forward_with_loss(self, tokens, position, segment, dropout_key=None):
        return self.forward(tokens, position, segment, dropout_key), jnp.zeros(())

    def forward(self, tokens, position, segment, dropout_key=None):
        return layers.dropout(self.embedding[tokens], self.config.dropout, dropout_key)

    def log_probs(self, hidden, targets):
        scores = jax.nn.log_softmax(hidden @ self.head.T)
        return jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]


def bigram(seed: int = 0, dropout: float = 0.0, vocabulary: int = 40) -> Bigram:
    """A random bigram model."""
    draws = np.random.default_rng(seed).normal(size=(2, vocabulary, 8))
    return Bigram(*jnp.asarray(draws / 2, jnp.float32), BigramConfig(dropout))
