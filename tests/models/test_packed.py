"""The kernel of packed products: right, the same to the bit in any batch, and what is said where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import decoding, packed
from t5x_selfimprove.models.transformer import Transformer
from tests.models.tiny import model

SHAPES = {
    'one': (1, 1, 1),
    'edges': (7, 33, 50),
    'one row': (1, 64, 128),
    'blocks': (401, 70, 96),
    'pieces': (64, 512, 999),
}


@pytest.fixture(autouse=True)
def needs_a_compiler():
    if packed.kernel().trouble == 'there is no C++ compiler':
        pytest.skip(packed.kernel().trouble)


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def multiplied(x: jax.Array, matrix: jax.Array) -> jax.Array:
    return jax.jit(lambda x, matrix: packed.product(x, packed.pack(matrix), matrix.shape[1]))(x, matrix)


def test_the_kernel_compiles_here():
    assert packed.kernel() == packed.Kernel(packed.kernel().width) and packed.kernel().width > 0


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_the_product(shape):
    rows, inputs, outputs = shape
    x, matrix = draw(rows, inputs), draw(inputs, outputs, seed=1)
    expected = np.asarray(x, np.float64) @ np.asarray(matrix, np.float64)
    np.testing.assert_allclose(multiplied(x, matrix), expected, rtol=1e-5, atol=4e-6 * inputs**0.5)


def test_a_row_is_the_same_to_the_bit_in_any_batch():
    x, matrix = draw(61, 512), draw(512, 77, seed=1)
    whole = np.asarray(multiplied(x, matrix))
    for start, count in ((0, 1), (3, 2), (7, 5), (20, 17), (1, 60)):
        np.testing.assert_array_equal(multiplied(x[start : start + count], matrix), whole[start : start + count])


def test_no_rows():
    assert multiplied(draw(0, 8), draw(8, 5)).shape == (0, 5)


def test_shapes_that_do_not_belong_together_are_refused():
    other = jnp.zeros((1, 8, packed.kernel().width + 1))
    with pytest.raises(Exception, match='do not belong together'):
        jax.block_until_ready(packed.product(draw(2, 8), other, 3))


def forms(tiny: Transformer) -> set[str]:
    """What the matrices of a model are in sampling."""
    prepared = jax.eval_shape(lambda tiny: decoding.for_sampling(tiny), tiny)  # not traced before, whatever was
    block = prepared.blocks[0]
    weights = (block.attention.query, block.attention.out, block.feed_forward.down, prepared.output_matrix)
    return {type(weight).__name__ for weight in weights}


def test_which_models_are_packed(monkeypatch):
    assert forms(model()) == {'Packed'} and 'packed once a round' in packed.describe('float32')
    assert forms(model(dtype='bfloat16')) == {'Param'} and 'bfloat16' in packed.describe('bfloat16')
    with partitioning.use(partitioning.MeshShape(tensor=2).build()):
        assert packed.describe('float32') == "XLA's: the mesh has 8 devices"
    monkeypatch.setattr(packed, 'kernel', lambda: packed.Kernel(trouble='there is no C++ compiler'))
    assert forms(model()) == {'Param'} and packed.describe('float32') == "XLA's: there is no C++ compiler"


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    broken = tmp_path / 'broken'
    broken.write_text('#!/bin/sh\necho "error: no such header" >&2; exit 3\n')
    broken.chmod(0o755)
    monkeypatch.setenv('CXX', str(broken))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    assert packed.kernel.__wrapped__().trouble == f'{broken} does not compile it: error: no such header'
    monkeypatch.setenv('CXX', str(tmp_path / 'missing'))
    assert 'missing' in packed.kernel.__wrapped__().trouble
    assert not any((tmp_path / 'cache' / 't5x_selfimprove').iterdir())


def test_without_a_compiler(monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(packed.shutil, 'which', lambda _: None)
    assert packed.kernel.__wrapped__() == packed.Kernel(trouble='there is no C++ compiler')
