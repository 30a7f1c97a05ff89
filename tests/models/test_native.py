"""The kernels' compilation: what is said where there are none; and attention to a segment by its kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import attention, decoding, native, packed
from t5x_selfimprove.models.cache import Segment
from t5x_selfimprove.models.transformer import Transformer
from tests.models.tiny import model


@pytest.fixture(autouse=True)
def needs_a_compiler():
    if native.library().trouble == 'there is no C++ compiler':
        pytest.skip(native.library().trouble)


def test_the_kernels_compile_here():
    assert native.library() == native.Library(native.library().width) and native.library().width > 0


def forms(tiny: Transformer) -> set[str]:
    """What the matrices of a model are in sampling."""
    prepared = jax.eval_shape(lambda tiny: decoding.for_sampling(tiny), tiny)  # not traced before, whatever was
    block = prepared.blocks[0]
    weights = (block.attention.query, block.attention.out, block.feed_forward.down, prepared.output_matrix)
    return {type(weight).__name__ for weight in weights}


def test_which_models_have_them(monkeypatch):
    assert forms(model()) == {'Packed'} and native.describe('float32').startswith('our own')
    assert forms(model(dtype='bfloat16')) == {'Param'} and 'bfloat16' in native.describe('bfloat16')
    with partitioning.use(partitioning.MeshShape(fsdp=2).build()):
        assert forms(model()) == {'Packed'}
    with partitioning.use(partitioning.MeshShape(tensor=2).build()):
        assert native.describe('float32') == "XLA's: the mesh splits weights over tensor"
    monkeypatch.setattr(native, 'library', lambda: native.Library(trouble='there is no C++ compiler'))
    assert forms(model()) == {'Param'} and native.describe('float32') == "XLA's: there is no C++ compiler"


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    broken = tmp_path / 'broken'
    broken.write_text('#!/bin/sh\necho "error: no such header" >&2; exit 3\n')
    broken.chmod(0o755)
    monkeypatch.setenv('CXX', str(broken))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    assert native.library.__wrapped__().trouble == f'{broken} does not compile them: error: no such header'
    monkeypatch.setenv('CXX', str(tmp_path / 'missing'))
    assert 'missing' in native.library.__wrapped__().trouble
    assert not any((tmp_path / 'cache' / 't5x_selfimprove').iterdir())


def test_without_a_compiler(monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(native.shutil, 'which', lambda _: None)
    assert native.library.__wrapped__() == native.Library(trouble='there is no C++ compiler')


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


# Samples, key/value heads, queries of each, times, size of a head, contexts, columns.
SHAPES = {
    'prefix': (64, 4, 2, 1, 64, 1, 300),
    'questions': (20, 2, 2, 1, 64, 4, 64),
    'own': (13, 2, 2, 1, 32, 13, 128),
    'one query a head': (5, 3, 1, 1, 16, 5, 9),
    'times': (6, 2, 1, 3, 5, 3, 21),
    'one column': (2, 1, 1, 1, 1, 1, 1),
}


def case(shape: tuple[int, ...]) -> tuple[jax.Array, Segment, jax.Array]:
    """Queries, a segment of which some columns are valid, and what each query may see, one valid column at least."""
    samples, heads, groups, times, size, batch, columns = shape
    query = draw(samples, heads, groups, times, size) * size**-0.5
    length = jnp.arange(batch) % columns + 1
    segment = Segment(draw(batch, heads, size, columns, seed=1), draw(batch, heads, columns, size, seed=2), length)
    allowed = jax.random.bernoulli(jax.random.key(3), 0.3, (samples, times, columns))
    return query, segment, allowed.at[..., 0].set(True)


def attend(query: jax.Array, segment: Segment, allowed: jax.Array) -> attention.Part:
    in_panels = Segment(packed.pack(segment.key), segment.value, segment.length)
    return jax.jit(lambda *of: attention.attend_segment(*of[:2], allowed=of[2]))(query, in_panels, allowed)


def plain(query: jax.Array, segment: Segment, allowed: jax.Array) -> np.ndarray:
    """Softmax attention in float64."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, segment.key, segment.value))
    share = query.shape[0] // key.shape[0]
    key, value = np.repeat(key, share, 0)[:, :, None], np.repeat(value, share, 0)[:, :, None]
    valid = np.arange(key.shape[-1]) < np.repeat(segment.length, share)[:, None, None]
    scores = np.where((valid & np.asarray(allowed))[:, None, None], query @ key, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_attention_to_a_segment(shape):
    query, segment, allowed = case(shape)
    mixed, peak, total = attend(query, segment, allowed)
    np.testing.assert_allclose(mixed / total[..., None], plain(query, segment, allowed), rtol=1e-5, atol=1e-6)
    with_one_more = attention.joined([(mixed, peak, total), (jnp.ones_like(mixed), peak + 1, total)])
    assert bool(jnp.isfinite(with_one_more[0]).all())


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_attention_is_xlas(shape):
    query, segment, allowed = case(shape)
    by_xla = jax.jit(lambda *of: attention.attend_segment(*of[:2], allowed=of[2]))(query, segment, allowed)
    for mine, other in zip(attend(query, segment, allowed), by_xla, strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-5, atol=2e-6)


def test_a_query_gets_the_same_to_the_bit_whatever_is_beside_it():
    query, segment, allowed = case((61, 2, 2, 1, 24, 1, 150))
    whole = attend(query, segment, allowed)
    for start, count in ((0, 1), (3, 2), (20, 17), (1, 60)):
        some = slice(start, start + count)
        part = attend(query[some], segment, allowed[some])
        for one, other in zip(part, whole, strict=True):
            np.testing.assert_array_equal(one, other[some])


def test_columns_that_nobody_sees_are_not_read():
    query, segment, _ = case((4, 2, 2, 1, 16, 4, 192))
    seen = (jnp.arange(192) >= 64) & (jnp.arange(192) < 128)  # whole groups of columns, whatever the kind of CPU
    bad = lambda array: jnp.where(seen if array.shape[-1] == 192 else seen[:, None], array, jnp.nan)  # noqa: E731
    hidden = Segment(bad(segment.key), bad(segment.value))
    allowed = jnp.broadcast_to(seen, (4, 1, 192))
    for array in attend(query, hidden, allowed):
        assert bool(jnp.isfinite(array).all())


def test_a_query_that_sees_nothing_adds_nothing():
    query, segment, _ = case((4, 2, 2, 1, 16, 4, 40))
    mixed, peak, total = attend(query, segment, jnp.zeros((4, 1, 40), bool))
    assert (peak == attention.MASKED).all() and not mixed.any() and not total.any()


def test_what_is_no_number_stays_none():
    query, segment, allowed = case((7, 2, 2, 1, 16, 1, 40))
    mixed, _, total = attend(query.at[2].set(jnp.nan), segment, allowed)
    bad = jnp.isnan(mixed).any((1, 2, 3, 4)) & jnp.isnan(total).any((1, 2, 3))
    assert bad.tolist() == [False, False, True, False, False, False, False]


@pytest.mark.parametrize('shape', [{'data': 2, 'fsdp': 2, 'expert': 2}, {'data': 4, 'sequence': 2}], ids=str)
@pytest.mark.parametrize(('samples', 'batch'), [(16, 1), (16, 8), (6, 3)])
def test_attention_on_a_mesh_is_that_of_one_device_to_the_bit(shape, samples, batch):
    query, segment, allowed = case((samples, 2, 2, 1, 8, batch, 30))
    alone = attend(query, segment, allowed)
    with partitioning.use(partitioning.MeshShape(**shape).build()):
        together = attend(query, segment, allowed)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_shapes_that_do_not_belong_together_are_refused():
    found = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 2, 3, 8), (4, 2, 3), (4, 2, 3))]
    panel = (8, native.library().width)
    shapes = [(4, 2, 3, 8), (2, 2, 1, *panel), (2, 2, 5, 8), (4, 1, 5)]
    fitting = [jnp.zeros(shape, dtype) for shape, dtype in zip(shapes, ['float32'] * 3 + ['bool'], strict=True)]
    native.call('attend_segment', found, *fitting)
    for number, other in (
        (1, (3, 2, 1, *panel)),
        (1, (2, 2, 2, *panel)),
        (2, (2, 2, 4, 8)),
        (3, (4, 1, 6)),
        (3, (4, 2, 5)),
    ):
        arrays = list(fitting)
        arrays[number] = jnp.zeros(other, arrays[number].dtype)
        with pytest.raises(Exception, match='do not belong together'):
            jax.block_until_ready(native.call('attend_segment', found, *arrays))
