"""Log-probabilities of given tokens without an array of [rows, time, vocabulary]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from t5x_selfimprove.models import layers


def log_probs(
    hidden: Float[Array, '*rows D'], head: Float[Array, 'V D'], targets: Int[Array, '*rows'], chunk: int
) -> Float32[Array, '*rows']:
    """log softmax(hidden @ head.T) at the targets, the vocabulary taken in chunks.

    The running log-sum-exp visits `chunk` rows of the head at a time; each visit is rematerialised in the backward
    pass, so the largest temporary is [rows, chunk] in both directions.

    Args:
      hidden: final hidden states, after the last norm.
      head: output embedding.
      targets: token ids.
      chunk: rows of the head per visit; a vocabulary no larger is taken at once.
    """
    size, width = head.shape
    target_logit = jnp.sum(hidden.astype(jnp.float32) * _cast(head, hidden)[targets].astype(jnp.float32), axis=-1)
    if size <= chunk:
        logits = layers.product('...d,vd->...v', hidden, head, hidden.dtype)
        return target_logit - jax.nn.logsumexp(logits, axis=-1)
    visits = -(-size // chunk)
    padded = jnp.pad(head, ((0, visits * chunk - size), (0, 0))).reshape(visits, chunk, width)

    @jax.checkpoint
    def visit(carry, part):
        peak, total = carry
        rows, first = part
        logits = layers.product('...d,vd->...v', hidden, rows, hidden.dtype)
        logits = jnp.where(first + jnp.arange(chunk) < size, logits, -jnp.inf)
        higher = jnp.maximum(peak, logits.max(axis=-1))
        total = total * jnp.exp(peak - higher) + jnp.exp(logits - higher[..., None]).sum(axis=-1)
        return (higher, total), None

    start = (jnp.full(targets.shape, -jnp.inf), jnp.zeros(targets.shape))
    (peak, total), _ = jax.lax.scan(visit, start, (padded, jnp.arange(visits) * chunk))
    return target_logit - peak - jnp.log(total)


def _cast(head: jax.Array, hidden: jax.Array) -> jax.Array:
    """The head as the matrix product sees it, so that the target's logit is the same number in both places."""
    return head.astype(hidden.dtype)
