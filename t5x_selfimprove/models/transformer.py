"""The decoder-only transformer: pre-norm blocks of grouped-query attention and SwiGLU, rotary positions.

A model is a pytree of parameters (Flax NNX). It offers pure functions and has no modes:

    forward   whole rows, packed or padded: hidden states for learning and scoring
    prefill   prompts, each in a context of shared segments: hidden states and the prompt's own segment
    extend    one more token of every sample: logits, and the samples' segment written in place
    log_probs / logits   from hidden states
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32

from t5x_selfimprove.models import attention, layers, parameters, scoring
from t5x_selfimprove.models.attention import Segment
from t5x_selfimprove.partitioning import constrain

EXECUTION_FIELDS = ('remat', 'unroll', 'vocabulary_chunk')  # how it is computed, not what


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options of a decoder-only transformer.

    Raises:
      ValueError: sizes that do not fit together; names the fields.
    """

    width: int = 96  # D
    layers: int = 2  # L
    heads: int = 4  # H
    kv_heads: int = 4  # K
    head_size: int = 24  # h, even
    feed_forward: int = 256  # F
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-6
    tied: bool = True  # the output embedding is the input embedding
    dropout: float = 0.0  # after the embedding and after each attention and feed-forward, in learning only
    dtype: str = 'float32'  # of the computation; parameters are float32
    remat: str = 'none'  # 'none', or 'full': recompute each layer in the backward pass
    unroll: int = 1  # layers per iteration of the scan over layers
    vocabulary_chunk: int = 8192  # rows of the output embedding per visit in log_probs

    def __post_init__(self):
        for field in (
            'width',
            'layers',
            'heads',
            'kv_heads',
            'head_size',
            'feed_forward',
            'unroll',
            'vocabulary_chunk',
        ):
            if getattr(self, field) < 1:
                raise ValueError(f'{field} must be at least 1; it is {getattr(self, field)}')
        if self.heads % self.kv_heads:
            raise ValueError(f'heads = {self.heads} must be a multiple of kv_heads = {self.kv_heads}')
        if self.head_size % 2:
            raise ValueError(f'head_size must be even for rotary positions; it is {self.head_size}')
        if not 0 <= self.dropout < 1:
            raise ValueError(f'dropout must be in [0, 1); it is {self.dropout}')
        if self.dtype not in ('float32', 'bfloat16'):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16'; it is {self.dtype!r}")
        if self.remat not in ('none', 'full'):
            raise ValueError(f"remat must be 'none' or 'full'; it is {self.remat!r}")

    def create(self, vocabulary_size: int, key: jax.Array) -> 'Transformer':
        """A freshly initialised model."""
        return Transformer(self, vocabulary_size, key)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: TransformerConfig, key: jax.Array):
        attend, feed = jax.random.split(key)
        self.attention_norm = layers.RMSNorm(config.width, config.norm_epsilon)
        self.attention = attention.Attention(
            config.width, config.heads, config.kv_heads, config.head_size, config.rope_theta, attend
        )
        self.feed_forward_norm = layers.RMSNorm(config.width, config.norm_epsilon)
        self.feed_forward = layers.GatedFeedForward(config.width, config.feed_forward, feed)

    def project(self, x: Float[Array, 'B T D'], position: Int[Array, 'B T']) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of the normalised input."""
        return self.attention.project(self.attention_norm(x), position)

    def finish(
        self, x: Float[Array, 'B T D'], mixed: Float[Array, 'B T H h'], rate: float = 0.0, key: jax.Array | None = None
    ) -> Float[Array, 'B T D']:
        """The rest of the block after attention has mixed the values."""
        first, second = (None, None) if key is None else jax.random.split(key)
        x = x + layers.dropout(self.attention.merge_heads(mixed, x.dtype), rate, first)
        x = x + layers.dropout(self.feed_forward(self.feed_forward_norm(x)), rate, second)
        return constrain(x, 'batch')


class Transformer(nnx.Module):
    """A decoder-only language model. See the module's docstring for its entry points."""

    def __init__(self, config: TransformerConfig, vocabulary_size: int, key: jax.Array):
        embed, blocks, head = jax.random.split(key, 3)
        self.config = config
        # Unit-variance logits at the start when the embedding is also the head; the input is scaled up by the norm.
        self.embedding = layers.parameter(
            layers.normal(embed, (vocabulary_size, config.width), config.width), 'vocabulary', 'model'
        )
        keys = jax.random.split(blocks, config.layers)
        self.blocks = parameters.stacked(jax.vmap(lambda key: Block(config, key))(keys))
        self.final_norm = layers.RMSNorm(config.width, config.norm_epsilon)
        own = layers.normal(head, (vocabulary_size, config.width), config.width)
        self.head = None if config.tied else layers.parameter(own, 'vocabulary', 'model')

    @property
    def output_embedding(self) -> jax.Array:
        """[V, D], the rows that score each token."""
        return (self.embedding if self.head is None else self.head)[...]

    def embed(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B T D']:
        """Token embeddings in the compute dtype."""
        return constrain(self.embedding[...].astype(self.config.dtype)[tokens], 'batch')

    def forward(
        self,
        tokens: Int[Array, 'B T'],
        position: Int[Array, 'B T'],
        segment: Int[Array, 'B T'],
        dropout_key: jax.Array | None = None,
    ) -> Float[Array, 'B T D']:
        """Hidden states of whole rows; a token sees the earlier tokens of its own segment.

        Args:
          tokens: token ids.
          position: position of each token in its segment.
          segment: segment of each token; 0 is padding, which nothing but padding sees.
          dropout_key: drops activations where given.
        """
        rate = self.config.dropout
        time = jnp.arange(tokens.shape[1])
        allowed = (segment[:, :, None] == segment[:, None, :]) & (time[:, None] >= time[None, :])
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.config.layers + 1)
        x = layers.dropout(self.embed(tokens), rate, None if keys is None else keys[-1])

        def layer(x, inputs):
            block, key = inputs
            query, keys, value = block.project(x, position)
            mixed = attention.merge([attention.attend(query, keys, value, allowed)])
            return block.finish(x, mixed.astype(x.dtype), rate, key), None

        if self.config.remat == 'full':
            layer = jax.checkpoint(layer, prevent_cse=False)
        x, _ = jax.lax.scan(layer, x, (self.blocks, None if keys is None else keys[:-1]), unroll=self.config.unroll)
        return self.final_norm(x)

    def prefill(
        self, tokens: Int[Array, 'B T'], length: Int32[Array, 'B'], context: tuple[Segment, ...] = ()
    ) -> tuple[Float[Array, 'B T D'], Segment]:
        """Reads prompts, each after the shared context.

        Args:
          tokens: prompts, padded at the right.
          length: their lengths.
          context: segments before the prompts; a segment of B' rows is shared by B / B' prompts each.

        Returns:
          Hidden states (meaningless from `length` on), and the segment that `extend` takes as context.
        """
        batch, time = tokens.shape
        offset = sum(segment_offset(segment, batch) for segment in context)
        steps = jnp.arange(time)
        position = jnp.broadcast_to(steps, tokens.shape) + jnp.reshape(offset, (-1, 1))
        allowed = jnp.broadcast_to(steps[:, None] >= steps[None, :], (batch, time, time))

        def layer(x, inputs):
            block, past = inputs
            query, key, value = block.project(x, position)
            parts = [attention.attend(query, key, value, allowed)]
            parts += [attention.attend_segment(query, segment) for segment in past]
            x = block.finish(x, attention.merge(parts).astype(x.dtype))
            return x, (jnp.moveaxis(key, 1, 3), jnp.moveaxis(value, 1, 2))

        x, (key, value) = jax.lax.scan(
            layer, self.embed(tokens), (self.blocks, in_layers(context, self.config.layers)), unroll=self.config.unroll
        )
        return self.final_norm(x), Segment(key, value, length)

    def new_segment(self, rows: int, room: int) -> Segment:
        """An empty segment for `rows` samples of up to `room` tokens, in the compute dtype."""
        config = self.config
        shape = (config.layers, rows, config.kv_heads)
        return Segment(
            jnp.zeros((*shape, config.head_size, room), config.dtype),
            jnp.zeros((*shape, room, config.head_size), config.dtype),
            jnp.zeros((), jnp.int32),
        )

    def extend(
        self, tokens: Int[Array, 'S'], context: tuple[Segment, ...], own: Segment
    ) -> tuple[Float32[Array, 'S V'], Segment]:
        """Reads one more token of every sample.

        Args:
          tokens: the token to read, number `own.length` of each sample.
          context: the segments before the samples' own tokens; each is shared by S / B samples.
          own: what the samples have read so far.

        Returns:
          Logits of the token after, and the segment one longer (written in place inside a loop).
        """
        rows, index = tokens.shape[0], own.length
        offset = sum(segment_offset(segment, rows) for segment in context)
        position = jnp.broadcast_to(offset + index, (rows,))[:, None]

        def layer(carry, inputs):
            x, keys, values = carry
            block, past, number = inputs
            query, key, value = block.project(x, position)
            keys = jax.lax.dynamic_update_slice(keys, jnp.moveaxis(key, 1, 3)[None], (number, 0, 0, 0, index))
            values = jax.lax.dynamic_update_slice(values, jnp.moveaxis(value, 1, 2)[None], (number, 0, 0, index, 0))
            mine = Segment(keys[number], values[number], index + 1)
            parts = [attention.attend_segment(query, segment) for segment in (*past, mine)]
            return (block.finish(x, attention.merge(parts).astype(x.dtype)), keys, values), None

        numbers = jnp.arange(self.config.layers)
        (x, keys, values), _ = jax.lax.scan(
            layer,
            (self.embed(tokens[:, None]), own.key, own.value),
            (self.blocks, in_layers(context, self.config.layers), numbers),
            unroll=self.config.unroll,
        )
        return self.logits(self.final_norm(x)[:, 0]), Segment(keys, values, index + 1)

    def logits(self, hidden: Float[Array, '*rows D']) -> Float32[Array, '*rows V']:
        """Unnormalised scores of every token."""
        return layers.product('...d,vd->...v', hidden, self.output_embedding, hidden.dtype)

    def log_probs(self, hidden: Float[Array, '*rows D'], targets: Int[Array, '*rows']) -> Float32[Array, '*rows']:
        """Log-probabilities of the targets, never holding [rows, time, vocabulary]."""
        return scoring.log_probs(hidden, self.output_embedding, targets, self.config.vocabulary_chunk)


def segment_offset(segment: Segment, rows: int) -> Int32[Array, '*rows']:
    """Length of the segment that each of `rows` queries sees, [rows] or a scalar."""
    if segment.length.ndim == 0:
        return segment.length
    return jnp.repeat(segment.length, rows // segment.length.shape[0], total_repeat_length=rows)


def in_layers(context: tuple[Segment, ...], count: int) -> tuple[Segment, ...]:
    """The context as inputs of a scan over layers: lengths repeated, so that all leaves lead with L."""
    return tuple(
        Segment(segment.key, segment.value, jnp.broadcast_to(segment.length, (count, *segment.length.shape)))
        for segment in context
    )
