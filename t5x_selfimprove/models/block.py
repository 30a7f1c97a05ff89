"""One layer of the decoder-only transformer, without the attention between its two halves."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from t5x_selfimprove.models import attention, layers
from t5x_selfimprove.models.config import TransformerConfig
from t5x_selfimprove.models.experts import MixtureOfExperts
from t5x_selfimprove.partitioning import constrain_tokens


class Block(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); with norms after both, or both at once, as configured."""

    def __init__(self, config: TransformerConfig, key: jax.Array):
        attend, feed = jax.random.split(key)
        norm = lambda: layers.NORMS[config.norm](config.width, config.norm_epsilon, config.norm_offset)  # noqa: E731
        self.attention_norm = norm()
        self.attention = attention.Attention(config, attend)
        self.attention_post_norm = norm() if config.post_norms else None
        self.feed_forward_norm = None if config.parallel else norm()
        if config.experts is None:
            self.feed_forward = layers.GatedFeedForward(config.width, config.feed_forward, config.activation, feed)
        else:
            self.feed_forward = MixtureOfExperts(config.width, config.experts, config.activation, feed)
        self.feed_forward_post_norm = norm() if config.post_norms else None

    def project(
        self, x: Float[Array, 'B T D'], turn: layers.Rotation | None
    ) -> tuple[Float[Array, 'B K G T h'], Float[Array, 'B T K h'], Float[Array, 'B T K h']]:
        """Queries, keys and values of the normalised input."""
        return self.attention.project(self.attention_norm(x), turn)

    def finish(
        self,
        x: Float[Array, 'B T D'],
        mixed: Float32[Array, 'B T H h'],
        weight: Float32[Array, 'B T'] | None = None,
        rate: float = 0.0,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, 'B T D'], Float32[Array, '']]:
        """The rest of the block after attention has mixed the values.

        Args:
          x: the block's input.
          mixed: the mixed values of each head.
          weight: 1 for the tokens that count in the load-balancing loss; None: all.
          rate: dropout rate.
          key: of the dropout; None: no dropout.

        Returns:
          The block's output, and the load-balancing loss of its experts (0 without experts).
        """
        first, second = (None, None) if key is None else jax.random.split(key)
        attended = self.attention.merge_heads(mixed.astype(x.dtype), x.dtype)
        if self.attention_post_norm is not None:
            attended = self.attention_post_norm(attended)
        attended = layers.dropout(attended, rate, first)
        if self.feed_forward_norm is None:  # parallel
            fed, balance = self._feed(self.attention_norm(x), weight)
            return constrain_tokens(x + attended + layers.dropout(fed, rate, second)), balance
        x = x + attended
        fed, balance = self._feed(self.feed_forward_norm(x), weight)
        if self.feed_forward_post_norm is not None:
            fed = self.feed_forward_post_norm(fed)
        return constrain_tokens(x + layers.dropout(fed, rate, second)), balance

    def _feed(self, x: jax.Array, weight: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        if isinstance(self.feed_forward, MixtureOfExperts):
            return self.feed_forward(x, weight)
        return self.feed_forward(x), jnp.zeros(())
