"""Logit transforms and the draw, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.sampling.transforms import TopK, TopP, draw

INF = np.inf


@pytest.mark.parametrize(
    ('k', 'kept'), [(1, [0, 0, 1, 0]), (2, [0, 1, 1, 1]), (3, [0, 1, 1, 1]), (4, [1, 1, 1, 1]), (9, [1, 1, 1, 1])]
)
def test_top_k_keeps_the_k_likeliest_and_ties(k, kept):
    logits = jnp.array([[-2.0, 1.0, 3.0, 1.0]])
    assert TopK(k)(logits)[0].tolist() == np.where(kept, logits[0], -INF).tolist()


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
    assert TopP(p)(logits)[0].tolist() == np.where(kept, logits[0], -INF).tolist()


def test_transforms_leave_forbidden_tokens_forbidden():
    logits = jnp.array([[-INF, 1.0, 0.0, -INF]])
    for transform in (TopK(3), TopP(0.9999), TopP(1.0)):
        assert transform(logits)[0].tolist() == logits[0].tolist()


@pytest.mark.parametrize('make', [lambda: TopK(0), lambda: TopP(0.0), lambda: TopP(1.5)])
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match='needs'):
        make()


def test_the_draw_inverts_the_cumulative_distribution():
    logits = jnp.log(jnp.array([0.25, 0.0, 0.5, 0.25, 0.0]))
    uniform = jnp.array([0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 0.9999999])
    got = draw(jnp.broadcast_to(logits, (7, 5)), uniform)
    assert got.tolist() == [0, 0, 2, 2, 2, 3, 3]
    assert got.dtype == jnp.int32


def test_the_draw_begins_behind_forbidden_tokens():
    assert draw(jnp.array([[-INF, -INF, 0.0, 0.0]]), jnp.zeros(1)).tolist() == [2]


@pytest.mark.parametrize('size', [300, 5000])
def test_a_forbidden_token_is_never_drawn(size):
    """At every edge of the cumulative distribution, as near as floats come to it, and at both ends."""
    generator = np.random.default_rng(size)
    logits = np.where(generator.random(size) < 0.1, 3 * generator.normal(size=size), -INF).astype(np.float32)
    cumulative = np.cumsum(np.exp(logits - logits.max(), dtype=np.float32), dtype=np.float32)
    edges = np.unique(np.round(cumulative / cumulative[-1] * 2**23).astype(np.int64))
    near = np.unique(np.clip(edges[:, None] + np.arange(-8, 9), 0, 2**23 - 1))
    near = jnp.asarray(near / 2**23, jnp.float32)  # numbers that jax.random.uniform draws
    drawn = jax.jit(lambda uniform: draw(jnp.broadcast_to(jnp.array(logits), (len(uniform), size)), uniform))(near)
    drawn = np.asarray(drawn)
    forbidden = np.isinf(logits[drawn])
    assert not forbidden.any(), f'{forbidden.sum()} of {len(near)} draws are forbidden tokens'
    assert drawn[-1] == np.flatnonzero(np.isfinite(logits))[-1]
    probability = np.exp(logits) / np.exp(logits).sum()
    assert set(np.flatnonzero(probability > 1e-6)) <= set(drawn)
