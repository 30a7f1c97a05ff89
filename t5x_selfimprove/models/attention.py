"""Grouped-query attention, over whole rows (learning) and over a cache made of segments (sampling).

In sampling the context of a token is a list of segments: the prefix that all prompts share, the question that N
samples share, and the sample's own tokens. Queries that share a segment attend to it in one dense product; the
parts are merged by their log-sum-exp, so shared keys and values are never repeated in memory (`cache`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import cache, layers, native
from t5x_selfimprove.models.cache import Own, Seats, Segment
from t5x_selfimprove.models.config import TransformerConfig

QUERIES = 512  # of a prompt, whose scores are in memory at the same time
FEW = 8  # most rows of a product that `_product` makes in halves
MASKED = -1e30  # finite, so that a row in which everything is masked gives zeros instead of NaN


class Attention(nnx.Module):
    """Multi-head attention with K <= H key/value heads (Ainslie et al. 2023, arXiv:2305.13245) and rotary positions."""

    def __init__(self, config: TransformerConfig, key: jax.Array):
        query, keys, value, out = jax.random.split(key, 4)
        width, heads, kv_heads, size = config.width, config.heads, config.kv_heads, config.head_size
        self.query = layers.parameter(layers.normal(query, (width, heads, size), width), 'model', 'heads', 'head')
        self.key = layers.parameter(layers.normal(keys, (width, kv_heads, size), width), 'model', 'kv_heads', 'head')
        self.value = layers.parameter(layers.normal(value, (width, kv_heads, size), width), 'model', 'kv_heads', 'head')
        self.out = layers.parameter(layers.normal(out, (heads, size, width), heads * size), 'heads', 'head', 'model')
        bias = lambda count, name: layers.parameter(jnp.zeros((count, size)), name, 'head')  # noqa: E731
        self.query_bias = bias(heads, 'heads') if config.qkv_bias else None
        self.key_bias = bias(kv_heads, 'kv_heads') if config.qkv_bias else None
        self.value_bias = bias(kv_heads, 'kv_heads') if config.qkv_bias else None
        norm = lambda: layers.RMSNorm(size, config.norm_epsilon, config.norm_offset)  # noqa: E731
        self.query_norm = norm() if config.qk_norm else None
        self.key_norm = norm() if config.qk_norm else None
        self.scale = size**-0.5 if config.query_scale is None else config.query_scale

    def project(
        self, x: Float[Array, 'B T D'], turn: layers.Rotation | None
    ) -> tuple[Float[Array, 'B K G T h'], Float[Array, 'B T K h'], Float[Array, 'B T K h']]:
        """Grouped and scaled queries, keys and values, positions applied, in the dtype of `x`."""
        query = _project(x, self.query, self.query_bias)
        key = _project(x, self.key, self.key_bias)
        value = _project(x, self.value, self.value_bias)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query = grouped(layers.rotate(query, turn), key.shape[2], self.scale)
        return query, layers.rotate(key, turn), value

    def merge_heads(self, mixed: Float[Array, 'B T H h'], dtype: jnp.dtype) -> Float[Array, 'B T D']:
        """The output projection."""
        return layers.linear('btnh,nhd->btd', mixed, self.out, dtype).astype(dtype)


def _project(x: jax.Array, weight: Any, bias: nnx.Variable | None) -> jax.Array:
    projected = layers.linear('btd,dnh->btnh', x, weight, x.dtype)
    return (projected if bias is None else projected + bias[...]).astype(x.dtype)


Part = tuple[Float32[Array, 'B K G T h'], Float32[Array, 'B K G T'], Float32[Array, 'B K G T']]


def grouped(query: Float[Array, 'B T H h'], kv_heads: int, scale: float) -> Float[Array, 'B K G T h']:
    """Queries times `scale`, heads first, the G = H / K heads that share a key/value head together."""
    rows, time, heads, size = query.shape
    scaled = (query * scale).astype(query.dtype).reshape(rows, time, kv_heads, heads // kv_heads, size)
    return jnp.moveaxis(scaled, 1, 3)


def _weigh(
    scores: Float32[Array, '*rows U'], visible: Bool[Array, '*#rows U'] | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Masked exponentials of the scores, their largest score and their sum."""
    scores = scores if visible is None else jnp.where(visible, scores, MASKED)
    peak = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - peak[..., None])
    return weights, peak, jnp.sum(weights, axis=-1)


def attend(
    query: Float[Array, 'B K G T h'],
    key: Float[Array, 'B U K h'],
    value: Float[Array, 'B U K h'],
    allowed: Bool[Array, 'B T U'],
    softcap: float = 0.0,
    bias: Float32[Array, '#B K G T U'] | None = None,
) -> Part:
    """Attention of every query to the keys it is allowed to see, left unnormalised for `merge`.

    Args:
      query: grouped queries.
      key: keys.
      value: values.
      allowed: what each query may see.
      softcap: cap of the scores, 0 for none.
      bias: added to the scores.

    Returns:
      (weighted values, largest score, sum of exponentials), all float32.
    """
    key, value = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)
    scores = layers.softcap(layers.product('bkgth,bkuh->bkgtu', query, key, query.dtype), softcap)
    scores = scores if bias is None else scores + bias
    weights, peak, total = _weigh(scores, allowed[:, None, None])
    return layers.product('bkgtu,bkuh->bkgth', weights, value, query.dtype), peak, total


def attend_prompt(
    query: Float[Array, 'B K G T h'],
    key: Float[Array, 'B T K h'],
    value: Float[Array, 'B T K h'],
    allowed: Bool[Array, 'B T T'],
    softcap: float = 0.0,
) -> Part:
    """As `attend`, but of long rows one part of the queries after the other: memory grows with their length,
    not with its square."""
    time = query.shape[3]
    if time < 2 * QUERIES:
        return attend(query, key, value, allowed, softcap)
    parts = -(-time // QUERIES)
    each = -(-time // parts)

    def split(array: jax.Array, axis: int) -> jax.Array:
        """[parts, ...]: the axis of queries in equal parts, filled up."""
        fill = [(0, parts * each - time if number == axis else 0) for number in range(array.ndim)]
        cut = jnp.pad(array, fill).reshape(*array.shape[:axis], parts, each, *array.shape[axis + 1 :])
        return jnp.moveaxis(cut, axis, 0)

    of_part = lambda part: attend(part[0], key, value, part[1], softcap)  # noqa: E731
    found = jax.lax.map(of_part, (split(query, 3), split(allowed, 1)))
    joint = [jnp.moveaxis(array, 0, 3).reshape(*query.shape[:3], -1, *array.shape[5:]) for array in found]
    mixed, peak, total = (array[:, :, :, :time] for array in joint)
    return mixed, peak, total


def _product(left: Float[Array, 'B K q n'], right: Float[Array, 'B K n m'], dtype: Any) -> Float32[Array, 'B K q m']:
    """`layers.product` of matrices.

    On a CPU that of a few rows is made in two halves: a product that is summed becomes one kernel by YNNPACK (jaxlib
    0.10.2 with `main.CPU_FLAG`), which reads `right` at the speed of the memory, three times as fast as the product
    alone. Of one row, or of many, it is slower.
    """
    rows, inner = left.shape[-2:]
    if partitioning.platform() != 'cpu' or not 1 < rows <= FEW or inner % 2:
        return layers.product('bkqn,bknm->bkqm', left, right, dtype)
    left = left.reshape(*left.shape[:-1], 2, inner // 2)
    right = right.reshape(*right.shape[:-2], 2, inner // 2, right.shape[-1])
    return layers.product('bkqin,bkinm->bkiqm', left, right, dtype).sum(axis=2)


def attend_segment(
    query: Float[Array, 'S K G T h'],
    segment: Segment,
    softcap: float = 0.0,
    allowed: Bool[Array, 'S T U'] | None = None,
    bias: Float32[Array, '#S K G T U'] | None = None,
) -> Part:
    """Attention of S rows of queries to a segment that S / B of them share, visible up to its length.

    The queries that share a context become the rows of one matrix product. Returns as `attend`.

    Args:
      query: grouped queries; those that share a context are neighbours.
      segment: the keys and values, of one layer.
      softcap: cap of the scores, 0 for none.
      allowed: what each query may see of what is valid; None: all of it.
      bias: added to the scores.
    """
    rows, kv_heads, groups, time, size = query.shape
    batch, room = segment.rows, segment.room
    share = rows // batch
    if len(segment.key.shape) == 5:  # keys in panels: nothing else is asked of them
        return _by_kernel(query, segment, allowed)
    together = jnp.moveaxis(query.reshape(batch, share, kv_heads, groups * time, size), 1, 2)
    together = together.reshape(batch, kv_heads, -1, size)
    key, value = (cache.numbers(each, query.dtype) for each in (segment.key, segment.value))
    scores = _product(together, key, query.dtype)
    scores = layers.softcap(cache.scaled(scores, segment.key), softcap)
    visible = None
    if segment.length is not None:
        visible = jnp.arange(room) < segment.length[..., None]  # [B, U] or [U]
        visible = jnp.broadcast_to(visible, (batch, room))[:, None, None]
    if allowed is not None:
        mine = jnp.broadcast_to(allowed.reshape(batch, share, 1, time, room), (batch, share, groups, time, room))
        mine = mine.reshape(batch, 1, -1, room)
        visible = mine if visible is None else visible & mine
    if bias is not None:
        bias = jnp.broadcast_to(bias, (rows, kv_heads, groups, time, room))
        own = jnp.moveaxis(bias.reshape(batch, share, kv_heads, groups * time, room), 1, 2)
        scores = scores + own.reshape(batch, kv_heads, -1, room)
    weights, peak, total = _weigh(scores, visible)
    mixed = _product(cache.scaled(weights, segment.value), value, query.dtype)

    def by_row(x: jax.Array) -> jax.Array:
        rest = x.shape[3:]
        x = jnp.moveaxis(x.reshape(batch, kv_heads, share, groups, time, *rest), 2, 1)
        return x.reshape(rows, kv_heads, groups, time, *rest)

    return by_row(mixed), by_row(peak), by_row(total)


def panel(dtype: Any, softcap: float) -> int:
    """Columns of the panels that the keys of segments are in where attention to them is by a kernel of our own: without
    a softcap or bias, and of numbers as computed. 0: it is not."""
    return 0 if softcap or native.trouble(jnp.dtype(dtype).name) else native.library().width


def _by_kernel(query: Float32[Array, 'S K G T h'], segment: Segment, allowed: Bool[Array, 'S T U'] | None) -> Part:
    """`attend_segment` by the kernel in native/attend.h, which reads no columns that none of some neighbours sees."""
    rows, kv_heads, groups, time, size = query.shape
    batch, room = segment.rows, segment.room
    visible = jnp.ones((1, 1, room), bool) if allowed is None else allowed
    if segment.length is not None:
        valid = jnp.broadcast_to(jnp.arange(room) < segment.length[..., None], (batch, room))[:, None]
        visible = valid if allowed is None else visible & jnp.repeat(valid, rows // batch, axis=0)

    def attend(*arrays: jax.Array) -> list[jax.Array]:
        lead = arrays[0].shape[:3]
        found = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((*lead, size), lead, lead)]
        return native.call('attend_segment', found, *arrays)

    flat = query.reshape(rows, kv_heads, groups * time, size)
    part = partitioning.by_rows(attend, (flat, segment.key, segment.value, visible))
    mixed, peak, total = (array.reshape(rows, kv_heads, groups, time, *array.shape[3:]) for array in part)
    return mixed, peak, total


def attend_shared(
    query: Float[Array, 'S K G T h'],
    segment: Segment,
    seats: Seats | None,
    softcap: float = 0.0,
    allowed: Bool[Array, 'S T U'] | None = None,
    bias: Float32[Array, '#S K G T U'] | None = None,
) -> Part:
    """As `attend_segment`, of samples that sit elsewhere than their neighbours; None: they are in order."""
    if seats is None or segment.rows == 1:
        return attend_segment(query, segment, softcap, allowed, bias)
    allowed = None if allowed is None else seats.seated(allowed)
    bias = bias if bias is None or bias.shape[0] == 1 else seats.seated(bias)
    part = attend_segment(seats.seated(query), segment, softcap, allowed, bias)
    mixed, peak, total = (seats.risen(array) for array in part)
    return mixed, peak, total


def attend_own(
    query: Float[Array, 'S K G 1 h'],
    mine: tuple[tuple[Any, ...], tuple[Any, ...]],
    own: Own,
    softcap: float,
    allowed: Bool[Array, 'S 1 U'],
    bias: Float32[Array, '1 K G 1 U'] | None = None,
) -> Part:
    """Attention of every sample to its own tokens, those of the blocks of the ring that were written.

    Args:
      query: grouped queries.
      mine: blocks of keys [S, K, h, W] and of values [S, K, W, h] of a layer, with the column of this step.
      own: the ring before this step.
      softcap: cap of the scores, 0 for none.
      allowed: which columns each sample sees.
      bias: added to the scores.
    """

    def of_block(number: int) -> Part:
        here = lambda array: array[..., number * own.width : (number + 1) * own.width]  # noqa: E731
        block = Segment(mine[0][number], mine[1][number])
        return attend_segment(query, block, softcap, here(allowed), None if bias is None else here(bias))

    part = of_block(0)
    for number in range(1, len(mine[0])):
        more = lambda part, number=number: joined([part, of_block(number)])  # noqa: E731
        part = jax.lax.cond(number < own.blocks, more, lambda part: part, part)
    return part


def joined(parts: list[Part]) -> Part:
    """Attention over parts of the context as one part."""
    peak = functools.reduce(jnp.maximum, [part[1] for part in parts])
    scales = [jnp.exp(part[1] - peak) for part in parts]
    mixed = sum(part[0] * scale[..., None] for part, scale in zip(parts, scales, strict=True))
    return mixed, peak, sum(part[2] * scale for part, scale in zip(parts, scales, strict=True))


def merge(parts: list[Part]) -> Float32[Array, 'B T H h']:
    """Joins attention over parts of the context into attention over all of it (log-sum-exp merge)."""
    mixed, _, total = joined(parts)
    rows, kv_heads, groups, time, size = mixed.shape
    return jnp.moveaxis(mixed * (1 / total)[..., None], 3, 1).reshape(rows, time, kv_heads * groups, size)
