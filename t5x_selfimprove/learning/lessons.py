"""Lessons: kept samples as packed, static training rows, built on device.

examples   prompt and completion of one sample                 [E, T']
packing    which row and offset each example gets              next-fit over a shuffled order
rows       tokens, targets, loss weights, segments, positions  [R, T]

A decoder-only model learns from prompt and completion as one stretch of a row. An encoder-decoder's prompts are packed
in rows of their own, [R, U], beside the completions; whether they are is said by `Packing.source_length`, the one place
that must name U, and held against the kind of the model before a run starts.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from t5x_selfimprove.models.config import ModelConfig
from t5x_selfimprove.records import Examples, Lessons, Prompts, Samples, Sources


def closed(samples: Samples, end: int) -> Samples:
    """The samples with an end of text behind those that ended at another token or at a text; one token more of room."""
    room = samples.tokens.shape[1]
    length = samples.mask.sum(axis=1)
    last = jnp.take_along_axis(samples.tokens, jnp.maximum(length - 1, 0)[:, None], axis=1)[:, 0]
    here = (jnp.arange(room + 1) == length[:, None]) & (samples.ended & (last != end) & (length > 0))[:, None]
    wider = lambda array: jnp.pad(array, ((0, 0), (0, 1)))  # noqa: E731
    return dataclasses.replace(
        samples,
        tokens=jnp.where(here, end, wider(samples.tokens)),
        mask=wider(samples.mask) | here,
        log_probs=wider(samples.log_probs),
        proposal_log_probs=None,
    )


def one_a_row(examples: Examples, sources: bool) -> Lessons:
    """Each example in a row of its own, whatever its weight.

    Args:
      examples: E examples.
      sources: whether prompts are apart, for an encoder.
    """
    place = jnp.arange(examples.length.shape[0], dtype=jnp.int32)
    start, placed, count = jnp.zeros_like(place), jnp.ones(place.shape, bool), place.shape[0]
    learnt = completions(examples) if sources else examples
    rows = write_rows(learnt, place, start, placed, count, learnt.tokens.shape[1])
    if sources:
        room = examples.tokens.shape[1] if examples.rooms is None else examples.rooms[0]
        source = write_sources(examples, place, start, jnp.ones_like(place), placed, count, room)
        rows = dataclasses.replace(rows, source=source)
    return rows


def examples_of(prompts: Prompts, samples: Samples, keep: Float32[Array, 'S'], pad: int) -> Examples:
    """Each sample with its prompt before it, E = S examples of room X + P + C.

    Args:
      prompts: of Q questions.
      samples: their Q * N samples.
      keep: training weight of each sample; 0 leaves it out.
      pad: padding token.
    """
    rows, prefix = samples.tokens.shape[0], prompts.prefix.shape[0]
    count, variants = rows // prompts.id.shape[0], prompts.tokens.shape[0] // prompts.id.shape[0]
    question, sample = jnp.divmod(jnp.arange(rows), count)
    mine = question * variants + sample % variants
    prompt, prompt_length = prompts.tokens[mine], prompts.length[mine]
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
        rooms=(prefix + prompt.shape[1], samples.tokens.shape[1]),
    )


@dataclasses.dataclass(frozen=True)
class Packing:
    """Packs examples into rows.

    With `source_length` the rows are an encoder-decoder's: an example goes to the current row where both its prompt
    fits the sources and its completion, after one place for the start token, fits the row.

    Raises:
      ValueError: a size below 1.
    """

    row_length: int  # T, tokens; of an encoder-decoder the completions'
    rows: int | None = None  # R; None: enough for every example, however they fall
    source_length: int | None = None  # U, tokens of an encoder's rows, for the prompts; None: the model is decoder-only

    def __post_init__(self):
        if self.row_length < 1 or (self.rows is not None and self.rows < 1):
            raise ValueError(f'row_length and rows must be at least 1; they are {self.row_length}, {self.rows}')
        if self.source_length is not None and (self.source_length < 1 or self.row_length < 2):
            raise ValueError(
                'an encoder-decoder needs source_length of at least 1 and row_length of at least 2; they are '
                f'{self.source_length}, {self.row_length}'
            )

    @property
    def rooms(self) -> tuple[int, int] | None:
        """Most tokens of a prompt and of a completion that fit a row, where they are apart; else None."""
        return None if self.source_length is None else (self.source_length, self.row_length - 1)

    @property
    def row_tokens(self) -> str:
        """Tokens of a row, for people."""
        return f'{self.row_length}' if self.source_length is None else f'{self.source_length} + {self.row_length}'

    def check_kind(self, model: ModelConfig) -> None:
        """Raises ValueError unless rows are packed as a model of these settings reads them."""
        if model.reads_source and self.source_length is None:
            raise ValueError(
                'an encoder-decoder reads prompts apart from completions: set learning.Packing.source_length to the '
                'tokens of the longest prompt (or a multiple, to pack several), and row_length for completions alone'
            )
        if not model.reads_source and self.source_length is not None:
            raise ValueError(
                f'learning.Packing.source_length = {self.source_length} is for encoder-decoders, and the model is '
                'decoder-only; leave it out, and set row_length for prompt and completion together'
            )

    def rows_for(self, examples: int, room: int, rooms: tuple[int, int] | None = None) -> int:
        """R for a number of examples of at most `room` tokens, prompts and completions of at most `rooms`.

        Raises:
          ValueError: a single example may not fit a row.
        """
        if self.source_length is not None:
            prompt, completion = (min(room, part) for part in rooms or (room, room))
            if prompt > self.source_length:
                raise ValueError(
                    f'a prompt takes up to {prompt} tokens but source_length is {self.source_length}; raise '
                    f'source_length to {prompt}'
                )
            if completion >= self.row_length:
                raise ValueError(
                    f'a completion takes up to {completion} tokens and its start token one more, but row_length is '
                    f'{self.row_length}; raise row_length to {completion + 1}'
                )
            return self.rows or -(-examples // min(self.source_length // prompt, self.row_length // (completion + 1)))
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
        rows = self.rows_for(*examples.tokens.shape, examples.rooms)
        wanted = examples.weight > 0
        order = jnp.argsort(jnp.where(wanted, jax.random.uniform(key, wanted.shape), 2.0))
        sizes = [examples.length]
        if self.source_length is not None:
            sizes = [examples.length - examples.prompt_length + 1, examples.prompt_length]
        row, offset, *source_offset = self.places(*[jnp.where(wanted, size, 0)[order] for size in sizes])
        placed = wanted[order] & (row < rows)
        examples = jax.tree.map(lambda x: x[order], examples)
        learnt = examples if self.source_length is None else completions(examples)
        lessons = write_rows(learnt, row, offset, placed, rows, self.row_length)
        if self.source_length is not None:
            numbers = segment_numbers(offset)
            source = write_sources(examples, row, *source_offset, numbers, placed, rows, self.source_length)
            lessons = dataclasses.replace(lessons, source=source)
        return lessons, jnp.sum(wanted) - jnp.sum(placed, dtype=jnp.int32)

    def places(self, *lengths: Int32[Array, 'E']) -> tuple[Int32[Array, 'E'], ...]:
        """Row and offset of each example: in the current row where it fits, else at the start of the next.

        Args:
          *lengths: of the examples in rows of `row_length`, and where there are sources of the prompts in theirs.

        Returns:
          The rows, and the offsets for each of the lengths.
        """
        limits = (self.row_length, self.source_length)

        def place(carry, sizes):
            row, used = carry
            ends = [start + size <= limit for start, size, limit in zip(used, sizes, limits, strict=False)]
            fits = functools.reduce(operator.and_, ends)
            row, offset = jnp.where(fits, row, row + 1), tuple(jnp.where(fits, start, 0) for start in used)
            return (row, tuple(start + size for start, size in zip(offset, sizes, strict=True))), (row, *offset)

        zero = jnp.zeros((), jnp.int32)
        return jax.lax.scan(place, (zero, (zero,) * len(lengths)), lengths)[1]


def completions(examples: Examples) -> Examples:
    """Examples without their prompts: each completion after one place, 0, for the start token of a decoder, which is
    all the prompt that it has."""
    width = examples.tokens.shape[1]
    room = width if examples.rooms is None else min(width, examples.rooms[1])
    place = examples.prompt_length[:, None] - 1 + jnp.arange(1 + room)
    tokens = jnp.take_along_axis(examples.tokens, jnp.clip(place, 0, width - 1), axis=1)
    return Examples(
        tokens=tokens.at[:, 0].set(0),
        prompt_length=jnp.ones_like(examples.prompt_length),
        length=examples.length - examples.prompt_length + 1,
        weight=examples.weight,
    )


def segment_numbers(offset: Int32[Array, 'E']) -> Int32[Array, 'E']:
    """1, 2, ... for the examples of each row, in which the first stands at offset 0."""
    number = jnp.arange(offset.shape[0])
    return number - jax.lax.cummax(jnp.where(offset == 0, number, 0)) + 1


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
    scatter = scatter_into(row, offset, placed, examples.length, examples.tokens.shape[1], (rows, row_length))
    targets = jnp.roll(examples.tokens, -1, axis=1)
    learnt = (time >= examples.prompt_length[:, None] - 1) & (time < examples.length[:, None] - 1)
    return Lessons(
        tokens=scatter(examples.tokens, jnp.int32),
        targets=scatter(targets, jnp.int32),
        loss_weight=scatter(jnp.where(learnt, examples.weight[:, None], 0), jnp.float32),
        segment=scatter(segment_numbers(offset)[:, None], jnp.int32),
        position=scatter(time, jnp.int32),
        filled=jnp.max(jnp.where(placed, row + 1, 0)).astype(jnp.int32),
    )


def write_sources(
    examples: Examples,
    row: Int32[Array, 'E'],
    offset: Int32[Array, 'E'],
    number: Int32[Array, 'E'],
    placed: Array,
    rows: int,
    source_length: int,
) -> Sources:
    """Writes the prompts of placed examples into rows of their own, under the segment numbers of their completions."""
    width = examples.tokens.shape[1]
    room = width if examples.rooms is None else min(width, examples.rooms[0])
    scatter = scatter_into(row, offset, placed, examples.prompt_length, room, (rows, source_length))
    return Sources(tokens=scatter(examples.tokens[:, :room], jnp.int32), segment=scatter(number[:, None], jnp.int32))


def scatter_into(
    row: Int32[Array, 'E'],
    offset: Int32[Array, 'E'],
    placed: Array,
    length: Int32[Array, 'E'],
    room: int,
    shape: tuple[int, int],
) -> Callable[[Array, Any], Array]:
    """A function that writes values [E, room] of placed examples, as far as each is long, into rows of zeros."""
    time = jnp.arange(room)
    inside = placed[:, None] & (time < length[:, None])
    target_row = jnp.where(inside, row[:, None], shape[0])  # out of bounds: dropped by the scatter
    column = offset[:, None] + time

    def scatter(values: Array, dtype: Any) -> Array:
        values = jnp.broadcast_to(values, inside.shape).astype(dtype)
        return jnp.zeros(shape, dtype).at[target_row, column].set(values, mode='drop')

    return scatter


def tokens_in(lessons: Lessons) -> Float32[Array, '']:
    """Number of tokens in the rows, those of an encoder included."""
    count = jnp.sum(lessons.segment > 0, dtype=jnp.float32)
    return count if lessons.source is None else count + jnp.sum(lessons.source.segment > 0, dtype=jnp.float32)


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
