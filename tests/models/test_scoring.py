"""Log-probabilities in chunks of the vocabulary: the same numbers and gradients, a fraction of the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.models.scoring import log_probs
from tests.models.tiny import close


def plainly(hidden, head, targets):
    """The definition, with an array of [rows, vocabulary]."""
    return jnp.take_along_axis(jax.nn.log_softmax(hidden @ head.T), targets[..., None], -1)[..., 0]


def inputs(rows=(3, 4), width=8, vocabulary=40, scale=1.0):
    hidden, head, targets = jax.random.split(jax.random.key(0), 3)
    return (
        scale * jax.random.normal(hidden, (*rows, width)),
        jax.random.normal(head, (vocabulary, width)),
        jax.random.randint(targets, rows, 0, vocabulary),
    )


@pytest.mark.parametrize('chunk', [7, 20, 40])
def test_equals_log_softmax_in_value_and_gradient(chunk, scale=10.0):
    hidden, head, targets = inputs(scale=scale)
    weights = jax.random.normal(jax.random.key(1), targets.shape)

    def both(function):
        loss = lambda hidden, head: (function(hidden, head) * weights).sum()  # noqa: E731
        return jax.jit(lambda *x: (function(*x), jax.grad(loss, (0, 1))(*x)))(hidden, head)

    got = both(lambda hidden, head: log_probs(hidden, head, targets, chunk))
    wanted = both(lambda hidden, head: plainly(hidden, head, targets))
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        close(left, right, 1e-5 * scale)


def test_the_targets_at_the_ends_of_chunks_are_found():
    hidden, head, _ = inputs(rows=(40,))
    targets = jnp.arange(40)
    close(log_probs(hidden, head, targets, 10), plainly(hidden, head, targets))
    total = np.exp(log_probs(jnp.broadcast_to(hidden[0], (40, 8)), head, targets, 10)).sum()
    assert total == pytest.approx(1, abs=1e-5)


def test_bfloat16_probabilities_never_exceed_one():
    # The target's logit and the normaliser must come from the same rounded numbers.
    hidden, head, _ = inputs(rows=(64,), scale=8.0)
    hidden = hidden.astype(jnp.bfloat16)
    best = jnp.argmax(hidden.astype(jnp.float32) @ head.astype(jnp.bfloat16).astype(jnp.float32).T, axis=-1)
    for chunk in (16, 64):
        scores = log_probs(hidden, head, best, chunk)
        assert scores.dtype == jnp.float32
        assert float(scores.max()) <= 1e-5


def test_a_large_vocabulary_is_never_held_against_all_rows():
    rows, width, vocabulary, chunk = 2048, 16, 65_000, 2048
    arguments = (
        jax.ShapeDtypeStruct((rows, width), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )

    def temporary(function, backward):
        loss = lambda hidden, head, targets: function(hidden, head, targets).sum()  # noqa: E731
        program = jax.jit(jax.grad(loss, (0, 1)) if backward else function).lower(*arguments).compile()
        return program.memory_analysis().temp_size_in_bytes

    everything = rows * vocabulary * 4
    assert temporary(plainly, False) >= everything  # the measure sees what is to be avoided
    for backward in (False, True):
        chunked = temporary(lambda hidden, head, targets: log_probs(hidden, head, targets, chunk), backward)
        assert chunked < everything / 6, (backward, chunked / everything)
