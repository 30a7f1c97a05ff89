"""The layers of the transformers: matrix product, norm, rotary positions, gated feed-forward, dropout.

All of them compute in `dtype`, with float32 accumulation and float32 norms.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int


def parameter(value: jax.Array, *axes: str) -> nnx.Param:
    """A parameter with logical axis names (read by `parameters.logical_axes`)."""
    return nnx.Param(value, axes=axes)


def normal(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    """Float32 normal draws with variance 1 / fan_in, truncated at two standard deviations."""
    return jax.nn.initializers.truncated_normal(stddev=fan_in**-0.5)(key, shape, jnp.float32)


def product(subscripts: str, left: jax.Array, right: jax.Array, dtype: Any) -> jax.Array:
    """einsum of operands cast to `dtype`, accumulated and returned in float32."""
    return jnp.einsum(subscripts, left.astype(dtype), right.astype(dtype), preferred_element_type=jnp.float32)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation (Zhang and Sennrich 2019), in float32."""

    def __init__(self, width: int, epsilon: float):
        self.scale = parameter(jnp.ones(width), 'norm')
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, '*rows D']) -> Float[Array, '*rows D']:
        """Normalises the last axis; the dtype of `x` is kept."""
        wide = x.astype(jnp.float32)
        scaled = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (scaled * self.scale[...]).astype(x.dtype)


class GatedFeedForward(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int, key: jax.Array):
        gate, up, down = jax.random.split(key, 3)
        self.gate = parameter(normal(gate, (width, hidden), width), 'model', 'feed_forward')
        self.up = parameter(normal(up, (width, hidden), width), 'model', 'feed_forward')
        self.down = parameter(normal(down, (hidden, width), hidden), 'feed_forward', 'model')

    def __call__(self, x: Float[Array, '*rows D']) -> Float[Array, '*rows D']:
        """Same shape and dtype as `x`."""
        dtype = x.dtype
        gate = product('...d,df->...f', x, self.gate[...], dtype)
        up = product('...d,df->...f', x, self.up[...], dtype)
        return product('...f,fd->...d', jax.nn.silu(gate) * up, self.down[...], dtype).astype(dtype)


def rotate(x: Float[Array, '*rows T heads h'], position: Int[Array, '*rows T'], theta: float) -> jax.Array:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864), first half paired with second half.

    Args:
      x: queries or keys.
      position: absolute position of each token.
      theta: base of the wavelengths.

    Returns:
      The rotated array, in the dtype of `x`; angles are computed in float32.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position[..., None, None].astype(jnp.float32) * frequency
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of `x` and scales the rest; the identity without a key."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)
