"""Rows of different lengths, padded at the right."""

import jax.numpy as jnp
from jaxtyping import Array, Int32, Num


def concatenate(
    parts: list[Num[Array, 'B _']], lengths: list[Int32[Array, 'B']], room: int, pad: int | float
) -> tuple[Num[Array, 'B {room}'], Int32[Array, 'B']]:
    """Joins ragged rows, row by row: one gather per part.

        parts   [[a b _]  [[x _]     ->  [[a b x _]
                 [c _ _]]  [y z]]         [c y z _]]

    Args:
      parts: rows padded at the right.
      lengths: their lengths.
      room: width of the result; what does not fit is cut, so callers size it as the sum of the widths.
      pad: what fills the rest.
    """
    place = jnp.arange(room, dtype=jnp.int32)
    rows = lengths[0].shape[0]
    result = jnp.full((rows, room), pad, parts[0].dtype)
    start = jnp.zeros(rows, jnp.int32)
    for part, length in zip(parts, lengths, strict=True):
        if part.shape[-1] == 0:
            continue
        source = place - start[:, None]
        taken = jnp.take_along_axis(part, jnp.clip(source, 0, part.shape[-1] - 1), axis=-1)
        result = jnp.where((source >= 0) & (source < length[:, None]), taken, result)
        start = start + length
    return result, start
