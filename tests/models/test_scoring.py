"""Log-probabilities and entropies in chunks of the vocabulary: the same numbers and gradients, less memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import partitioning
from t5x_selfimprove.models.scoring import Finish, entropies, log_probs
from t5x_selfimprove.partitioning import LEARNING, Axes, MeshShape
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


# The head and the hidden states of a model of today: 256k tokens of vocabulary, 4k tokens of text.
LARGE, TEXT, NARROW = 262_144, 4096, 256


def large_gradient(score, sizes=(1, 1, 1)):
    """Value and gradient of a sum of scores at the large size, compiled and never run."""
    mesh = MeshShape(*sizes).build(jax.devices()[: int(np.prod(sizes))])

    def shape(dimensions, dtype, *names):
        spec = partitioning.spec_of(Axes(names), LEARNING)
        return jax.ShapeDtypeStruct(dimensions, dtype, sharding=jax.NamedSharding(mesh, spec))

    arguments = (
        shape((8, TEXT // 8, NARROW), jnp.bfloat16, 'batch', None, None),
        shape((LARGE, NARROW), jnp.float32, 'vocabulary', 'model'),
        shape((8, TEXT // 8), jnp.int32, 'batch', None),
    )
    with partitioning.use(mesh):
        return jax.jit(jax.value_and_grad(score, (0, 1))).lower(*arguments).compile()


SCORES = {
    'log_probs': lambda hidden, head, targets: log_probs(hidden, head, targets, 8192).sum(),
    'entropies': lambda hidden, head, targets: entropies(hidden, head, 8192).sum(),
}


@pytest.mark.parametrize('name', SCORES)
def test_the_largest_vocabularies_fit(name, record_property):
    program = large_gradient(SCORES[name])
    temporary = program.memory_analysis().temp_size_in_bytes
    everything, head = TEXT * LARGE * 4, LARGE * NARROW * 4
    record_property('temporary_bytes', temporary)
    # The gradient of the head in float32, a copy of the head, and [rows, chunk] a few times.
    assert temporary < 2 * head + 4 * TEXT * 8192 * 4 < everything / 3, temporary


@pytest.mark.parametrize('name', SCORES)
def test_a_split_head_stays_split(name):
    program = large_gradient(SCORES[name], (1, 4, 2))
    temporary = program.memory_analysis().temp_size_in_bytes
    assert temporary < TEXT * LARGE * 4 / 8 / 4, temporary
    gathered = re.findall(r'= \w+\[([\d,]+)\]\S* all-gather(?:-start)?\(', program.as_text())
    sizes = {tuple(map(int, shape.split(','))) for shape in gathered}
    # Of the head, one device's rows of one visit at a time are gathered over `fsdp`, and nothing over `tensor`.
    assert (4096, NARROW) in sizes
    assert max(map(np.prod, sizes)) == 4096 * NARROW, sizes


@pytest.mark.parametrize('vocabulary', [44])  # a device has 22 rows, not a multiple of the four visits
def test_a_split_vocabulary_gives_the_same_numbers(vocabulary):
    hidden, head, targets = inputs(rows=(4, 2), vocabulary=vocabulary)
    finish = Finish(0.5, 2.0)

    def both(hidden, head):
        scores = lambda hidden, head: (  # noqa: E731
            log_probs(hidden, head, targets, 12, finish).sum() + entropies(hidden, head, 12, finish).sum()
        )
        return (log_probs(hidden, head, targets, 12, finish), entropies(hidden, head, 12, finish)), jax.grad(
            scores, (0, 1)
        )(hidden, head)

    wanted = jax.jit(both)(hidden, head)
    mesh = MeshShape(2, 2, 2).build()
    with partitioning.use(mesh):
        split = jax.device_put(head, jax.NamedSharding(mesh, jax.P('tensor', 'fsdp')))
        got = jax.jit(lambda *x: both(*x))(hidden, split)
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        close(left, right, 1e-5)


def plain_entropies(hidden, head, finish):
    """The definition, with an array of [rows, vocabulary]."""
    log_p = jax.nn.log_softmax(finish(hidden @ head.T))
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


@pytest.mark.parametrize('finish', [Finish(), Finish(scale=0.3), Finish(scale=0.5, softcap=3.0)], ids=str)
@pytest.mark.parametrize('chunk', [7, 40])
def test_entropies_and_finished_scores_equal_their_formulas(chunk, finish):
    hidden, head, targets = inputs(scale=1.5)
    weights = jax.random.normal(jax.random.key(1), targets.shape)

    def both(score, entropy):
        loss = lambda *x: ((score(*x) + 2 * entropy(*x)) * weights).sum()  # noqa: E731
        return jax.jit(lambda *x: (score(*x), entropy(*x), jax.grad(loss, (0, 1))(*x)))(hidden, head)

    got = both(lambda *x: log_probs(*x, targets, chunk, finish), lambda *x: entropies(*x, chunk, finish))

    def finished(hidden, head):
        logits = hidden @ head.T * finish.scale
        return finish.softcap * jnp.tanh(logits / finish.softcap) if finish.softcap else logits

    at_targets = lambda *x: jnp.take_along_axis(jax.nn.log_softmax(finished(*x)), targets[..., None], -1)[..., 0]  # noqa: E731
    wanted = both(at_targets, lambda *x: plain_entropies(finished(*x), jnp.eye(40), lambda logits: logits))
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        close(left, right, 3e-5)
    assert 0 < float(got[1].min()) < float(got[1].max()) < np.log(40)


def test_the_entropy_of_no_preference_is_the_logarithm_of_the_size():
    close(entropies(jnp.zeros((3, 8)), inputs()[1], 7), np.full(3, np.log(40)))
