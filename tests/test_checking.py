"""The tests' own frame: what conftest.py promises every test is so."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from jaxtyping import Array, Float32

from t5x_selfimprove.sampling import transforms
from tests.checking import checked

hooked = jaxtyping.jaxtyped(typechecker=checked)


class Scorer(Protocol):
    """Not marked as checkable at run time; the check sees to that."""

    def score(self) -> float: ...


class Right:
    def score(self) -> float:
        return 1


class Wrong:
    pass


@hooked
def shifted(x: Float32[Array, 'Q N'], by: float, scorer: Scorer | None = None) -> Float32[Array, 'Q N']:
    return x + by


@hooked
def transposed(x: Float32[Array, 'Q N']) -> Float32[Array, 'Q N']:
    return x.T


@hooked
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tree:
    leaf: Float32[Array, 'Q']


@hooked
@dataclasses.dataclass(frozen=True)
class Part:
    count: int


def test_right_calls_pass():
    assert shifted(jnp.zeros((2, 3)), 1, Right()).shape == (2, 3)
    assert jax.jit(shifted, static_argnums=1)(jnp.zeros((2, 3)), 0.5).shape == (2, 3)


@pytest.mark.parametrize(
    'call',
    [
        lambda: shifted(jnp.zeros(3), 1.0),
        lambda: shifted(jnp.zeros((2, 3), jnp.int32), 1.0),
        lambda: shifted(jnp.zeros((2, 3)), 'one'),
        lambda: shifted(jnp.zeros((2, 3)), 1.0, Wrong()),
        lambda: transposed(jnp.zeros((2, 3))),
        lambda: jax.jit(transposed)(jnp.zeros((2, 3))),
        lambda: Part(1.5),
        lambda: transforms.draw(jnp.zeros((2, 5)), jnp.zeros(3)),
    ],
)
def test_wrong_calls_are_refused(call: Any):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_trees_are_rebuilt_around_anything():
    tree = Tree(jnp.zeros(2))
    assert jax.tree.map(lambda leaf: leaf.shape, tree) == Tree((2,))
    assert jax.tree.map(lambda leaf: None, tree).leaf is None


def test_eight_processors_stand_in_for_a_mesh():
    assert jax.default_backend() == 'cpu'
    assert jax.device_count() == 8


def test_untyped_random_keys_are_refused():
    with pytest.raises(ValueError, match='Legacy uint32'):
        jax.random.uniform(jnp.zeros(2, jnp.uint32))
