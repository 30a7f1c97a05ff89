"""Questions written as text, for tests of templates."""

import jax.numpy as jnp

from t5x_selfimprove.records import Questions


def questions_of(vocabulary, texts, room):
    rows = [vocabulary.encode(text) for text in texts]
    count = len(rows)
    return Questions(
        tokens=jnp.array([row + [vocabulary.pad_id] * (room - len(row)) for row in rows], jnp.int32),
        length=jnp.array([len(row) for row in rows], jnp.int32),
        answer=jnp.zeros((count, 1), jnp.uint8),
        known=jnp.zeros(count, bool),
        weight=jnp.ones(count),
        id=jnp.arange(2 * count, dtype=jnp.uint32).reshape(count, 2),
    )
