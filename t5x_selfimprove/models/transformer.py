"""The decoder-only transformer: one class for all families, its options in `config.TransformerConfig`.

A model is a pytree of parameters (Flax NNX). It offers pure functions and has no modes:

    forward      whole rows, packed or padded: hidden states for learning and scoring
    read_prefix  the text before all prompts, as the context of `prefill`
    prefill      prompts: the hidden state after each, and the context of `extend`
    extend       one more token of every sample: hidden states, and the samples' keys and values written in place
    log_probs, entropies, logits   from hidden states
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import attention, cache, kernels, layers, parameters, scoring
from t5x_selfimprove.models.block import Block
from t5x_selfimprove.models.cache import Context, Own, Seats, Segment
from t5x_selfimprove.models.config import TransformerConfig


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
        self.final_norm = layers.NORMS[config.norm](config.width, config.norm_epsilon, config.norm_offset)
        own = layers.normal(head, (vocabulary_size, config.width), config.width)
        self.head = None if config.tied else layers.parameter(own, 'vocabulary', 'model')
        self.output_matrix: Any = None  # [D, V], the output embedding in the form of models/decoding.py

    @property
    def output_embedding(self) -> jax.Array:
        """[V, D], the rows that score each token."""
        return (self.embedding if self.head is None else self.head)[...]

    def embed(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B T D']:
        """Token embeddings in the compute dtype."""
        embedded = layers.lookup(self.embedding[...].astype(self.config.dtype), tokens)
        if self.config.embedding_scale:
            embedded = embedded * jnp.asarray(self.config.width**0.5, embedded.dtype)
        return partitioning.constrain_tokens(embedded)

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
        return self.forward_with_loss(tokens, position, segment, dropout_key)[0]

    def forward_with_loss(
        self,
        tokens: Int[Array, 'B T'],
        position: Int[Array, 'B T'],
        segment: Int[Array, 'B T'],
        dropout_key: jax.Array | None = None,
    ) -> tuple[Float[Array, 'B T D'], Float32[Array, '']]:
        """As `forward`, and the model's own part of the loss per token: the weighted load-balancing loss, the mean
        over layers (0 without experts)."""
        config, rate = self.config, self.config.dropout
        time = jnp.arange(tokens.shape[1])
        apart = time[:, None] - time[None, :]
        full = (segment[:, :, None] == segment[:, None, :]) & (apart >= 0)
        masks = (full, full & (apart < config.sliding_window))
        turns = self._turns(position)
        weight = (segment > 0).astype(jnp.float32)
        keys = None if dropout_key is None else jax.random.split(dropout_key, config.layers + 1)
        x = layers.dropout(self.embed(tokens), rate, None if keys is None else keys[-1])

        def layer(x, inputs):
            block, sliding, key = inputs
            query, keys, value = block.project(x, self._of_kind(sliding, *turns))
            part = self._attend_rows(query, keys, value, segment, sliding, masks, alone=True)
            return block.finish(x, attention.merge([part]), weight, rate, key)

        if config.remat == 'full':
            layer = jax.checkpoint(layer, prevent_cse=False)
        if config.remat == 'dots':
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
        inputs = (self.blocks, jnp.array(config.sliding), None if keys is None else keys[:-1])
        x, balance = jax.lax.scan(layer, x, inputs, unroll=config.unroll)
        share = 0.0 if config.experts is None else config.experts.balance
        return self.final_norm(x), share * balance.mean()

    def read_prefix(self, tokens: Int[Array, 'X']) -> Context:
        """The context made of text that all prompts begin with."""
        return self.prefill(tokens[None])[1]

    def prefill(
        self, tokens: Int[Array, 'B T'], length: Int32[Array, 'B'] | None = None, context: Context = ()
    ) -> tuple[Float[Array, 'B D'], Context]:
        """Reads prompts, each after the shared context.

        Args:
          tokens: prompts, padded at the right.
          length: their lengths, at least 1; None: no padding.
          context: segments before the prompts; a segment of B' rows is shared by B / B' prompts each.

        Returns:
          The hidden state of each prompt's last token, and the context with the prompts' segment at its end.
        """
        batch, time = tokens.shape
        config, steps = self.config, jnp.arange(time)
        places = cache.starts(context, batch)
        position = jnp.broadcast_to(steps + places[-1][:, None], (batch, time))
        apart = jnp.broadcast_to(steps[:, None] - steps[None, :], (batch, time, time))
        masks = (apart >= 0, (apart >= 0) & (apart < config.sliding_window))
        turns = self._turns(position)

        def layer(x, inputs):
            block, past, sliding = inputs
            query, key, value = block.project(x, self._of_kind(sliding, *turns))
            parts = [self._attend_rows(query, key, value, None, sliding, masks, alone=not context)]
            parts += [
                self._attend_segment(query, segment, sliding, position, place)
                for segment, place in zip(past, places, strict=False)
            ]
            x, _ = block.finish(x, attention.merge(parts))
            return x, (jnp.moveaxis(key, 1, 3), jnp.moveaxis(value, 1, 2))

        start = self.embed(tokens)
        x, kept = cache.over_layers(layer, start, self.blocks, context, jnp.array(config.sliding), config.unroll)
        last = x[:, -1] if length is None else jnp.take_along_axis(x, (length - 1)[:, None, None], axis=1)[:, 0]
        return self.final_norm(last), (*context, cache.segment_of(kept, length, self._panel))

    def new_own(self, rows: int, room: int, kind: str = cache.KINDS[0]) -> Own:
        """An empty ring for `rows` samples that read up to `room` tokens, in the compute dtype or in int8."""
        config, dtype = self.config, self.config.dtype
        panel = self._panel if kind == cache.KINDS[0] else 0
        heads, size = config.kv_heads, config.head_size
        return cache.new_own(config.layers, rows, heads, room, size, dtype, self._stacked, kind, panel)

    def extend(
        self, tokens: Int[Array, 'S'], context: Context, own: Own, seats: Seats | None = None
    ) -> tuple[Float[Array, 'S D'], Own]:
        """Reads one more token of every sample.

        Args:
          tokens: the token to read, number `own.length` of each sample.
          context: the segments before the samples' own tokens; each is shared by S / B samples.
          own: what the samples have read so far.
          seats: which segments each sample reads; None: the samples are in the order of the contexts.

        Returns:
          The hidden state that the token after is drawn from, and the ring with the token in it (written in place
          inside a loop).
        """
        places = cache.starts(context, tokens.shape[0], seats)
        position = (places[-1] + own.length)[:, None]
        turns, visible = self._turns(position), own.visible()
        if not self._stacked:
            # Through a branch they come out as arrays: XLA would compute them anew for every head of every layer.
            turns = jax.lax.cond(own.step >= 0, lambda: turns, lambda: jax.tree.map(jnp.zeros_like, turns))
        near = visible & (own.ages() < self.config.sliding_window)

        def layer(carry, inputs):
            x, arrays = carry
            block, past, (sliding, number) = inputs
            query, key, value = block.project(x, self._of_kind(sliding, *turns))
            arrays, mine = own.write(arrays, key, value, number)
            parts = [
                self._attend_segment(query, segment, sliding, position, place, seats)
                for segment, place in zip(past, places, strict=False)
            ]
            allowed = self._of_kind(sliding, visible, near)
            parts.append(attention.attend_own(query, mine, own, self.config.attention_softcap, allowed))
            x, _ = block.finish(x, attention.merge(parts))
            return (x, arrays), None

        inputs = (jnp.array(self.config.sliding), np.arange(self.config.layers))
        start = (self.embed(tokens[:, None]), (own.key, own.value))
        (x, arrays), _ = cache.over_layers(layer, start, self.blocks, context, inputs, self.config.unroll)
        return self.final_norm(x[:, 0]), own.after(arrays)

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
    def _stacked(self) -> bool:
        return not isinstance(self.blocks, nnx.List)

    @property
    def _panel(self) -> int:
        return 0 if self._stacked else attention.panel(self.config.dtype, self.config.attention_softcap)

    @property
    def _finish(self) -> scoring.Finish:
        return scoring.Finish(self.config.logit_scale, self.config.logit_softcap)

    def _turns(self, position: Int[Array, 'B T']) -> tuple[layers.Rotation | None, layers.Rotation | None]:
        """Rotations of the full and of the sliding layers."""
        config = self.config
        if config.rope is None:
            return None, None
        full = layers.rotation(config.rope.frequencies(config.head_size), position)
        if config.local_rope is None:
            return full, full
        return full, layers.rotation(config.local_rope.frequencies(config.head_size), position)

    def _of_kind(self, sliding: jax.Array, full: Any, local: Any) -> Any:
        """What belongs to a layer's kind; chosen while the program runs only where the layers differ."""
        if len(set(self.config.sliding)) == 1:
            return local if self.config.sliding[0] else full
        if full is local:
            return full
        return jax.tree.map(lambda one, other: jnp.where(sliding, other, one), full, local)

    def _attend_rows(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        segment: Int[Array, 'B T'] | None,
        sliding: jax.Array,
        masks: tuple[jax.Array, jax.Array],
        alone: bool,
    ) -> attention.Part:
        """Attention within rows, by the kernel for their length. `masks` are of the full and of the sliding layers."""
        config = self.config
        name, _ = kernels.choose(config, key.shape[1], partitioning.platform())
        if name == 'plain' or (name == 'fused' and not alone):
            # Rows of learning may lie on several devices between their tokens; prompts do not.
            plain = attention.attend_prompt if segment is None else attention.attend
            return plain(query, key, value, self._of_kind(sliding, *masks), config.attention_softcap)

        def attend(window: int) -> attention.Part:
            return kernels.attend_rows(name, query, key, value, segment, window, config, alone)

        if len(set(config.sliding)) == 1:
            return attend(config.sliding_window if config.sliding[0] else 0)
        # The window is a part of the kernel: one for each kind of layer.
        return jax.lax.cond(sliding, lambda: attend(config.sliding_window), lambda: attend(0))

    def _attend_segment(
        self,
        query: jax.Array,
        segment: Segment,
        sliding: jax.Array,
        position: jax.Array,
        start: jax.Array,
        seats: Seats | None = None,
    ) -> attention.Part:
        """Attention to a segment that begins at position `start`, as far back as the layer sees."""
        allowed = None
        if any(self.config.sliding):
            near = cache.within(position, start, segment.room, self.config.sliding_window)
            allowed = self._of_kind(sliding, jnp.ones_like(near), near)
        return attention.attend_shared(query, segment, seats, self.config.attention_softcap, allowed)
