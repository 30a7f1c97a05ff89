"""Which program attends within whole rows: the plain products, the fused attention of jax, or the TPU's splash kernel.

    plain   matrix products and a mask, [T, T] scores in memory; the reference, and the choice on CPUs
    fused   jax.nn.dot_product_attention: cuDNN on GPUs where it applies, XLA's own elsewhere; no soft-cap. On a CPU
            a step on the quickstart's 63-token rows takes 4 to 8 % less CPU time with it than with plain
    splash  the block-sparse kernel for TPUs of jax.experimental.pallas; masks, windows and soft-cap inside

`TransformerConfig.attention` names one, or 'auto': `choose` then goes by platform and shape.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5x_selfimprove import partitioning
from t5x_selfimprove.models.attention import Part
from t5x_selfimprove.models.config import TransformerConfig
from t5x_selfimprove.partitioning import LEARNING, Axes

LANES = 128  # numbers of a TPU register; the kernel's blocks are multiples of it
LARGEST_BLOCK = 512
LEAST_SPLASH = 256  # tokens; shorter rows are one block, and nothing of it can be left out
CUDNN_HEAD_SIZE = 128  # the largest that all GPUs with flash attention take


def choose(config: TransformerConfig, time: int, platform: str) -> tuple[str, str]:
    """The kernel for rows of `time` tokens on a platform, and why.

    Raises:
      ValueError: the splash kernel was asked for on a GPU.
    """
    if config.attention == 'splash' and platform == 'gpu':
        raise ValueError("attention = 'splash' is a kernel for TPUs and this is a GPU; set 'auto', 'fused' or 'plain'")
    if config.attention != 'auto':
        return config.attention, 'as configured'
    if platform == 'tpu':
        if time < LEAST_SPLASH:
            return 'plain', f'rows are shorter than {LEAST_SPLASH} tokens'
        return 'splash', 'TPU'
    if platform == 'gpu':
        reason = _not_cudnn(config, time)
        return ('plain', reason) if reason else ('fused', 'GPU, cuDNN')
    return 'plain', 'no kernel for CPUs'


def _not_cudnn(config: TransformerConfig, time: int) -> str:
    """Why cuDNN's flash attention does not apply, or ''."""
    if config.dtype != 'bfloat16':
        return f'cuDNN attends in bfloat16, the model computes in {config.dtype}'
    if config.attention_softcap:
        return 'cuDNN has no soft-cap'
    if config.head_size % 8 or config.head_size > CUDNN_HEAD_SIZE:
        return f'cuDNN takes head sizes that are multiples of 8 up to {CUDNN_HEAD_SIZE}; it is {config.head_size}'
    return 'cuDNN trains on rows of even length' if time % 2 else ''


def describe(config: Any, platform: str) -> str:
    """What a run says at its start about attention within rows: the kernel for long rows, and why."""
    if not isinstance(config, TransformerConfig):
        return 'plain (with a bias by relative position)'
    name, reason = choose(config, 2 * LEAST_SPLASH, platform)
    if name == 'splash' and config.attention == 'auto':
        reason += f'; plain for rows shorter than {LEAST_SPLASH} tokens'
    if name == 'splash' and platform != 'tpu':
        reason += '; interpreted, which is slow: this is no TPU'
    if name == 'fused' and config.attention == 'fused':
        refused = _not_cudnn(config, 2) if platform == 'gpu' else 'no GPU'
        reason += f"; XLA's own: {refused}" if refused else '; cuDNN'
    return f'{name} ({reason})'


def attend_rows(
    name: str,
    query: Float[Array, 'B K G T h'],
    key: Float[Array, 'B T K h'],
    value: Float[Array, 'B T K h'],
    segment: Int[Array, 'B T'] | None,
    window: int,
    config: TransformerConfig,
    alone: bool,
) -> Part:
    """Causal attention within rows by the kernel 'fused' or 'splash', of one layer.

    Args:
      name: of the kernel, from `choose`.
      query: grouped and scaled queries.
      key: keys.
      value: values.
      segment: a token sees its own segment alone; None: the row is one.
      window: tokens that are seen, itself included; 0: all before.
      config: of the model.
      alone: whether no other part is merged with this one. The residuals of 'fused' come in the compute dtype, too
        coarse to merge by, so that 'fused' must be alone.
    """
    if name == 'fused':
        if not alone:
            raise ValueError("attention = 'fused' gives no residuals to merge by; use the plain part")
        mixed = _fused(query, key, value, segment, window, config)
        return mixed, jnp.zeros(mixed.shape[:-1]), jnp.ones(mixed.shape[:-1])
    return _splash_over_mesh(query, key, value, segment, window, config.attention_softcap, alone)


def _fused(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment: jax.Array | None,
    window: int,
    config: TransformerConfig,
) -> jax.Array:
    rows, kv_heads, groups, time, size = query.shape
    mask: Bool[Array, 'B 1 T T'] | None = None
    if segment is not None:
        mask = (segment[:, :, None] == segment[:, None, :])[:, None]
    cudnn = partitioning.platform() == 'gpu' and not _not_cudnn(config, time)
    mixed = jax.nn.dot_product_attention(
        jnp.moveaxis(query, 3, 1).reshape(rows, time, kv_heads * groups, size),
        key,
        value,
        mask=mask,
        scale=1.0,
        is_causal=True,
        local_window_size=(window - 1, 0) if window else None,
        implementation='cudnn' if cudnn else 'xla',
    )
    mixed = mixed.astype(jnp.float32).reshape(rows, time, kv_heads, groups, size)
    return jnp.moveaxis(mixed, 1, 3)


def _splash_over_mesh(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment: jax.Array | None,
    window: int,
    softcap: float,
    alone: bool,
) -> Part:
    """Every device attends for its own rows, heads and, where times are split, queries: XLA cannot split a kernel by
    itself."""
    segment = jnp.ones((key.shape[0], key.shape[1]), jnp.int32) if segment is None else segment.astype(jnp.int32)
    key, value = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        kernel = _kernel(query.shape[1] * query.shape[2], query.shape[3], window, softcap, alone)
        return _splash(kernel, query, key, value, segment, segment, alone)
    batch, kv_heads, groups, time = query.shape[:4]
    copies = copies_of_heads(kv_heads, groups, partitioning.parts_of(LEARNING['kv_heads'], mesh))
    key, value = (jnp.repeat(each, copies, axis=1) for each in (key, value))
    split_query = query.reshape(batch, kv_heads * copies, groups // copies, *query.shape[3:])
    padding = -batch % partitioning.batch_parts(mesh)
    inputs = (split_query, key, value, segment, segment)
    padded = [jnp.pad(each, ((0, padding),) + ((0, 0),) * (each.ndim - 1)) for each in inputs]
    shares = mesh.shape['sequence'] if time % (mesh.shape['sequence'] * LANES) == 0 else 1
    times = 'time' if shares > 1 else None
    spec = lambda array, *names: partitioning.spec_for(Axes(names), array.shape[: len(names)], mesh, LEARNING)  # noqa: E731
    heads = spec(padded[1], 'batch', 'kv_heads')
    queries = spec(padded[0], 'batch', 'kv_heads', None, times)
    mine = padded[0].shape[1] // partitioning.parts_of(heads[1], mesh) * padded[0].shape[2]
    kernel = _kernel(mine, time, window, softcap, alone, shares)
    blocks = kernel.manual_sharding_spec(jax.NamedSharding(mesh, jax.P(None, 'sequence' if shares > 1 else None)))
    # The kernel does not say over which axes its results vary, so that this is not checked.
    split = jax.shard_map(
        functools.partial(_splash, alone=alone),
        mesh=mesh,
        in_specs=(blocks, queries, heads, heads, spec(segment, 'batch', times), spec(segment, 'batch')),
        out_specs=queries,
        check_vma=False,
    )
    found = split(kernel, *padded)
    return jax.tree.map(lambda each: each[:batch].reshape(batch, kv_heads, groups, *each.shape[3:]), found)


def copies_of_heads(kv_heads: int, groups: int, parts: int) -> int:
    """How often each key/value head is copied so that all of them divide by the parts that queries are split into; 1
    where they do, or where the queries of a head do not divide by its copies."""
    copies = parts // math.gcd(kv_heads, parts)
    return 1 if groups % copies else copies


def _room(time: int) -> int:
    """Rows are filled up to whole blocks, in a segment of their own."""
    return -(-time // LANES) * LANES


def _kernel(heads: int, time: int, window: int, softcap: float, alone: bool, shares: int = 1) -> Any:
    """The splash kernel for rows of `time` tokens, whose queries are dealt out in `shares` equal parts."""
    # Imported where it is used: most runs are spared it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    room = _room(time)
    block = next(block for block in range(LARGEST_BLOCK, 0, -LANES) if room // shares % block == 0)
    names = ('block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv', 'block_kv_dkv_compute')
    blocks = splash.BlockSizes(**dict.fromkeys((*names, 'block_q_dq', 'block_kv_dq'), block))
    shape = (room, room)
    causal = splash.CausalMask(shape, shard_count=shares)
    seen = splash.LocalMask(shape, (window - 1, 0), 0, shares) if window else causal
    return splash.make_splash_mha(
        splash.MultiHeadMask([seen] * heads),
        block_sizes=blocks,
        save_residuals=not alone,
        attn_logits_soft_cap=softcap or None,
        head_shards=1,
        q_seq_shards=shares,
        interpret=partitioning.platform() != 'tpu',
    )


def _splash(
    kernel: Any,
    query: Float[Array, 'B K G T h'],
    key: Float[Array, 'B K U h'],
    value: Float[Array, 'B K U h'],
    segment: Int[Array, 'B T'],
    key_segment: Int[Array, 'B U'],
    alone: bool,
) -> Part:
    """Attention of a device's queries to the keys and values of their rows."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    rows, kv_heads, groups, time, size = query.shape
    longer = lambda x, axis: jnp.pad(  # noqa: E731
        x, [(0, _room(count) - count if n == axis else 0) for n, count in enumerate(x.shape)]
    )
    heads = longer(query.reshape(rows, kv_heads * groups, time, size), 2)
    ids = splash.SegmentIds(longer(segment, 1), longer(key_segment, 1))
    found = jax.vmap(kernel)(heads, longer(key, 2), longer(value, 2), ids)
    shorter = lambda x: x[:, :, :time].astype(jnp.float32).reshape(rows, kv_heads, groups, time, *x.shape[3:])  # noqa: E731
    mixed, peak = (found, None) if alone else (found[0], found[1][0])
    peak = jnp.zeros(query.shape[:-1]) if peak is None else shorter(peak)
    return shorter(mixed), peak, jnp.ones(query.shape[:-1])
