"""Models small enough to run everywhere, for tests; and ways to put their inputs."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from t5x_selfimprove.models.config import Rope, TransformerConfig
from t5x_selfimprove.models.transformer import Transformer

VOCABULARY = 40
CONFIG = TransformerConfig(
    width=16, layers=2, heads=4, kv_heads=2, head_size=4, feed_forward=24, vocabulary_chunk=16, rope=Rope(theta=100.0)
)


@functools.cache
def _model(config: TransformerConfig, vocabulary: int, seed: int) -> Transformer:
    """Parameters of the right shapes drawn by NumPy, which costs no compilation; norms are not left at one."""
    generator = np.random.default_rng(seed)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        mean, scale = (1.0, 0.1) if leaf.ndim < 3 and leaf.shape[0] != vocabulary else (0.0, config.width**-0.5)
        return jnp.asarray(generator.normal(mean, scale, leaf.shape), leaf.dtype)

    return jax.tree.map(fill, jax.eval_shape(lambda: config.create(vocabulary, jax.random.key(0))))


def model(vocabulary: int = VOCABULARY, seed: int = 0, **fields) -> Transformer:
    """A model of `CONFIG` with other `fields`."""
    return _model(dataclasses.replace(CONFIG, **fields), vocabulary, seed)


def draw_tokens(*shape: int, seed: int = 0, vocabulary: int = VOCABULARY) -> jax.Array:
    """int32 token ids, none of them special."""
    return jnp.asarray(np.random.default_rng(seed).integers(3, vocabulary, shape), jnp.int32)


def whole(tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, positions and segments of rows that hold one example each and no padding."""
    position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return tokens, position, jnp.ones(tokens.shape, jnp.int32)


@jax.jit
def forward_logits(model: Transformer, tokens: jax.Array, position: jax.Array, segment: jax.Array) -> jax.Array:
    """Logits [B, T, V] of packed rows."""
    return model.logits(model.forward(tokens, position, segment))


def row_logits(model: Transformer, row: np.ndarray, room: int = 16) -> np.ndarray:
    """Logits [T, V] of one unpadded row; computed at `room`, so that rows of all lengths share a compilation."""
    padded = np.zeros((1, room), np.int32)
    padded[0, : len(row)] = row
    place = jnp.arange(room)[None]
    return np.asarray(forward_logits(model, padded, place, (place < len(row)).astype(jnp.int32)))[0, : len(row)]


def close(got: jax.Array, wanted: jax.Array, tolerance: float = 1e-5) -> None:
    """Asserts that two arrays are equal within an absolute and relative tolerance, and that they are finite."""
    got, wanted = np.asarray(got, np.float32), np.asarray(wanted, np.float32)
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(got, wanted, atol=tolerance, rtol=tolerance)


def largest_difference(left: object, right: object) -> float:
    """Over all arrays of two trees of the same shapes."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return max(float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()) for a, b in pairs)


def extended(tiny, own, tokens, context=()):
    """One more token of every sample: the ring after it, and the logits of the token after; as a scan wants it."""
    hidden, own = tiny.extend(tokens, context, own)
    return own, tiny.logits(hidden)


def host_calls(compiled: jax.stages.Compiled) -> list[str]:
    """The instructions of a compiled program by which it would talk to the host while it runs."""
    text = compiled.as_text()
    targets = re.findall(r'custom_call_target="([^"]*)"', text)
    moves = re.findall(r' (infeed|outfeed|send|recv)\(', text)
    return [target for target in targets if 'callback' in target] + moves
