"""Stand-ins for a language model whose distributions are known, and questions to put to them."""

import jax
import jax.numpy as jnp
import numpy as np

from t5x_selfimprove.records import Prompts, record
from tests.consolidation.batches import Spelled

# Padding, end of text, and letters.
LETTERS = Spelled((b'', b'', b'a', b'b', b'c'))
SIZE, EOS = LETTERS.size, LETTERS.eos_id


@record
class Place:
    """All the context a table needs: the first token of the prompt of each row."""

    first: jax.Array


@record
class Own:
    """How many tokens each sample has read."""

    length: jax.Array

    def restarted(self, fresh):
        return Own(jnp.where(fresh, -1, self.length))

    def map(self, change):
        return Own(change(self.length))


@record
class Table:
    """Logits from a table: of the first token of the question, the number of tokens drawn, and the last token.

    `logits` is [first, step, last, V]; hidden states are logits.
    """

    table: jax.Array

    def read_prefix(self, tokens):
        return ()

    def prefill(self, tokens, length, context=()):
        last = jnp.take_along_axis(tokens, (length - 1)[:, None], axis=1)[:, 0]
        return self.table[tokens[:, 0], 0, last], Place(tokens[:, 0])

    def new_own(self, rows, room, kind):
        return Own(jnp.zeros(rows, jnp.int32))

    def extend(self, tokens, context, own, seats=None):
        rows = tokens.shape[0] if seats is None else seats.occupant.size
        first = jnp.repeat(context.first, rows // context.first.shape[0], total_repeat_length=rows)
        first = first if seats is None else seats.risen(first)
        return self.table[first, own.length + 1, tokens], Own(own.length + 1)

    def logits(self, hidden):
        return hidden


def constant(rows: list[list[float]]) -> Table:
    """A table whose logits at a step are a row of `rows`, whatever was read and drawn."""
    steps = jnp.array(rows, jnp.float32)
    size = steps.shape[-1]
    return Table(jnp.broadcast_to(steps[None, :, None], (size, len(rows), size, size)))


def certain(token_of_step: list[int], size: int = SIZE) -> Table:
    """A table that leaves no choice: one token a step."""
    return constant(np.where(np.eye(size)[token_of_step] > 0, 0.0, -1e9).tolist())


def prompts_of(rows: list[list[int]], ids: list[int] | None = None, prefix: list[int] = ()) -> Prompts:
    """Prompts of different lengths; `ids` count up where they are not given."""
    room, count = max(map(len, rows)), len(rows)
    numbers = jnp.arange(count) if ids is None else jnp.array(ids)
    return Prompts(
        prefix=jnp.array(prefix, jnp.int32),
        tokens=jnp.array([row + [0] * (room - len(row)) for row in rows], jnp.int32),
        length=jnp.array([len(row) for row in rows], jnp.int32),
        id=jnp.stack([jnp.full(count, 7), numbers], axis=1).astype(jnp.uint32),
    )
