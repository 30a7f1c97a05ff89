"""Logit transforms and the draw, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.models import native
from t5x_selfimprove.sampling.transforms import (
    Drawn,
    MinP,
    NoRepeatedNgram,
    RepetitionPenalty,
    TopK,
    TopP,
    draw,
    likeliest,
    log_sum_exp,
    threshold,
)

INF = np.inf


def drawn(*rows, room=6, newest=3):
    """What samples have drawn, oldest first, in a ring whose newest column is `newest`; the rest of it is 1."""
    tokens = np.ones((len(rows), room), np.int32)
    for ring, row in zip(tokens, rows, strict=True):
        ring[(newest - np.arange(len(row))) % room] = row[::-1]
    age = (newest - jnp.arange(room)) % room
    return Drawn(jnp.asarray(tokens), age, jnp.array([len(row) for row in rows], jnp.int32))


NOTHING = drawn([])


@pytest.mark.parametrize(
    ('k', 'kept'), [(1, [0, 0, 1, 0]), (2, [0, 1, 1, 1]), (3, [0, 1, 1, 1]), (4, [1, 1, 1, 1]), (9, [1, 1, 1, 1])]
)
def test_top_k_keeps_the_k_likeliest_and_ties(k, kept):
    logits = jnp.array([[-2.0, 1.0, 3.0, 1.0]])
    assert TopK(k)(logits, NOTHING)[0].tolist() == np.where(kept, logits[0], -INF).tolist()


@pytest.mark.parametrize(
    ('p', 'kept'),
    [
        (1e-6, [0, 0, 1, 0]),  # the likeliest is always kept
        (0.49, [0, 0, 1, 0]),
        (0.51, [0, 1, 1, 0]),
        (0.74, [0, 1, 1, 0]),
        (0.76, [1, 1, 1, 1]),  # the last two tie
        (1.0, [1, 1, 1, 1]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_holds_p(p, kept):
    logits = jnp.log(jnp.array([[0.125, 0.25, 0.5, 0.125]]))
    assert TopP(p)(logits, NOTHING)[0].tolist() == np.where(kept, logits[0], -INF).tolist()


def test_transforms_leave_forbidden_tokens_forbidden():
    logits = jnp.array([[-INF, 1.0, 0.0, -INF]])
    for transform in (TopK(3), TopP(0.9999), TopP(1.0), MinP(0.1), RepetitionPenalty(1.5), NoRepeatedNgram(2)):
        assert transform(logits, NOTHING)[0].tolist() == logits[0].tolist()


@pytest.mark.parametrize(('kind', 'value'), [(TopK, 0), (TopP, 0.0), (TopP, 1.5), (MinP, 0.0), (MinP, 1.1)])
def test_settings_out_of_range_are_refused(kind, value):
    with pytest.raises(ValueError, match=f'needs .* it is {value}'):
        kind(value)


def test_guards_out_of_range_are_refused():
    with pytest.raises(ValueError, match='at least 2 tokens; it has 1'):
        NoRepeatedNgram(1)
    with pytest.raises(ValueError, match='positive; it is 0'):
        RepetitionPenalty(0.0)


@pytest.mark.parametrize(('p', 'kept'), [(1.0, [0, 0, 1, 0]), (0.4, [0, 1, 1, 0]), (0.2, [1, 1, 1, 1])])
def test_min_p_keeps_what_is_nearly_as_likely_as_the_likeliest(p, kept):
    logits = jnp.log(jnp.array([[0.125, 0.25, 0.5, 0.125]]))
    assert MinP(p)(logits, NOTHING)[0].tolist() == np.where(kept, logits[0], -INF).tolist()


def test_the_repetition_penalty_is_of_tokens_that_the_sample_has_drawn():
    logits = jnp.array([[2.0, -2.0, 0.0, 1.0, 3.0]] * 2)
    got = RepetitionPenalty(2.0)(logits, drawn([0, 4], [1, 3, 3]))
    assert got.tolist() == [[1.0, -2.0, 0.0, 1.0, 1.5], [2.0, -4.0, 0.0, 0.5, 3.0]]


@pytest.mark.parametrize(
    ('size', 'row', 'forbidden'),
    [
        (2, [2, 3, 2], {3}),
        (2, [2, 3, 2, 4, 2], {3, 4}),
        (2, [2, 2], {2}),
        (2, [2], set()),
        (3, [2, 3, 4, 2, 3], {4}),
        (3, [3, 4, 2, 3], set()),
        (3, [2, 2, 2], {2}),
        (4, [2, 3, 4, 2, 3], set()),
    ],
)
@pytest.mark.parametrize('newest', [0, 5])
def test_an_ngram_is_not_repeated(size, row, forbidden, newest):
    got = NoRepeatedNgram(size)(jnp.zeros((1, 5)), drawn(row, newest=newest))
    assert {token for token in range(5) if np.isinf(got[0, token])} == forbidden


def test_a_sample_without_another_token_may_repeat_an_ngram():
    logits = jnp.array([[-INF, -INF, -INF, 1.0, -INF]])
    assert NoRepeatedNgram(2)(logits, drawn([3, 3])).tolist() == logits.tolist()


@pytest.mark.parametrize('k', [1, 7, 200, 4999, 5000])
def test_the_threshold_is_the_kth_largest(k):
    logits = np.random.default_rng(0).normal(size=(3, 5000)).astype(np.float32)
    logits[1, ::2] = -INF
    logits[2] = np.round(logits[2])  # ties, and zeros of both signs
    got = jax.jit(lambda logits: threshold(logits, lambda above: above.sum(axis=-1) >= k))(logits)
    np.testing.assert_array_equal(got[:, 0], np.sort(logits)[:, -k])
    assert k in (4999, 5000) or (np.asarray(TopK(k)(jnp.array(logits), NOTHING)) > -INF).sum(axis=1).tolist() == [
        int((row >= np.sort(row)[-k]).sum()) for row in logits
    ]


@pytest.mark.parametrize('size', [5, 3000])
def test_the_likeliest_is_the_first_of_the_largest(size):
    logits = np.random.default_rng(1).integers(-9, 9, (20, size)).astype(np.float32)
    np.testing.assert_array_equal(likeliest(jnp.array(logits)), logits.argmax(axis=1))
    np.testing.assert_array_equal(likeliest(jnp.full((2, size), -INF).at[0, -1].set(-3.0))[:1], [size - 1])


@pytest.fixture(params=['kernel', 'XLA'])
def by_either(request, monkeypatch):
    """The draw by the kernel, where there is a C++ compiler, and by XLA."""
    if request.param == 'XLA':
        monkeypatch.setattr(native, 'trouble', lambda _: 'not asked for')
    elif native.trouble('float32'):
        pytest.skip(native.trouble('float32'))


@pytest.mark.usefixtures('by_either')
def test_the_draw_inverts_the_cumulative_distribution():
    logits = jnp.log(jnp.array([0.25, 0.0, 0.5, 0.25, 0.0]))
    uniform = jnp.array([0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 0.9999999])
    got, total = draw(jnp.broadcast_to(logits, (7, 5)), uniform)
    np.testing.assert_allclose(total, 0.0, atol=1e-6)
    assert got.tolist() == [0, 0, 2, 2, 2, 3, 3]
    assert got.dtype == jnp.int32


@pytest.mark.usefixtures('by_either')
def test_the_draw_begins_behind_forbidden_tokens():
    assert draw(jnp.array([[-INF, -INF, 0.0, 0.0]]), jnp.zeros(1))[0].tolist() == [2]


@pytest.mark.usefixtures('by_either')
@pytest.mark.parametrize('size', [300, 5000])
def test_a_forbidden_token_is_never_drawn(size):
    """At every edge of the cumulative distribution, as near as floats come to it, and at both ends."""
    generator = np.random.default_rng(size)
    logits = np.where(generator.random(size) < 0.1, 3 * generator.normal(size=size), -INF).astype(np.float32)
    cumulative = np.cumsum(np.exp(logits - logits.max(), dtype=np.float32), dtype=np.float32)
    edges = np.unique(np.round(cumulative / cumulative[-1] * 2**23).astype(np.int64))
    near = np.unique(np.clip(edges[:, None] + np.arange(-8, 9), 0, 2**23 - 1))
    near = jnp.asarray(near / 2**23, jnp.float32)  # numbers that jax.random.uniform draws
    found = jax.jit(lambda uniform: draw(jnp.broadcast_to(jnp.array(logits), (len(uniform), size)), uniform)[0])(near)
    found = np.asarray(found)
    forbidden = np.isinf(logits[found])
    assert not forbidden.any(), f'{forbidden.sum()} of {len(near)} draws are forbidden tokens'
    assert found[-1] == np.flatnonzero(np.isfinite(logits))[-1]
    probability = np.exp(logits) / np.exp(logits).sum()
    assert set(np.flatnonzero(probability > 1e-6)) <= set(found)


@pytest.mark.usefixtures('by_either')
@pytest.mark.parametrize('size', [1, 7, 300, 5000])
def test_the_sum_of_exponentials(size):
    logits = 20 * np.random.default_rng(size).normal(size=(9, size)).astype(np.float32)
    logits[0, 1:] = -INF
    expected = np.logaddexp.reduce(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(log_sum_exp(jnp.array(logits)), expected, rtol=2e-7, atol=1e-6)
    uniform = jax.random.uniform(jax.random.key(0), (9,))
    np.testing.assert_allclose(draw(jnp.array(logits), uniform)[1], expected, rtol=2e-7, atol=1e-6)


def test_kernel_and_xla_draw_the_same(monkeypatch):
    if native.trouble('float32'):
        pytest.skip(native.trouble('float32'))
    logits = jnp.array(3 * np.random.default_rng(0).normal(size=(2000, 700)), jnp.float32)
    uniform = jax.random.uniform(jax.random.key(0), (2000,))
    by_kernel = np.asarray(draw(logits, uniform)[0])
    monkeypatch.setattr(native, 'trouble', lambda _: 'not asked for')
    by_xla = np.asarray(draw(logits, uniform)[0])
    assert (by_kernel == by_xla).mean() > 0.998  # but for draws within rounding of an edge
    probability = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    assert probability[np.arange(2000), by_kernel].mean() == pytest.approx((probability**2).sum(1).mean(), rel=0.1)
