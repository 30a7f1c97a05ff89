"""Lessons: kept samples as packed, static training rows, built on device.

examples   prompt and completion of one sample                 [E, T']
packing    which row and offset each example gets              next-fit over a shuffled order
rows       tokens, targets, loss weights, segments, positions  [R, T]
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from t5x_selfimprove.records import Examples, Lessons, Prompts, Samples


def examples_of(prompts: Prompts, samples: Samples, keep: Float32[Array, 'S'], pad: int) -> Examples:
    """Each sample with its prompt before it, E = S examples of room X + P + C.

    Args:
      prompts: Q prompts.
      samples: their Q * N samples.
      keep: training weight of each sample; 0 leaves it out.
      pad: padding token.
    """
    count = samples.tokens.shape[0] // prompts.tokens.shape[0]
    rows, prefix = samples.tokens.shape[0], prompts.prefix.shape[0]
    prompt = jnp.repeat(prompts.tokens, count, axis=0, total_repeat_length=rows)
    prompt_length = jnp.repeat(prompts.length, count, total_repeat_length=rows)
    length = samples.mask.sum(axis=-1, dtype=jnp.int32)
    room = prompt.shape[1] + samples.tokens.shape[1]
    place = jnp.arange(room) - prompt_length[:, None]
    from_prompt = jnp.take_along_axis(prompt, jnp.minimum(jnp.arange(room), prompt.shape[1] - 1)[None], axis=1)
    from_sample = jnp.take_along_axis(samples.tokens, jnp.clip(place, 0, samples.tokens.shape[1] - 1), axis=1)
    tokens = jnp.where(place < 0, from_prompt, jnp.where(place < length[:, None], from_sample, pad))
    shared = jnp.broadcast_to(prompts.prefix, (rows, prefix))
    return Examples(
        tokens=jnp.concatenate([shared, tokens], axis=1),
        prompt_length=prompt_length + prefix,
        length=prompt_length + prefix + length,
        weight=keep.astype(jnp.float32),
    )


@dataclasses.dataclass(frozen=True)
class Packing:
    """Packs examples into rows.

    Raises:
      ValueError: a size below 1.
    """

    row_length: int  # T, tokens
    rows: int | None = None  # R; None: enough for every example, however they fall

    def __post_init__(self):
        if self.row_length < 1 or (self.rows is not None and self.rows < 1):
            raise ValueError(f'row_length and rows must be at least 1; they are {self.row_length}, {self.rows}')

    def rows_for(self, examples: int, room: int) -> int:
        """R for a number of examples of at most `room` tokens.

        Raises:
          ValueError: a single example may not fit a row.
        """
        if room > self.row_length:
            raise ValueError(
                f'an example takes up to {room} tokens but row_length is {self.row_length}; raise row_length to {room}'
            )
        return self.rows or -(-examples // (self.row_length // room))

    def __call__(self, examples: Examples, key: jax.Array) -> tuple[Lessons, Int32[Array, '']]:
        """Packs the examples of positive weight, in random order.

        Args:
          examples: E examples.
          key: of the order.

        Returns:
          The lessons, and the number of examples that found no row (always 0 where `rows` is None).
        """
        rows = self.rows_for(*examples.tokens.shape)
        wanted = examples.weight > 0
        order = jnp.argsort(jnp.where(wanted, jax.random.uniform(key, wanted.shape), 2.0))
        row, offset = self.places(jnp.where(wanted, examples.length, 0)[order])
        placed = wanted[order] & (row < rows)
        lessons = write_rows(jax.tree.map(lambda x: x[order], examples), row, offset, placed, rows, self.row_length)
        return lessons, jnp.sum(wanted) - jnp.sum(placed, dtype=jnp.int32)

    def places(self, lengths: Int32[Array, 'E']) -> tuple[Int32[Array, 'E'], Int32[Array, 'E']]:
        """Row and offset of each example: in the current row where it fits, else at the start of the next."""

        def place(carry, length):
            row, used = carry
            fits = used + length <= self.row_length
            row, offset = jnp.where(fits, row, row + 1), jnp.where(fits, used, 0)
            return (row, offset + length), (row, offset)

        zero = jnp.zeros((), jnp.int32)
        return jax.lax.scan(place, (zero, zero), lengths)[1]


def write_rows(
    examples: Examples,
    row: Int32[Array, 'E'],
    offset: Int32[Array, 'E'],
    placed: Array,
    rows: int,
    row_length: int,
) -> Lessons:
    """Writes placed examples into rows; the loss is on completion tokens alone.

    A token's target is the token after it; the last token of an example has none.
    """
    time = jnp.arange(examples.tokens.shape[1])
    inside = placed[:, None] & (time < examples.length[:, None])
    target_row = jnp.where(inside, row[:, None], rows)  # out of bounds: dropped by the scatter
    column = offset[:, None] + time
    targets = jnp.roll(examples.tokens, -1, axis=1)
    learnt = (time >= examples.prompt_length[:, None] - 1) & (time < examples.length[:, None] - 1)

    def scatter(values, dtype):
        values = jnp.broadcast_to(values, inside.shape).astype(dtype)
        return jnp.zeros((rows, row_length), dtype).at[target_row, column].set(values, mode='drop')

    number = jnp.arange(row.shape[0])
    first = jax.lax.cummax(jnp.where(offset == 0, number, 0))
    return Lessons(
        tokens=scatter(examples.tokens, jnp.int32),
        targets=scatter(targets, jnp.int32),
        loss_weight=scatter(jnp.where(learnt, examples.weight[:, None], 0), jnp.float32),
        segment=scatter((number - first + 1)[:, None], jnp.int32),
        position=scatter(time, jnp.int32),
        filled=jnp.max(jnp.where(placed, row + 1, 0)).astype(jnp.int32),
    )


def minibatch(lessons: Lessons, order: Int32[Array, 'epochs R'], first: Int32[Array, ''], rows: int) -> Lessons:
    """`rows` rows from number `first` on, each pass over the filled rows in an order of its own.

    Args:
      lessons: packed rows.
      order: permutations of the filled rows from `epoch_orders`; pass p uses permutation p mod epochs.
      first: rows taken before.
      rows: how many to take.
    """
    filled = jnp.maximum(lessons.filled, 1)
    number = first + jnp.arange(rows)
    chosen = order[(number // filled) % order.shape[0], number % filled]
    take = lambda array: array[chosen] if array.ndim else array  # noqa: E731
    return jax.tree.map(take, lessons)


def epoch_orders(lessons: Lessons, epochs: int, key: jax.Array) -> Int32[Array, 'epochs R']:
    """Random orders of the filled rows, the unfilled after them."""
    rows = lessons.tokens.shape[0]
    filled = jnp.arange(rows) < lessons.filled
    draws = jax.random.uniform(key, (epochs, rows))
    return jnp.argsort(jnp.where(filled, draws, 2.0), axis=-1).astype(jnp.int32)
