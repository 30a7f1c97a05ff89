"""An encoder-decoder small enough to run everywhere, for tests; and ways to put its inputs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from t5x_selfimprove.models.encoder_decoder import EncoderDecoder
from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig
from t5x_selfimprove.records import Sources
from tests.models.tiny import VOCABULARY

CONFIG = EncoderDecoderConfig(
    width=16, encoder_layers=2, decoder_layers=3, heads=2, head_size=8, feed_forward=24, buckets=8, furthest=12,
    vocabulary_chunk=16, start_token=2,
)  # fmt: skip


@functools.cache
def _model(config: EncoderDecoderConfig, vocabulary: int, seed: int) -> EncoderDecoder:
    """Parameters of the right shapes drawn by NumPy, which costs no compilation; norms are not left at one."""
    generator = np.random.default_rng(seed)

    def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if 'norm' in name:
            return jnp.asarray(generator.normal(1.0, 0.1, leaf.shape), leaf.dtype)
        scale = 1.0 if 'bias' in name else config.width**-0.5
        scale *= config.head_size**-0.5 if 'query' in name else 1.0  # in place of a scale of the scores
        return jnp.asarray(generator.normal(0.0, scale, leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(lambda: config.create(vocabulary, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def model(vocabulary: int = VOCABULARY, seed: int = 0, **fields) -> EncoderDecoder:
    """A model of `CONFIG` with other `fields`."""
    return _model(dataclasses.replace(CONFIG, **fields), vocabulary, seed)


def sources(tokens: jax.Array) -> Sources:
    """Rows that hold one prompt each and no padding."""
    return Sources(tokens, jnp.ones(tokens.shape, jnp.int32))


@jax.jit
def forward_logits(
    model: EncoderDecoder, tokens: jax.Array, position: jax.Array, segment: jax.Array, source: Sources
) -> jax.Array:
    """Logits [B, T, V] of packed rows."""
    return model.logits(model.forward(tokens, position, segment, source=source))


def pair_logits(model: EncoderDecoder, prompt: list[int], completion: list[int], room: int = 12) -> np.ndarray:
    """Logits [C + 1, V] before each token of one completion and after it; computed at `room`, so that pairs of all
    lengths share a compilation."""
    source, tokens = np.zeros((1, room), np.int32), np.zeros((1, room), np.int32)
    source[0, : len(prompt)] = prompt
    tokens[0, 1 : 1 + len(completion)] = completion
    place = jnp.arange(room)[None]
    inside = lambda count: (place < count).astype(jnp.int32)  # noqa: E731
    read = Sources(jnp.asarray(source), inside(len(prompt)))
    rows = 1 + len(completion)
    return np.asarray(forward_logits(model, jnp.asarray(tokens), place, inside(rows), read))[0, :rows]
