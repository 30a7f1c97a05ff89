"""Log-probabilities of given tokens, and entropies, without an array of [rows, time, vocabulary]."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from t5x_selfimprove.models import layers

Finish = Callable[[jax.Array], jax.Array]  # what becomes of each logit on its own: scale, soft-cap


def log_probs(
    hidden: Float[Array, '*rows D'],
    head: Float[Array, 'V D'],
    targets: Int[Array, '*rows'],
    chunk: int,
    finish: Finish = lambda logits: logits,
) -> Float32[Array, '*rows']:
    """log softmax(finish(hidden @ head.T)) at the targets, the vocabulary taken in chunks.

    The running log-sum-exp visits `chunk` rows of the head at a time; each visit is rematerialised in the backward
    pass, so the largest temporary is [rows, chunk] in both directions.

    Args:
      hidden: final hidden states, after the last norm.
      head: output embedding.
      targets: token ids.
      chunk: rows of the head per visit; a vocabulary no larger is taken at once.
      finish: applied to the logits.
    """
    # The head is cast as the matrix product sees it, so that the target's logit is the same number in both places.
    rows = head.astype(hidden.dtype)[targets].astype(jnp.float32)
    target_logit = finish(jnp.sum(hidden.astype(jnp.float32) * rows, axis=-1))

    def add(carry: tuple[jax.Array, jax.Array], logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        peak, total = carry
        higher = jnp.maximum(peak, logits.max(axis=-1))
        return higher, total * jnp.exp(peak - higher) + jnp.exp(logits - higher[..., None]).sum(axis=-1)

    start = (jnp.full(targets.shape, -jnp.inf), jnp.zeros(targets.shape))
    peak, total = _visit(add, start, hidden, head, chunk, finish)
    return target_logit - peak - jnp.log(total)


def entropies(
    hidden: Float[Array, '*rows D'], head: Float[Array, 'V D'], chunk: int, finish: Finish = lambda logits: logits
) -> Float32[Array, '*rows']:
    """Entropy in nats of softmax(finish(hidden @ head.T)), the vocabulary taken in chunks as in `log_probs`."""

    def add(carry: tuple[jax.Array, ...], logits: jax.Array) -> tuple[jax.Array, ...]:
        peak, total, weighted = carry
        higher = jnp.maximum(peak, logits.max(axis=-1))
        weight, scale = jnp.exp(logits - higher[..., None]), jnp.exp(peak - higher)
        # A chunk's padding has weight 0 and logit minus infinity.
        weighted = weighted * scale + jnp.where(weight > 0, weight * logits, 0).sum(axis=-1)
        return higher, total * scale + weight.sum(axis=-1), weighted

    rows = hidden.shape[:-1]
    start = (jnp.full(rows, -jnp.inf), jnp.zeros(rows), jnp.zeros(rows))
    peak, total, weighted = _visit(add, start, hidden, head, chunk, finish)
    return peak + jnp.log(total) - weighted / total


def _visit(
    add: Callable, start: tuple[jax.Array, ...], hidden: jax.Array, head: jax.Array, chunk: int, finish: Finish
) -> tuple[jax.Array, ...]:
    """Folds `add` over the finished logits of `chunk` tokens of the vocabulary after another."""
    size, width = head.shape

    def logits(rows: jax.Array) -> jax.Array:
        return finish(layers.product('...d,vd->...v', hidden, rows, hidden.dtype))

    if size <= chunk:
        return add(start, logits(head))
    visits = -(-size // chunk)
    padded = jnp.pad(head, ((0, visits * chunk - size), (0, 0))).reshape(visits, chunk, width)

    @jax.checkpoint
    def visit(carry, part):
        rows, first = part
        return add(carry, jnp.where(first + jnp.arange(chunk) < size, logits(rows), -jnp.inf)), None

    return jax.lax.scan(visit, start, (padded, jnp.arange(visits) * chunk))[0]
