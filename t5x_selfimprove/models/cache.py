"""What is kept of the text that was read, while samples are drawn.

    Segment   keys and values that are read: of the prefix, of the questions
    Own       keys and values that are written: a ring of columns, one of which all samples write at each step
    Seats     which sample reads which question, where samples come and go

Layers are stacked and scanned, or each is by itself and they follow one another in the program (`over_layers`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int8, Int32

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import packed
from t5x_selfimprove.models.layers import to_int8
from t5x_selfimprove.records import record

BLOCK, BLOCKS = 64, 8  # fewest columns that are read together where layers are by themselves, and most such blocks
KINDS = ('as computed', 'int8')  # of numbers in a ring


@record
class Rounded:
    """Keys or values in int8, with a scale for each token and head (symmetric, rounded to nearest).

    Products are of the whole numbers; what comes of a column is multiplied by its scale, in float32.
    """

    numbers: Int8[Array, '*l S K h W'] | Int8[Array, '*l S K W h']
    scale: Float32[Array, '*l S K 1 W']

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the keys or values."""
        return self.numbers.shape


def rounded(column: Float[Array, '*b S K m n']) -> Rounded:
    """Keys [..., h, 1] or values [..., 1, h] of one token of each sample."""
    return Rounded(*to_int8(column, (-2, -1)))


def numbers(kept: Any, dtype: Any) -> jax.Array:
    """Keys or values as they are multiplied, without their scale."""
    if not isinstance(kept, Rounded):
        return kept
    wide = kept.numbers.astype(dtype)
    # The compiler for TPUs (libtpu 0.0.52) would else tile the ring for the product, and copy all of its layers from
    # the tiles that columns are written in, at every layer of every step.
    return wide if partitioning.platform() == 'cpu' else jax.lax.optimization_barrier(wide)


def scaled(columns: Float32[Array, 'B K q T'], kept: Any) -> Float32[Array, 'B K q T']:
    """Scores or weights of columns times the scale of their keys or values."""
    return columns * kept.scale if isinstance(kept, Rounded) else columns


@record
class Segment:
    """Keys and values of one stretch of context: of all layers, or of one where the leading L is absent.

    Keys are stored with time last: the product with the queries then reads them in order (on a CPU this is 14 times
    faster than time first). For a kernel of our own they are in panels of W columns.
    """

    key: Float[Array, '*L B K h T'] | Float[Array, '*L B K P h W']
    value: Float[Array, '*L B K T h']
    length: Int32[Array, '*B'] | None = None  # entries that are valid, the rest is masked; None: all are

    @property
    def rows(self) -> int:
        """B, the number of contexts; queries are spread evenly over them."""
        return self.value.shape[-4]

    @property
    def room(self) -> int:
        """T, the number of entries, valid or not."""
        return self.value.shape[-2]


@record
class Own:
    """Keys and values of what the samples have drawn: a ring of U columns, at least as many as a sample may read.

    All samples write the same column at the same step, whatever the number of tokens that each of them has read, so
    that a step is one write in place. A sample sees the columns written last, as many as it has read tokens:

        column     0   1   2   3         step 6 writes column 2; the ages of the columns are then 2 1 0 3
        sample 0   e   f   .   d         length = 3
        sample 1   a   b   .   .         length = 2: it began at step 4

    Either all layers are stacked, or each has its columns in blocks of W, so that those never written need not be read.
    A block is an array of its own: out of one array for all of them, XLA would copy it before every product.
    In place of each array there is a `Rounded` where the ring is of int8. What a kernel of our own reads is one block,
    its keys in panels.
    """

    key: Any  # Float[Array, 'L S K h W'], or for each layer a tuple of blocks, Float[Array, 'S K h W'] or 'S K P h w'
    value: Any  # Float[Array, 'L S K W h'], or for each layer a tuple of blocks, Float[Array, 'S K W h']
    length: Int32[Array, 'S']  # tokens read by each sample; -1: the next one read is not its own and is not kept
    step: Int32[Array, '']  # steps made

    @property
    def width(self) -> int:
        """W, the columns of a block."""
        return jax.tree.leaves(self.value)[0].shape[-2]

    @property
    def room(self) -> int:
        """U, the number of columns."""
        return self.width * (len(self.value[0]) if isinstance(self.value, tuple) else 1)

    @property
    def panel(self) -> int:
        """Columns of a panel of keys; 0: they are in none."""
        first = jax.tree.leaves(self.key)[0]
        return first.shape[-1] if isinstance(self.key, tuple) and first.ndim == 5 else 0

    @property
    def blocks(self) -> Int32[Array, '']:
        """How many blocks hold columns that were written, the next step's included."""
        return (jnp.minimum(self.step, self.room - 1) // self.width + 1).astype(jnp.int32)

    def ages(self) -> Int32[Array, 'U']:
        """Steps since each column was written, at the next step."""
        return (self.step - jnp.arange(self.room)) % self.room

    def visible(self) -> Bool[Array, 'S 1 U']:
        """What each sample sees at the next step, itself included."""
        return (self.ages() <= self.length[:, None])[:, None]

    def write(
        self, arrays: tuple[Any, Any], key: Float[Array, 'S 1 K h'], value: Float[Array, 'S 1 K h'], layer: Any
    ) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Writes the next step's column of a layer.

        Args:
          arrays: keys and values of all layers, those of the layers before with the column in them.
          key: of the column.
          value: of the column.
          layer: number of the layer.

        Returns:
          The keys and values of all layers, and those of this one, in a tuple of blocks.
        """
        block, column = jnp.divmod(self.step % self.room, self.width)
        entries, places = [jnp.moveaxis(key, 1, 3), jnp.moveaxis(value, 1, 2)], [(0, 0, 0, column), (0, 0, column, 0)]
        if self.panel:
            panel, within = jnp.divmod(column, self.panel)
            entries[0], places[0] = entries[0][:, :, None], (0, 0, panel, 0, within)
        written = [_write(*each, layer, block) for each in zip(arrays, entries, places, strict=True)]
        everywhere, here = zip(*written, strict=True)
        return everywhere, here

    def after(self, arrays: tuple[Any, Any]) -> 'Own':
        """The ring after a step in which all layers wrote their columns."""
        return Own(*arrays, self.length + 1, self.step + 1)

    def restarted(self, fresh: Bool[Array, 'S']) -> 'Own':
        """The ring in which some samples are new ones. What they read next is left over from those before them."""
        return dataclasses.replace(self, length=jnp.where(fresh, -1, self.length))

    def map(self, change: Callable[[jax.Array], jax.Array]) -> 'Own':
        """The ring in which arrays are changed along the axis of the samples, which `change` sees first."""
        everywhere = change if isinstance(self.key, tuple) else jax.vmap(change)
        arrays = jax.tree.map(everywhere, (self.key, self.value))
        return Own(*arrays, change(self.length), self.step)


def new_own(
    layers: int,
    rows: int,
    heads: int,
    room: int,
    size: int,
    dtype: Any,
    stacked: bool,
    kind: str = KINDS[0],
    panel: int = 0,
) -> Own:
    """An empty ring for samples of `room` tokens, of `KINDS`; in blocks where layers are by themselves, but its keys in
    panels of so many columns where a kernel reads it, which passes by those that nobody sees."""
    width = room if stacked or panel else min(room, max(BLOCK, -(-room // BLOCKS)))
    blocks = -(-room // width)
    key = (rows, heads, -(-room // panel), size, panel) if panel else (rows, heads, size, width)
    value = (rows, heads, width, size)

    def empty(shape: tuple[int, ...]) -> Any:
        if kind == 'int8':
            return Rounded(jnp.zeros(shape, jnp.int8), jnp.zeros((*shape[:-2], 1, width), jnp.float32))
        return jnp.zeros(shape, dtype)

    make = lambda shape: empty((layers, *shape)) if stacked else ((empty(shape),) * blocks,) * layers  # noqa: E731
    return Own(make(key), make(value), jnp.zeros(rows, jnp.int32), jnp.zeros((), jnp.int32))


def check_kind(kind: str) -> None:
    """Raises ValueError for a ring of a kind that there is not."""
    if kind not in KINDS:
        raise ValueError(f'cache must be one of {", ".join(map(repr, KINDS))}; it is {kind!r}')


def _write(arrays: Any, entry: jax.Array, place: tuple[Any, ...], layer: Any, block: jax.Array) -> tuple[Any, Any]:
    if not isinstance(arrays, tuple):
        arrays = _put(arrays, entry[None], (layer, *place))
        return arrays, (jax.tree.map(lambda array: array[layer], arrays),)
    put = lambda array: _put(array, entry, place)  # noqa: E731
    kept = arrays[layer]
    if len(kept) == 1:
        mine = (put(kept[0]),)
    else:
        mine = tuple(jax.lax.cond(block == n, put, lambda array: array, array) for n, array in enumerate(kept))
    return (*arrays[:layer], mine, *arrays[layer + 1 :]), mine


def _put(array: Any, entry: jax.Array, place: tuple[Any, ...]) -> Any:
    put = lambda array, entry, place: jax.lax.dynamic_update_slice(array, entry.astype(array.dtype), place)  # noqa: E731
    if not isinstance(array, Rounded):
        return put(array, entry, place)
    column, of_scale = rounded(entry), (*place[:-2], 0, place[-2] + place[-1])  # of the two, one is 0
    return Rounded(put(array.numbers, column.numbers, place), put(array.scale, column.scale, of_scale))


@record
class Seats:
    """Where samples that come and go sit while they read the segment of their question.

    Each of the B contexts has room for M samples. Dense products are made over all B M seats, so that the samples of a
    context are neighbours whatever the order of the samples. The samples are in D parts that share no context, one for
    each part of a batch that is split over devices.

        contexts        0     0     1     1          samples   0  1  2
        occupant        2     .     0     1          seat      2  3  0
    """

    seat: Int32[Array, 'D s']  # of each sample; D s = S
    occupant: Int32[Array, 'D m']  # of each seat, whatever where there is none; D m = B M

    def seated(self, x: jax.Array) -> jax.Array:
        """[S, ...] as [B M, ...]."""
        return by_part(x, self.occupant)

    def risen(self, x: jax.Array) -> jax.Array:
        """[B M, ...] as [S, ...]."""
        return by_part(x, self.seat)


def by_part(x: jax.Array, index: Int[Array, 'D n']) -> jax.Array:
    """x[index] in each of the D parts that the leading axis of `x` is made of."""
    parts = x.reshape(index.shape[0], -1, *x.shape[1:])
    taken = parts[0][index[0]][None] if index.shape[0] == 1 else jax.vmap(lambda part, mine: part[mine])(parts, index)
    return taken.reshape(-1, *x.shape[1:])


Context = tuple[Segment | tuple[Segment, ...], ...]  # stretches of context; each stacked, or a segment a layer


def starts(context: Context, rows: int, seats: Seats | None = None) -> list[Int32[Array, '#rows']]:
    """Position at which each segment of a context begins, and last the position after all of them, for each of `rows`
    queries (or one number for all)."""
    place = jnp.zeros(1, jnp.int32)
    found = [place]
    for stretch in context:
        segment = stretch[0] if isinstance(stretch, tuple) else stretch
        whole = jnp.full(1, segment.value.shape[-2], jnp.int32)
        length = whole if segment.length is None else jnp.reshape(segment.length, (-1,))
        if length.shape[0] > 1:
            # The rows that share a segment are next to each other.
            sitting = rows if seats is None else seats.occupant.size
            length = jnp.repeat(length, sitting // length.shape[0], total_repeat_length=sitting)
            length = length if seats is None else seats.risen(length)
        place = place + length
        found.append(place)
    return found


def within(position: Int[Array, 'S T'], start: Int[Array, '#S'], room: int, window: int) -> Bool[Array, 'S T U']:
    """Which entries of a segment that begins at `start` lie among the last `window` tokens of each query, itself
    included."""
    of_key = start[:, None] + jnp.arange(room)
    return position[:, :, None] - of_key[:, None, :] < window


def over_layers(
    layer: Callable[[Any, Any], tuple[Any, Any]], carry: Any, blocks: Any, context: Context, inputs: Any, unroll: int
) -> tuple[Any, Any]:
    """The layers one after the other: `jax.lax.scan` where they are stacked, else straight on.

    Args:
      layer: (carry, (block, the layer's segments of the context, its part of the inputs)) to (carry, what it leaves).
      carry: what goes from layer to layer.
      blocks: stacked, or an `nnx.List`.
      context: stretches, in the same form as the blocks.
      inputs: arrays that lead with L.
      unroll: layers per iteration of the scan.

    Returns:
      The last carry, and what the layers leave: stacked, or a tuple of one each.
    """
    if not isinstance(blocks, nnx.List):
        count = jax.tree.leaves(inputs)[0].shape[0]
        return jax.lax.scan(layer, carry, (blocks, _in_layers(context, count), inputs), unroll=unroll)
    left = []
    for number, block in enumerate(blocks):
        here = tuple(stretch[number] for stretch in context)
        carry, leaves = layer(carry, (block, here, jax.tree.map(lambda array, number=number: array[number], inputs)))
        left.append(leaves)
    return carry, tuple(left)


def _in_layers(context: Context, count: int) -> Context:
    """The context as inputs of a scan over layers: lengths repeated, so that all leaves lead with L."""
    repeated = lambda length: jnp.broadcast_to(length, (count, *length.shape))  # noqa: E731
    return tuple(dataclasses.replace(each, length=jax.tree.map(repeated, each.length)) for each in context)


def segment_of(kept: Any, length: Int32[Array, 'B'] | None, panel: int = 0) -> Any:
    """A stretch of context from the keys and values that `over_layers` leaves; in panels of so many columns."""
    if isinstance(kept, tuple) and isinstance(kept[0], tuple):
        return tuple(segment_of(each, length, panel) for each in kept)
    key, value = kept
    return _at_its_paths(Segment(packed.pack(key) if panel else key, value, length))


def _at_its_paths(segment: Segment) -> Segment:
    """Where `sequence` splits texts that are read: moved once to where the paths that read them are."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape['sequence'] == 1 or segment.rows % partitioning.path_parts(mesh):
        return segment
    stacked = (None,) * (segment.value.ndim - 4)
    key, value = partitioning.constrain((segment.key, segment.value), *stacked, 'tokens', 'kv_heads')
    return dataclasses.replace(segment, key=key, value=value)
