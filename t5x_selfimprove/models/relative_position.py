"""Relative position bias: a number for each head and each bucket of distances, added to the attention scores.

Raffel et al. 2020 (arXiv:1910.10683), section 2.1. Near distances have a bucket each, further ones share
logarithmically wider buckets, and all beyond the furthest share the last.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int


def buckets(distance: np.ndarray, count: int, furthest: int, bidirectional: bool) -> np.ndarray:
    """The bucket of each distance, as in Mesh TensorFlow's and transformers' T5.

    Args:
      distance: place of the key less place of the query.
      count: number of buckets.
      furthest: distance from which on all share the last bucket.
      bidirectional: half of the buckets are for keys that come after; else those count as distance 0.
    """
    after = 0
    if bidirectional:
        count //= 2
        after = np.where(distance > 0, count, 0)
        apart = np.abs(distance)
    else:
        apart = np.maximum(-distance, 0)
    exact = count // 2
    # In float32: where a distance lies on the edge of a bucket, rounding decides.
    ratio = np.log(np.maximum(apart, 1).astype(np.float32) / np.float32(exact)) / np.float32(np.log(furthest / exact))
    far = exact + (ratio * np.float32(count - exact)).astype(np.int32)
    return (after + np.where(apart < exact, apart, np.minimum(far, count - 1))).astype(np.int32)


def bias(
    table: Float[Array, 'buckets H'], queries: int, keys: int, furthest: int, bidirectional: bool
) -> Float32[Array, '1 H 1 {queries} {keys}']:
    """The bias between all places of a row.

    Args:
      table: the numbers.
      queries: places of queries, from 0.
      keys: places of keys, from 0.
      furthest: as in `buckets`.
      bidirectional: as in `buckets`.
    """
    near = np.arange(1 - queries, keys)
    place = jnp.arange(keys) - jnp.arange(queries)[:, None]
    return _of(table, near, place, furthest, bidirectional)[None, :, None]


def step_bias(
    table: Float[Array, 'buckets H'], read: Int[Array, 'S'], ages: Int[Array, 'U'], furthest: int
) -> tuple[Float32[Array, 'S H 1 1 1'], Float32[Array, '1 H 1 1 U']]:
    """The bias from the next token of each sample to the start token before all of them, and to the samples' tokens.

    Args:
      table: the numbers.
      read: tokens that each sample has read before this one, the start token not counted; -1 is of a sample that has
        read nothing.
      ages: steps since each of the U columns of the samples' ring was written.
      furthest: as in `buckets`.
    """
    near = np.arange(-ages.shape[0], 1)
    start = _of(table, near, jnp.maximum(-1 - read, near[0]), furthest, False)
    own = _of(table, near, -ages, furthest, False)
    return start.T[:, :, None, None, None], own[None, :, None, None]


def _of(table: jax.Array, near: np.ndarray, place: jax.Array, furthest: int, bidirectional: bool) -> jax.Array:
    """[H, *place]: the numbers of distances `place`, all of them in the stretch `near`."""
    by_distance = table.astype(jnp.float32)[buckets(near, table.shape[0], furthest, bidirectional)]
    return by_distance.T[:, place - int(near[0])]
