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
from t5x_selfimprove.partitioning import constrain
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
        self.query = layers.parameter(
            layers.normal(query, (width, heads, head_size), width), 'model', 'heads', 'head'
        )
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
        """Queries [B, T, H, h], keys and values [B, T, K, h], positions applied, in the dtype of `x`."""
        dtype = x.dtype
        query = layers.product('btd,dnh->btnh', x, self.query[...], dtype).astype(dtype)
        key = layers.product('btd,dnh->btnh', x, self.key[...], dtype).astype(dtype)
        value = layers.product('btd,dnh->btnh', x, self.value[...], dtype).astype(dtype)
        return layers.rotate(query, position, self.theta), layers.rotate(key, position, self.theta), value

    def merge_heads(self, mixed: Float[Array, 'B T H h'], dtype: jnp.dtype) -> Float[Array, 'B T D']:
        """The output projection."""
        return layers.product('btnh,nhd->btd', mixed, self.out[...], dtype).astype(dtype)


def attend(
    query: Float[Array, 'B T H h'],
    key: Float[Array, 'B U K h'],
    value: Float[Array, 'B U K h'],
    allowed: Bool[Array, 'B T U'],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention of every query to the keys it is allowed to see, left unnormalised for `merge`.

    Returns:
      (weighted values [B, T, H, h], largest score [B, T, H], sum of exponentials [B, T, H]), all float32.
    """
    batch, time, heads, size = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, time, kv_heads, heads // kv_heads, size)
    scores = layers.product('btkgh,bukh->bkgtu', grouped * size**-0.5, key, query.dtype)
    scores = jnp.where(allowed[:, None, None], scores, MASKED)
    peak = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - peak[..., None])
    total = jnp.sum(weights, axis=-1)
    mixed = layers.product('bkgtu,bukh->btkgh', weights, value, query.dtype)
    by_head = lambda x: jnp.moveaxis(x, 3, 1).reshape(batch, time, heads)  # noqa: E731
    return mixed.reshape(batch, time, heads, size), by_head(peak), by_head(total)


def attend_segment(query: Float[Array, 'S T H h'], segment: Segment) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention of S rows of queries to a segment that S / B of them share, all of it visible up to its length.

    The queries that share a context become the rows of one matrix product. Returns as `attend`.
    """
    rows, time, heads, size = query.shape
    batch, kv_heads = segment.value.shape[0], segment.value.shape[1]
    shared, groups = rows // batch, heads // kv_heads
    grouped = (query * size**-0.5).reshape(batch, shared * time, kv_heads, groups, size)
    grouped = jnp.moveaxis(grouped, 2, 1).reshape(batch, kv_heads, shared * time * groups, size)
    scores = layers.product('bkqh,bkht->bkqt', grouped, segment.key, query.dtype)
    visible = jnp.arange(segment.key.shape[-1]) < segment.length[..., None]  # [B, T] or [T]
    visible = jnp.broadcast_to(visible, (batch, segment.key.shape[-1]))
    scores = jnp.where(visible[:, None, None], scores, MASKED)
    peak = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - peak[..., None])
    total = jnp.sum(weights, axis=-1)
    mixed = layers.product('bkqt,bkth->bkqh', weights, segment.value, query.dtype)

    def by_row(x: jax.Array) -> jax.Array:
        rest = x.shape[3:]
        x = x.reshape(batch, kv_heads, shared * time, groups, *rest)
        return jnp.moveaxis(x, 1, 2).reshape(rows, time, heads, *rest)

    return by_row(mixed), by_row(peak), by_row(total)


def merge(parts: list[tuple[jax.Array, jax.Array, jax.Array]]) -> Float32[Array, 'B T H h']:
    """Joins attention over parts of the context into attention over all of it (log-sum-exp merge)."""
    peak = jnp.stack([part[1] for part in parts]).max(axis=0)
    scales = [jnp.exp(part[1] - peak) for part in parts]
    total = sum(part[2] * scale for part, scale in zip(parts, scales, strict=True))
    mixed = sum(part[0] * scale[..., None] for part, scale in zip(parts, scales, strict=True))
    return constrain(mixed / total[..., None], 'batch')
