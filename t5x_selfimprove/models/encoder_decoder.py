"""The encoder-decoder: T5 1.1 and its kin, one class, its options in `encoder_decoder_config.EncoderDecoderConfig`.

Raffel et al. 2020 (arXiv:1910.10683) with the changes of T5 1.1 (gated GELU, an output embedding of its own), mT5 (Xue
et al. 2020, arXiv:2010.11934), UL2 (Tay et al. 2022, arXiv:2205.05131), and the first T5 by option. Left out: dropout
of attention weights, inside the feed-forward and after the final norms, which T5 had.

The entry points are those of the decoder-only transformer, so that sampling and learning do not ask which of the two a
model is:

    forward      packed rows of completions, and of the prompts that their encoder reads
    read_prefix  the text before all prompts, kept as it is: an encoder that sees both ways reads it with each prompt
    prefill      prompts: each is encoded once, the decoder reads its start token
    extend       one more token of every sample: hidden states
    log_probs, entropies, logits   from hidden states

The N samples of a question share its keys and values of the cross attention, which are its encoded prompt, and those
of the start token.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import attention, cache, layers, parameters, relative_position, scoring
from t5x_selfimprove.models.cache import Own, Seats, Segment
from t5x_selfimprove.models.encoder_decoder_block import Block, bias_table
from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig
from t5x_selfimprove.records import Sources, record


@record
class Prefix:
    """Text that all prompts begin with."""

    tokens: Int[Array, 'X']


@record
class Context:
    """What the samples of each question share: keys and values of all decoder layers."""

    cross: Segment | tuple[Segment, ...]  # of the encoded prompt
    start: Segment | tuple[Segment, ...]  # of the start token, one entry long


class Stack(nnx.Module):
    """The blocks of the encoder or of the decoder, and the norm after them."""

    def __init__(self, config: EncoderDecoderConfig, decoder: bool, key: jax.Array):
        blocks, table = jax.random.split(key)
        keys = jax.random.split(blocks, config.decoder_layers if decoder else config.encoder_layers)
        self.blocks = parameters.stacked(jax.vmap(lambda key: Block(config, decoder, key))(keys))
        self.bias = None if config.bias_per_layer else bias_table(config, table)
        self.final_norm = layers.RMSNorm(config.width, config.norm_epsilon)

    def biases(self, of: Callable[[jax.Array], Any]) -> Callable[[Block], Any]:
        """Given what is made of a table of biases: the same for each block, made once where the blocks share one."""
        if self.bias is None:
            return lambda block: of(block.bias[...])
        shared = of(self.bias[...])
        return lambda block: shared


class EncoderDecoder(nnx.Module):
    """An encoder-decoder language model. See the module's docstring for its entry points."""

    def __init__(self, config: EncoderDecoderConfig, rows: int, key: jax.Array):
        embed, encoder, decoder, head = jax.random.split(key, 4)
        self.config = config
        shape, axes, width = (rows, config.width), ('vocabulary', 'model'), config.width
        self.embedding = layers.parameter(layers.normal(embed, shape, 1), *axes)
        self.encoder = Stack(config, False, encoder)
        self.decoder = Stack(config, True, decoder)
        self.head = None if config.tied else layers.parameter(layers.normal(head, shape, width), *axes)
        self.output_matrix: Any = None  # [D, V], the output embedding in the form of models/decoding.py

    @property
    def output_embedding(self) -> jax.Array:
        """[V, D], the rows that score each token."""
        return (self.embedding if self.head is None else self.head)[...]

    def embed(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B T D']:
        """Token embeddings in the compute dtype."""
        return partitioning.constrain_tokens(layers.lookup(self.embedding[...].astype(self.config.dtype), tokens))

    def encode(
        self, tokens: Int[Array, 'B U'], segment: Int[Array, 'B U'], dropout_key: jax.Array | None = None
    ) -> Float[Array, 'B U D']:
        """What the decoder attends to; a token sees all tokens of its own segment."""
        config, rate, room = self.config, self.config.dropout, tokens.shape[1]
        allowed = segment[:, :, None] == segment[:, None, :]
        bias = self.encoder.biases(lambda table: relative_position.bias(table, room, room, config.furthest, True))
        keys = None if dropout_key is None else jax.random.split(dropout_key, config.encoder_layers + 1)

        def layer(x, inputs):
            block, key = inputs
            first, second = (None, None) if key is None else jax.random.split(key)
            query, own, value = block.attention.own(x)
            x = block.attention.add(x, [attention.attend(query, own, value, allowed, bias=bias(block))], rate, first)
            return block.feed(x, rate, second), None

        x = layers.dropout(self.embed(tokens), rate, None if keys is None else keys[-1])
        inputs = (self.encoder.blocks, None if keys is None else keys[:-1])
        return self.encoder.final_norm(self._scan(layer, x, inputs)[0])

    def forward(
        self,
        tokens: Int[Array, 'B T'],
        position: Int[Array, 'B T'],
        segment: Int[Array, 'B T'],
        dropout_key: jax.Array | None = None,
        source: Sources | None = None,
    ) -> Float[Array, 'B T D']:
        """Hidden states of the decoder over whole rows.

        Args:
          tokens: completions, each after one place for the start token.
          position: position of each token in its segment; at position 0 the start token is read, whatever is in
            `tokens`.
          segment: segment of each token; 0 is padding, which nothing but padding sees.
          dropout_key: drops activations where given.
          source: the prompt of each segment.

        Raises:
          ValueError: there is no source.
        """
        if source is None:
            raise ValueError(
                'an encoder-decoder reads prompts apart from completions: set learning.Packing.source_length'
            )
        config, rate, room = self.config, self.config.dropout, tokens.shape[1]
        encoder_key, decoder_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        memory = self.encode(source.tokens, source.segment, encoder_key)
        time = jnp.arange(room)
        allowed = (segment[:, :, None] == segment[:, None, :]) & (time[:, None] >= time[None, :])
        crossing = segment[:, :, None] == source.segment[:, None, :]
        bias = self.decoder.biases(lambda table: relative_position.bias(table, room, room, config.furthest, False))
        keys = None if decoder_key is None else jax.random.split(decoder_key, config.decoder_layers + 1)

        def layer(x, inputs):
            block, key = inputs
            first, second, third = (None,) * 3 if key is None else jax.random.split(key, 3)
            query, own, value = block.attention.own(x)
            x = block.attention.add(x, [attention.attend(query, own, value, allowed, bias=bias(block))], rate, first)
            query = block.cross_attention.queries(x)
            part = attention.attend(query, *block.cross_attention.keys_values(memory), crossing)
            return block.feed(block.cross_attention.add(x, [part], rate, second), rate, third), None

        read = jnp.where(position == 0, config.start_token, tokens)
        x = layers.dropout(self.embed(read), rate, None if keys is None else keys[-1])
        inputs = (self.decoder.blocks, None if keys is None else keys[:-1])
        return self.decoder.final_norm(self._scan(layer, x, inputs)[0])

    def forward_with_loss(
        self,
        tokens: Int[Array, 'B T'],
        position: Int[Array, 'B T'],
        segment: Int[Array, 'B T'],
        dropout_key: jax.Array | None = None,
        source: Sources | None = None,
    ) -> tuple[Float[Array, 'B T D'], Float32[Array, '']]:
        """As `forward`, and the model's own part of the loss per token, of which there is none."""
        return self.forward(tokens, position, segment, dropout_key, source), jnp.zeros(())

    def read_prefix(self, tokens: Int[Array, 'X']) -> Prefix:
        """The context of `prefill` where all prompts begin with the same text."""
        return Prefix(tokens)

    def prefill(
        self, tokens: Int[Array, 'B P'], length: Int32[Array, 'B'], context: Prefix | tuple[()] = ()
    ) -> tuple[Float[Array, 'B D'], Context]:
        """Encodes prompts, each after the prefix, and reads the decoder's start token.

        Args:
          tokens: prompts, padded at the right.
          length: their lengths; with the prefix at least 1.
          context: from `read_prefix`.

        Returns:
          The hidden state that the first token is drawn from, and the context of the tokens to come.
        """
        batch = tokens.shape[0]
        if isinstance(context, Prefix):
            before = jnp.broadcast_to(context.tokens, (batch, context.tokens.shape[0])).astype(tokens.dtype)
            tokens, length = jnp.concatenate([before, tokens], axis=1), length + context.tokens.shape[0]
        inside = jnp.arange(tokens.shape[1]) < length[:, None]
        memory = self.encode(tokens, inside.astype(jnp.int32))
        start = self.embed(jnp.full((batch, 1), self.config.start_token, jnp.int32))
        return self._start(start, memory, inside[:, None], length)

    def _start(
        self,
        x: Float[Array, 'B 1 D'],
        memory: Float[Array, 'B U D'],
        inside: Bool[Array, 'B 1 U'],
        length: Int32[Array, 'B'],
    ) -> tuple[Float[Array, 'B D'], Context]:
        """The decoder over the start token, and the context of the tokens after it."""

        def layer(x, inputs):
            block, *_ = inputs
            query, key, value = block.attention.own(x)
            alone = attention.attend(query, key, value, jnp.ones((x.shape[0], 1, 1), bool))  # whatever its bias
            x = block.attention.add(x, [alone])
            cross_key, cross_value = block.cross_attention.keys_values(memory)
            part = attention.attend(block.cross_attention.queries(x), cross_key, cross_value, inside)
            x = block.feed(block.cross_attention.add(x, [part]))
            kept = (jnp.moveaxis(key, 1, 3), jnp.moveaxis(value, 1, 2))
            return x, (kept, (jnp.moveaxis(cross_key, 1, 3), jnp.moveaxis(cross_value, 1, 2)))

        config, blocks = self.config, self.decoder.blocks
        numbers = np.arange(config.decoder_layers)
        x, kept = cache.over_layers(layer, x, blocks, (), numbers, config.unroll)
        own, cross = zip(*kept, strict=True) if isinstance(blocks, nnx.List) else kept
        start = cache.segment_of(own, jnp.ones_like(length))
        return self.decoder.final_norm(x[:, 0]), Context(cache.segment_of(cross, length), start)

    def new_own(self, rows: int, room: int, kind: str = cache.KINDS[0]) -> Own:
        """An empty ring for `rows` samples that read up to `room` tokens, in the compute dtype or in int8."""
        config, stacked = self.config, not isinstance(self.decoder.blocks, nnx.List)
        size, dtype = config.head_size, config.dtype
        return cache.new_own(config.decoder_layers, rows, config.heads, room, size, dtype, stacked, kind)

    def extend(
        self, tokens: Int[Array, 'S'], context: Context, own: Own, seats: Seats | None = None
    ) -> tuple[Float[Array, 'S D'], Own]:
        """Reads one more token of every sample.

        Args:
          tokens: the token to read, number `own.length` of each sample.
          context: of `prefill`; S / B samples share each prompt.
          own: what the samples have read so far.
          seats: which prompts the samples share; None: they are in the order of the prompts.

        Returns:
          The hidden state that the token after is drawn from, and the ring with the token in it (written in place
          inside a loop).
        """
        config, visible, ages = self.config, own.visible(), own.ages()
        biases = self.decoder.biases(
            lambda table: relative_position.step_bias(table, own.length, ages, config.furthest)
        )

        def layer(carry, inputs):
            x, arrays = carry
            block, (cross, start), number = inputs
            to_start, to_own = biases(block)
            query, key, value = block.attention.own(x)
            arrays, mine = own.write(arrays, key, value, number)
            parts = [
                attention.attend_shared(query, start, seats, bias=to_start),
                attention.attend_own(query, mine, own, 0.0, visible, to_own),
            ]
            x = block.attention.add(x, parts)
            part = attention.attend_shared(block.cross_attention.queries(x), cross, seats)
            return (block.feed(block.cross_attention.add(x, [part])), arrays), None

        carry = (self.embed(tokens[:, None]), (own.key, own.value))
        numbers, shared = np.arange(config.decoder_layers), (context.cross, context.start)
        (x, arrays), _ = cache.over_layers(layer, carry, self.decoder.blocks, shared, numbers, config.unroll)
        return self.decoder.final_norm(x[:, 0]), own.after(arrays)

    def logits(self, hidden: Float[Array, '*rows D']) -> Float32[Array, '*rows V']:
        """Unnormalised scores of every token."""
        if self.output_matrix is not None:
            return self._finish(layers.linear('...d,dv->...v', hidden, self.output_matrix, hidden.dtype))
        return self._finish(layers.product('...d,vd->...v', hidden, self.output_embedding, hidden.dtype))

    def log_probs(self, hidden: Float[Array, '*rows D'], targets: Int[Array, '*rows']) -> Float32[Array, '*rows']:
        """Log-probabilities of the targets, never holding [rows, time, vocabulary]."""
        chunk = self.config.vocabulary_chunk
        return scoring.log_probs(hidden, self.output_embedding, targets, chunk, self._finish)

    def entropies(self, hidden: Float[Array, '*rows D']) -> Float32[Array, '*rows']:
        """Entropy of the next token in nats, never holding [rows, time, vocabulary]."""
        return scoring.entropies(hidden, self.output_embedding, self.config.vocabulary_chunk, self._finish)

    @property
    def _finish(self) -> scoring.Finish:
        return scoring.Finish(self.config.scale)

    def _scan(self, layer: Callable, x: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        """The layers one after the other, rematerialised in the backward pass as configured."""
        config = self.config
        if config.remat == 'full':
            layer = jax.checkpoint(layer, prevent_cse=False)
        if config.remat == 'dots':
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
        return jax.lax.scan(layer, x, inputs, unroll=config.unroll)
