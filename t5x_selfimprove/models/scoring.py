"""Log-probabilities of given tokens, and entropies, without an array of [rows, time, vocabulary]."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import layers
from t5x_selfimprove.partitioning import LEARNING, constrain


@dataclasses.dataclass(frozen=True)
class Finish:
    """What becomes of each logit on its own: times `scale`, then soft-capped."""

    scale: float = 1.0
    softcap: float = 0.0  # 0: none

    def __call__(self, logits: Float32[Array, '*shape']) -> Float32[Array, '*shape']:
        """The finished logits."""
        return layers.softcap(logits if self.scale == 1 else logits * self.scale, self.softcap)

    def slope(self, logits: Float32[Array, '*shape']) -> Float32[Array, '*shape'] | float:
        """The derivative at every logit."""
        if self == Finish():
            return 1.0
        return jax.jvp(self, (logits,), (jnp.ones_like(logits),))[1]


PLAIN = Finish()


def log_probs(
    hidden: Float[Array, '*rows D'],
    head: Float[Array, 'V D'],
    targets: Int[Array, '*rows'],
    chunk: int,
    finish: Finish = PLAIN,
) -> Float32[Array, '*rows']:
    """log softmax(finish(hidden @ head.T)) at the targets, the vocabulary taken in chunks.

    The running log-sum-exp visits `chunk` rows of the head at a time; the backward pass visits them once more, so the
    largest temporary is [rows, chunk] in both directions. The gradient is written out below: the compiler's own
    transposes [rows, chunk] element by element, which on a CPU takes longer than the matrix products.

    Args:
      hidden: final hidden states, after the last norm.
      head: output embedding.
      targets: token ids.
      chunk: rows of the head per visit; a vocabulary no larger is taken at once.
      finish: applied to the logits.
    """
    if head.shape[0] <= chunk:
        logits = finish(layers.product('...d,vd->...v', hidden, head, hidden.dtype))
        return _target_logit(hidden, head, targets, finish) - jax.nn.logsumexp(logits, axis=-1)
    if targets.ndim != 2:
        flat = _visited(hidden.reshape(-1, hidden.shape[-1]), head, targets.reshape(-1), chunk, finish)
        return flat.reshape(targets.shape)
    flat = _visited(partitioning.flattened(hidden), head, partitioning.flattened(targets), chunk, finish)
    return partitioning.unflattened(flat, *targets.shape)


def entropies(
    hidden: Float[Array, '*rows D'], head: Float[Array, 'V D'], chunk: int, finish: Finish = PLAIN
) -> Float32[Array, '*rows']:
    """Entropy in nats of softmax(finish(hidden @ head.T)), the vocabulary taken in chunks as in `log_probs`."""

    def add(carry: tuple[jax.Array, ...], logits: jax.Array, _: jax.Array, real: jax.Array) -> tuple[jax.Array, ...]:
        peak, total, weighted = carry
        finished = finish(logits)
        seen = jnp.where(real, finished, -jnp.inf)
        higher = jnp.maximum(peak, seen.max(axis=-1))
        weight, scale = jnp.exp(seen - higher[..., None]), jnp.exp(peak - higher)
        weighted = weighted * scale + (weight * finished).sum(axis=-1)
        return higher, total * scale + weight.sum(axis=-1), weighted

    rows = hidden.shape[:-1]
    start = (jnp.full(rows, -jnp.inf), jnp.zeros(rows), jnp.zeros(rows))
    peak, total, weighted = _visit(add, start, hidden, head, chunk)
    return peak + jnp.log(total) - weighted / total


def _target_logit(hidden: jax.Array, head: jax.Array, targets: jax.Array, finish: Finish) -> jax.Array:
    # The head is cast as the matrix product sees it, so that the target's logit is the same number in both places.
    rows = layers.lookup(head.astype(hidden.dtype), targets).astype(jnp.float32)
    return finish(jnp.sum(hidden.astype(jnp.float32) * rows, axis=-1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _visited(
    hidden: Float[Array, 'R D'], head: Float[Array, 'V D'], targets: Int[Array, 'R'], chunk: int, finish: Finish
) -> Float32[Array, 'R']:
    def add(carry: tuple[jax.Array, ...], logits: jax.Array, _: jax.Array, real: jax.Array) -> tuple[jax.Array, ...]:
        peak, total = carry
        seen = jnp.where(real, finish(logits), -jnp.inf)
        higher = jnp.maximum(peak, seen.max(axis=-1))
        return higher, total * jnp.exp(peak - higher) + jnp.exp(seen - higher[:, None]).sum(axis=-1)

    peak, total = _visit(add, _start(targets), hidden, head, chunk)
    return _target_logit(hidden, head, targets, finish) - peak - jnp.log(total)


def _visited_forward(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, chunk: int, finish: Finish
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """As `_visited`, and on the way the mean of the head's rows under the distribution: the gradient of `hidden`."""

    def add(carry: tuple[jax.Array, ...], logits: jax.Array, rows: jax.Array, real: jax.Array) -> tuple[jax.Array, ...]:
        peak, total, mean = carry
        seen = jnp.where(real, finish(logits), -jnp.inf)
        higher = jnp.maximum(peak, seen.max(axis=-1))
        weight, scale = jnp.exp(seen - higher[:, None]), jnp.exp(peak - higher)
        mixed = layers.product('rv,vd->rd', weight * finish.slope(logits), rows, hidden.dtype)
        return higher, total * scale + weight.sum(axis=-1), mean * scale[:, None] + mixed

    start = (*_start(targets), jnp.zeros(hidden.shape))
    peak, total, mean = _visit(add, start, hidden, head, chunk)
    normaliser = peak + jnp.log(total)
    result = _target_logit(hidden, head, targets, finish) - normaliser
    return result, (hidden, head, targets, normaliser, mean / total[:, None])


def _visited_backward(
    chunk: int, finish: Finish, kept: tuple[jax.Array, ...], gradient: Float32[Array, 'R']
) -> tuple[jax.Array, jax.Array, None]:
    hidden, head, targets, normaliser, mean = kept
    rows = layers.lookup(head.astype(hidden.dtype), targets).astype(jnp.float32)
    wide = hidden.astype(jnp.float32)
    sloped = gradient * finish.slope(jnp.sum(wide * rows, axis=-1))
    of_hidden = sloped[:, None] * rows - gradient[:, None] * mean

    def visit(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        # The vocabulary leads here, so that no [rows, chunk] is transposed for the product with the hidden states.
        logits = layers.product('vd,rd->vr', part[0], hidden, hidden.dtype)
        probability = jnp.exp(finish(logits) - normaliser) * finish.slope(logits)
        probability = jnp.where(part[1][:, None], probability, 0)
        of_rows = layers.product('vr,rd->vd', -gradient * probability, hidden, hidden.dtype)
        return None, constrain(of_rows, 'vocabulary', 'model')

    _, of_parts = jax.lax.scan(visit, None, _parts(head, chunk))
    of_head = _joined(of_parts, head.shape[0]).at[targets].add(sloped[:, None] * wide)
    return of_hidden.astype(hidden.dtype), of_head.astype(head.dtype), None


_visited.defvjp(_visited_forward, _visited_backward)


def _start(targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.full(targets.shape, -jnp.inf), jnp.zeros(targets.shape)


def _shards(size: int) -> int:
    """Number of parts that the mesh splits the vocabulary into."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape[LEARNING['vocabulary']]
    return shards if size % shards == 0 else 1


def _parts(head: Float[Array, 'V D'], chunk: int) -> tuple[Float[Array, 'visits c D'], Bool[Array, 'visits c']]:
    """The head in equal parts of at most `chunk` rows, filled up with zeros, and which rows are of the head.

    Every part has as many rows of each device's share of the vocabulary: no device waits for, or gathers, another's.
    """
    size, width = head.shape
    visits, shards = -(-size // chunk), _shards(size)
    mine = size // shards
    each = -(-mine // visits)
    real = jnp.broadcast_to(jnp.arange(visits * each) < mine, (shards, visits * each))
    rows = jnp.pad(head.reshape(shards, mine, width), ((0, 0), (0, visits * each - mine), (0, 0)))
    turned = [jnp.swapaxes(x.reshape(shards, visits, each, *x.shape[2:]), 0, 1) for x in (rows, real)]
    parts, real = (x.reshape(visits, shards * each, *x.shape[3:]) for x in turned)
    return constrain(parts, None, 'vocabulary', 'model'), real


def _joined(parts: Float32[Array, 'visits c D'], size: int) -> Float32[Array, 'V D']:
    """Parts as of `_parts` in the order of the head."""
    visits, rows, width = parts.shape
    shards = _shards(size)
    turned = jnp.swapaxes(parts.reshape(visits, shards, rows // shards, width), 0, 1)
    return turned.reshape(shards, -1, width)[:, : size // shards].reshape(size, width)


def _visit(
    add: Callable[..., Any], start: tuple[jax.Array, ...], hidden: jax.Array, head: jax.Array, chunk: int
) -> tuple[jax.Array, ...]:
    """Folds `add` over one part of the vocabulary after another: its logits, its rows of the head, and which of them
    are of the head (a soft-cap would make the padding's logits finite, were they masked before)."""
    parts, real = _parts(head, chunk)

    @jax.checkpoint
    def visit(carry, part):
        rows, real = part
        logits = layers.product('...d,vd->...v', hidden, rows, hidden.dtype)
        return add(carry, logits, rows, real), None

    if parts.shape[0] == 1:
        return visit(start, (parts[0], real[0]))[0]
    return jax.lax.scan(visit, start, (parts, real))[0]
