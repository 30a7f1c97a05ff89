"""The layers of the encoder-decoder: T5's attention, feed-forward and block."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from t5x_selfimprove.models import attention, layers
from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig
from t5x_selfimprove.partitioning import constrain_tokens

Query = Float[Array, 'B H 1 T h']
Keys = Float[Array, 'B U H h']  # or values


class AttentionLayer(nnx.Module):
    """x + attention(norm(x)): multi-head attention without biases, rotary positions or a scale of the scores.

    The scale of other transformers is in the start of the query's weights.
    """

    def __init__(self, config: EncoderDecoderConfig, key: jax.Array):
        query, keys, value, out = jax.random.split(key, 4)
        width, heads, size = config.width, config.heads, config.head_size
        shape, axes = (width, heads, size), ('model', 'heads', 'head')
        self.norm = layers.RMSNorm(width, config.norm_epsilon)
        self.query = layers.parameter(layers.normal(query, shape, width * size), *axes)
        self.key = layers.parameter(layers.normal(keys, shape, width), *axes)
        self.value = layers.parameter(layers.normal(value, shape, width), *axes)
        self.out = layers.parameter(layers.normal(out, (heads, size, width), heads * size), 'heads', 'head', 'model')

    def own(self, x: Float[Array, 'B T D']) -> tuple[Query, Keys, Keys]:
        """Queries, keys and values of the normalised input, of which each token is all three."""
        x = self.norm(x)
        return self._queries(x), *self.keys_values(x)

    def queries(self, x: Float[Array, 'B T D']) -> Query:
        """Queries of the normalised input."""
        return self._queries(self.norm(x))

    def keys_values(self, x: Float[Array, 'B U D']) -> tuple[Keys, Keys]:
        """Keys and values of an input as it is."""
        return _project(x, self.key), _project(x, self.value)

    def add(
        self, x: Float[Array, 'B T D'], parts: list[attention.Part], rate: float = 0.0, key: jax.Array | None = None
    ) -> Float[Array, 'B T D']:
        """The input with what was attended to added.

        Args:
          x: the layer's input.
          parts: attention over the parts of the context.
          rate: dropout rate.
          key: of the dropout; None: no dropout.
        """
        mixed = attention.merge(parts).astype(x.dtype)
        attended = layers.linear('btnh,nhd->btd', mixed, self.out, x.dtype).astype(x.dtype)
        return constrain_tokens(x + layers.dropout(attended, rate, key))

    def _queries(self, x: jax.Array) -> jax.Array:
        query = _project(x, self.query)
        return attention.grouped(query, query.shape[2], 1.0)


def _project(x: jax.Array, weight: object) -> jax.Array:
    return layers.linear('btd,dnh->btnh', x, weight, x.dtype).astype(x.dtype)


class FeedForward(nnx.Module):
    """down(activation(up(x)))."""

    def __init__(self, width: int, hidden: int, activation: str, key: jax.Array):
        up, down = jax.random.split(key)
        self.up = layers.parameter(layers.normal(up, (width, hidden), width), 'model', 'feed_forward')
        self.down = layers.parameter(layers.normal(down, (hidden, width), hidden), 'feed_forward', 'model')
        self.activation = activation

    def __call__(self, x: Float[Array, '*rows D']) -> Float[Array, '*rows D']:
        """Same shape and dtype as `x`."""
        inner = layers.ACTIVATIONS[self.activation](layers.linear('...d,df->...f', x, self.up, x.dtype))
        return layers.linear('...f,fd->...d', inner, self.down, x.dtype).astype(x.dtype)


class Block(nnx.Module):
    """One layer: attention to its own stack, in the decoder attention to the encoder's output, feed-forward."""

    def __init__(self, config: EncoderDecoderConfig, decoder: bool, key: jax.Array):
        own, cross, feed, table = jax.random.split(key, 4)
        self.attention = AttentionLayer(config, own)
        self.cross_attention = AttentionLayer(config, cross) if decoder else None
        self.feed_forward_norm = layers.RMSNorm(config.width, config.norm_epsilon)
        kind = layers.GatedFeedForward if config.gated else FeedForward
        self.feed_forward = kind(config.width, config.feed_forward, config.activation, feed)
        self.bias = bias_table(config, table) if config.bias_per_layer else None

    def feed(self, x: Float[Array, 'B T D'], rate: float = 0.0, key: jax.Array | None = None) -> Float[Array, 'B T D']:
        """x + feed_forward(norm(x)), the last third of the block."""
        fed = self.feed_forward(self.feed_forward_norm(x))
        return constrain_tokens(x + layers.dropout(fed, rate, key))


def bias_table(config: EncoderDecoderConfig, key: jax.Array) -> nnx.Param:
    """The numbers of the relative position bias, a row for each bucket of distances."""
    start = layers.normal(key, (config.buckets, config.heads), config.width)
    return layers.parameter(start, 'buckets', 'heads')
