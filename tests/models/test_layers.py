"""Layers and attention against their definitions in NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import attention, layers
from t5x_selfimprove.models.cache import Segment
from t5x_selfimprove.models.config import Rope
from t5x_selfimprove.partitioning import MeshShape
from tests.models.tiny import close


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def softmax_attention(query, key, value, allowed):
    """[T, H, h] queries against [U, K, h] keys and values, by the formula."""
    query, key, value = (np.asarray(each) for each in (query, key, value))
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    out = np.zeros_like(query)
    for head in range(heads):
        scores = query[:, head] @ key[:, head // groups].T / np.sqrt(query.shape[-1])
        scores = np.where(allowed, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ value[:, head // groups]
    return out


def test_attention_by_the_formula():
    query, key, value = normal(2, 5, 4, 6), normal(2, 5, 2, 6, seed=1), normal(2, 5, 2, 6, seed=2)
    allowed = jnp.broadcast_to(jnp.tril(jnp.ones((5, 5), bool)), (2, 5, 5))
    grouped = attention.grouped(query, 2, query.shape[-1] ** -0.5)
    got = jax.jit(lambda query: attention.merge([attention.attend(query, key, value, allowed)]))(grouped)
    for row in range(2):
        close(got[row], softmax_attention(query[row], key[row], value[row], allowed[row]))


@pytest.mark.parametrize('time', [8, 11])
def test_long_prompts_attend_in_parts(monkeypatch, time):
    query, key, value = normal(2, time, 4, 8), normal(2, time, 2, 8, seed=1), normal(2, time, 2, 8, seed=2)
    allowed = jnp.broadcast_to(jnp.tril(jnp.ones((time, time), bool)), (2, time, time)).at[0, 2:, 1].set(False)
    inputs = attention.grouped(query, 2, 1.0), key, value, allowed
    wanted = jax.jit(lambda *inputs: attention.attend(*inputs, softcap=3.0))(*inputs)
    monkeypatch.setattr(attention, 'QUERIES', 3)
    got = jax.jit(lambda *inputs: attention.attend_prompt(*inputs, softcap=3.0))(*inputs)
    for mine, other in zip(got, wanted, strict=True):
        assert mine.shape == other.shape
        close(mine, other)


def test_memory_of_long_prompts_is_not_quadratic():
    def temporary(time):
        shapes = [(1, 2, 4, time, 8), (1, time, 2, 8), (1, time, 2, 8)]
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        allowed = lambda: jnp.tril(jnp.ones((1, time, time), bool))  # noqa: E731
        program = jax.jit(lambda *arrays: attention.attend_prompt(*arrays, allowed()))
        return program.lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < 2.5 * temporary(2048)


def test_segments_merge_to_attention_over_all_of_them():
    # 6 rows of 2 queries; a segment shared by all, one by 3 rows each, one of each row.
    query = normal(6, 2, 4, 6)
    grouped = attention.grouped(query, 2, query.shape[-1] ** -0.5)
    sizes, lengths = (1, 2, 6), ([3], [4, 1], [2, 2, 1, 2, 2, 2])
    segments, parts = [], []
    for number, (rows, length) in enumerate(zip(sizes, lengths, strict=True)):
        key, value = normal(rows, 4, 2, 6, seed=10 + number), normal(rows, 4, 2, 6, seed=20 + number)
        parts.append((key, value, length))
        segments.append(Segment(jnp.moveaxis(key, 1, 3), jnp.moveaxis(value, 1, 2), jnp.array(length, jnp.int32)))
    together = lambda *context: attention.merge([attention.attend_segment(grouped, each) for each in context])  # noqa: E731
    got = jax.jit(together)(*segments)
    for row in range(6):
        mine = [(key[i][: n[i]], value[i][: n[i]]) for key, value, n in parts for i in [row * len(n) // 6]]
        key, value = (np.concatenate(each) for each in zip(*mine, strict=True))
        close(got[row], softmax_attention(query[row], key, value, True))


@pytest.mark.parametrize('queries', [1, 2, 8, 9])
def test_queries_of_a_segment_few_or_many(queries):
    # Products of a few rows are made in another way on CPUs.
    query, key, value = normal(3, queries, 1, 6), normal(3, 4, 1, 6, seed=1), normal(3, 4, 1, 6, seed=2)
    segment = Segment(jnp.moveaxis(key, 1, 3), jnp.moveaxis(value, 1, 2))
    got = attention.merge([attention.attend_segment(attention.grouped(query, 1, 6**-0.5), segment)])
    for row in range(3):
        close(got[row], softmax_attention(query[row], key[row], value[row], True))


def test_an_empty_segment_adds_nothing():
    query, key, value = normal(2, 2, 2, 1, 6), normal(2, 2, 6, 3, seed=1), normal(2, 2, 3, 6, seed=2)
    full = Segment(key, value, jnp.array([3, 3], jnp.int32))
    empty = Segment(1e3 * key, 1e3 * value, jnp.array([0, 0], jnp.int32))
    seen = jax.jit(lambda *context: attention.merge([attention.attend_segment(query, each) for each in context]))
    close(seen(full, empty), seen(full))


def test_root_mean_square_norm_by_the_formula():
    norm = layers.RMSNorm(6, 1e-3)
    norm.scale[...] = jnp.arange(6.0)
    x = 10 * normal(3, 6)
    close(norm(x), x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * np.arange(6))
    assert norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_gated_feed_forward_by_the_formula():
    layer, x = layers.GatedFeedForward(4, 6, 'silu', jax.random.key(0)), normal(3, 4)
    gate, up, down = (np.asarray(weight[...]) for weight in (layer.gate, layer.up, layer.down))
    gated = np.asarray(x) @ gate
    close(layer(x), (gated / (1 + np.exp(-gated)) * (x @ up)) @ down)


def test_rotation_makes_products_depend_on_distance_alone():
    query, key = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)

    def turn(x, place):
        return layers.rotate(x, layers.rotation(Rope(theta=100.0).frequencies(8), jnp.array([[place]])))

    def product(at, other):
        turned = [turn(x, place) for x, place in ((query, at), (key, other))]
        return float((turned[0] * turned[1]).sum())

    assert product(3, 1) == pytest.approx(product(12, 10), abs=1e-5)
    assert abs(product(3, 1) - product(3, 2)) > 1e-3
    close(turn(query, 0), query)
    # The first number is paired with the fifth; their wavelength is 2 pi.
    angle = turn(jnp.eye(8)[None, None, :1], 1)[0, 0, 0]
    close(angle, np.array([np.cos(1), 0, 0, 0, np.sin(1), 0, 0, 0]))


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    x = jnp.ones(20_000)
    dropped = np.asarray(layers.dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert layers.dropout(x, 0.25, None) is x


def test_initial_weights_have_the_variance_of_their_inputs():
    weights = np.asarray(layers.normal(jax.random.key(0), (100, 400), 100))
    assert np.abs(weights).max() == pytest.approx(0.2, rel=0.01)
    assert weights.std() == pytest.approx(0.88 * 0.1, rel=0.02)  # the tails beyond two standard deviations are cut off


@pytest.mark.parametrize(
    ('sizes', 'dtype'), [((1, 2, 4), 'float32'), ((1, 2, 4), 'bfloat16'), ((8, 1, 1), 'float32')], ids=str
)
def test_an_embedding_whose_rows_are_split_is_looked_up_where_they_lie(sizes, dtype):
    draw = np.random.default_rng(0)
    table, cotangent = (jnp.asarray(draw.normal(size=shape), dtype) for shape in ((64, 16), (6, 5, 16)))
    tokens = jnp.asarray(draw.integers(0, 64, (6, 5)))
    rows = lambda table: layers.lookup(table, tokens)  # noqa: E731
    gradient = jax.grad(lambda table: (rows(table) * cotangent).sum())
    wanted = rows(table), gradient(table)
    assert np.array_equal(wanted[0], table[tokens])
    mesh = MeshShape(*sizes).build()
    split = jax.device_put(table, jax.NamedSharding(mesh, jax.P('tensor', 'fsdp')))
    with partitioning.use(mesh):
        compiled = jax.jit(lambda table: (rows(table), gradient(table))).lower(split).compile()
    got = compiled(split)
    assert np.array_equal(got[0], wanted[0])
    close(got[1], wanted[1], 1e-6 if dtype == 'float32' else 1e-2)
    if sizes[2] > 1:  # the table itself is never gathered over `tensor`
        assert not re.search(r'f(32|16)\[64,\d+\]\S* all-gather', compiled.as_text())
