"""The kernel of packed products: right, and the same to the bit in any batch and on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import native, packed

SHAPES = {
    'one': (1, 1, 1),
    'edges': (7, 33, 50),
    'one row': (1, 64, 128),
    'blocks': (401, 70, 96),
    'pieces': (64, 512, 999),
}


@pytest.fixture(autouse=True)
def needs_a_compiler():
    if native.library().trouble == 'there is no C++ compiler':
        pytest.skip(native.library().trouble)


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def multiplied(x: jax.Array, matrix: jax.Array) -> jax.Array:
    return jax.jit(lambda x, matrix: packed.product(x, packed.pack(matrix), matrix.shape[1]))(x, matrix)


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
    other = jnp.zeros((1, 8, native.library().width + 1))
    with pytest.raises(Exception, match='do not belong together'):
        jax.block_until_ready(packed.product(draw(2, 8), other, 3))


@pytest.mark.parametrize('shape', [{'data': 2, 'fsdp': 2, 'expert': 2}, {'data': 4, 'sequence': 2}], ids=str)
@pytest.mark.parametrize('rows', [1, 12, 16])
def test_the_product_on_a_mesh_is_that_of_one_device_to_the_bit(shape, rows):
    x, matrix = draw(rows, 30), draw(30, 50, seed=1)
    alone = multiplied(x, matrix)
    with partitioning.use(partitioning.MeshShape(**shape).build()):
        np.testing.assert_array_equal(multiplied(x, matrix), alone)
