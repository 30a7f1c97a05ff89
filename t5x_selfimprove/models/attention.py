"""Grouped-query attention, over whole rows (learning) and over a cache made of segments (sampling).

In sampling the context of a token is a list of segments: the prefix that all prompts share, the question that N
samples share, and the sample's own tokens. Queries that share a segment attend to it in one dense product; the
parts are merged by their log-sum-exp, so shared keys and values are never repeated in memory.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from t5x_selfimprove.models import layers
from t5x_selfimprove.records import record

MASKED = -1e30  # finite, so that a row in which everything is masked gives zeros instead of NaN


@record
class Segment:
    """Keys and values of one stretch of context, of all layers.

    Keys are stored with time last: the product with the queries then reads them in order (on a CPU this is 14 times
    faster than time first). The leading L is absent inside a layer.
    """

    key: Float[Array, '*L B K h T']
    value: Float[Array, '*L B K T h']
    length: Int32[Array, '*B']  # entries that are valid; the rest is masked

    @property
    def rows(self) -> int:
        """B, the number of contexts; queries are spread evenly over them."""
        return self.value.shape[-4]


class Attention(nnx.Module):
    """Multi-head attention with K <= H key/value heads (Ainslie et al. 2023, arXiv:2305.13245) and rotary positions."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_size: int, theta: float, key: jax.Array):
        query, keys, value, out = jax.random.split(key, 4)
        self.query = layers.parameter(layers.normal(query, (width, heads, head_size), width), 'model', 'heads', 'head')
        self.key = layers.parameter(
            layers.normal(keys, (width, kv_heads, head_size), width), 'model', 'kv_heads', 'head'
        )
        self.value = layers.parameter(
            layers.normal(value, (width, kv_heads, head_size), width), 'model', 'kv_heads', 'head'
        )
        self.out = layers.parameter(
            layers.normal(out, (heads, head_size, width), heads * head_size), 'heads', 'head', 'model'
        )
        self.theta = theta

    def project(self, x: Float[Array, 'B T D'], position: Int[Array, 'B T']) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Grouped queries [B, K, G, T, h], keys and values [B, T, K, h], positions applied, in the dtype of `x`."""
        dtype = x.dtype
        query = layers.product('btd,dnh->btnh', x, self.query[...], dtype).astype(dtype)
        key = layers.product('btd,dnh->btnh', x, self.key[...], dtype).astype(dtype)
        value = layers.product('btd,dnh->btnh', x, self.value[...], dtype).astype(dtype)
        query = grouped(layers.rotate(query, position, self.theta), key.shape[2])
        return query, layers.rotate(key, position, self.theta), value

    def merge_heads(self, mixed: Float[Array, 'B T H h'], dtype: jnp.dtype) -> Float[Array, 'B T D']:
        """The output projection."""
        return layers.product('btnh,nhd->btd', mixed, self.out[...], dtype).astype(dtype)


Part = tuple[Float32[Array, 'B K G T h'], Float32[Array, 'B K G T'], Float32[Array, 'B K G T']]


def grouped(query: Float[Array, 'B T H h'], kv_heads: int) -> Float[Array, 'B K G T h']:
    """Scaled queries, heads first, the G = H / K heads that share a key/value head together."""
    rows, time, heads, size = query.shape
    scaled = (query * size**-0.5).reshape(rows, time, kv_heads, heads // kv_heads, size)
    return jnp.moveaxis(scaled, 1, 3)


def _weigh(
    scores: Float32[Array, '*rows U'], visible: Bool[Array, '*#rows U']
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Masked exponentials of the scores, their largest score and their sum."""
    scores = jnp.where(visible, scores, MASKED)
    peak = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - peak[..., None])
    return weights, peak, jnp.sum(weights, axis=-1)


def attend(
    query: Float[Array, 'B K G T h'],
    key: Float[Array, 'B U K h'],
    value: Float[Array, 'B U K h'],
    allowed: Bool[Array, 'B T U'],
) -> Part:
    """Attention of every query to the keys it is allowed to see, left unnormalised for `merge`.

    Returns:
      (weighted values, largest score, sum of exponentials), all float32.
    """
    key, value = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)
    scores = layers.product('bkgth,bkuh->bkgtu', query, key, query.dtype)
    weights, peak, total = _weigh(scores, allowed[:, None, None])
    return layers.product('bkgtu,bkuh->bkgth', weights, value, query.dtype), peak, total


def attend_segment(query: Float[Array, 'S K G T h'], segment: Segment) -> Part:
    """Attention of S rows of queries to a segment that S / B of them share, all of it visible up to its length.

    The queries that share a context become the rows of one matrix product. Returns as `attend`.
    """
    rows, kv_heads, groups, time, size = query.shape
    batch = segment.rows
    together = jnp.moveaxis(query.reshape(batch, rows // batch, kv_heads, groups * time, size), 1, 2)
    together = together.reshape(batch, kv_heads, -1, size)
    scores = layers.product('bkqh,bkht->bkqt', together, segment.key, query.dtype)
    visible = jnp.arange(segment.key.shape[-1]) < segment.length[..., None]  # [B, T] or [T]
    visible = jnp.broadcast_to(visible, (batch, segment.key.shape[-1]))
    weights, peak, total = _weigh(scores, visible[:, None, None])
    mixed = layers.product('bkqt,bkth->bkqh', weights, segment.value, query.dtype)

    def by_row(x: jax.Array) -> jax.Array:
        rest = x.shape[3:]
        x = jnp.moveaxis(x.reshape(batch, kv_heads, rows // batch, groups, time, *rest), 2, 1)
        return x.reshape(rows, kv_heads, groups, time, *rest)

    return by_row(mixed), by_row(peak), by_row(total)


def merge(parts: list[Part]) -> Float32[Array, 'B T H h']:
    """Joins attention over parts of the context into attention over all of it (log-sum-exp merge)."""
    peak = parts[0][1]
    for part in parts[1:]:
        peak = jnp.maximum(peak, part[1])
    scales = [jnp.exp(part[1] - peak) for part in parts]
    total = sum(part[2] * scale for part, scale in zip(parts, scales, strict=True))
    mixed = sum(part[0] * scale[..., None] for part, scale in zip(parts, scales, strict=True))
    rows, kv_heads, groups, time, size = mixed.shape
    return jnp.moveaxis(mixed / total[..., None], 3, 1).reshape(rows, time, kv_heads * groups, size)
