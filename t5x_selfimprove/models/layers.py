"""The layers of the transformers: matrix product, norms, rotary positions, gated feed-forward, dropout.

All of them compute in `dtype`, with float32 accumulation and float32 norms.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int8

from t5x_selfimprove import partitioning

LARGEST_INT8 = 127
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'silu': jax.nn.silu,
    'gelu': lambda x: jax.nn.gelu(x, approximate=False),
    'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
    'relu': jax.nn.relu,
}


def parameter(value: jax.Array, *axes: str | None) -> nnx.Param:
    """A parameter with logical axis names (read by `parameters.logical_axes`)."""
    return nnx.Param(value, axes=axes)


class Frozen(nnx.Variable):
    """A parameter that is not trained."""


def normal(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    """Float32 normal draws with variance 1 / fan_in, truncated at two standard deviations."""
    return jax.nn.initializers.truncated_normal(stddev=fan_in**-0.5)(key, shape, jnp.float32)


def product(subscripts: str, left: jax.Array, right: jax.Array, dtype: Any) -> jax.Array:
    """einsum of operands cast to `dtype`, accumulated and returned in float32."""
    return jnp.einsum(subscripts, left.astype(dtype), right.astype(dtype), preferred_element_type=jnp.float32)


def linear(subscripts: str, x: jax.Array, weight: Any, dtype: Any) -> jax.Array:
    """`product` of `x` with a parameter, or with one of another form (adapters.Adapted, decoding.Quantized, Packed).

    The last letters of `x` meet the first of the weight. Both are made matrices first: the gradient of the weight is
    then one plain matrix product (on a CPU 2.6 times faster than over [rows, time, ...]).
    """
    if not isinstance(weight, nnx.Variable):
        return weight.product(subscripts, x, dtype)
    return matrix_product(subscripts, x, weight[...], dtype)


def matrix_product(subscripts: str, x: jax.Array, weight: jax.Array, dtype: Any) -> Float32[Array, '*shape']:
    """`product` over matrices made of `x`, [rows, inputs], and of the weight, [inputs, outputs].

    Raises:
      ValueError: the subscripts are not of the form rows inputs, inputs outputs -> rows outputs.
    """
    left, right, result = re.fullmatch(r'(.*),(.*)->(.*)', subscripts).groups()
    inputs = next(count for count in range(len(right), 0, -1) if left.endswith(right[:count]))
    rows, outputs = left.removesuffix(right[:inputs]), right[inputs:]
    if result != rows + outputs or set(outputs) & set(left):
        raise ValueError(f'{subscripts} is not a product of rows with a matrix')
    size = math.prod(weight.shape[:inputs])
    multiply = lambda flat: product('ri,io->ro', flat, weight.reshape(size, -1), dtype)  # noqa: E731
    return of_rows(multiply, x, inputs, weight.shape[inputs:])


def of_rows(
    multiply: Callable[[jax.Array], jax.Array], x: jax.Array, inputs: int, outputs: tuple[int, ...]
) -> Float32[Array, '*shape']:
    """What `multiply` makes of [rows, inputs], its columns as axes of these sizes, for `x`, the last `inputs` axes of
    which are the inputs; every device has the same rows in all of it."""
    lead = x.shape[: x.ndim - inputs]
    wide = x.reshape(*lead, math.prod(x.shape[len(lead) :]))
    if len(lead) == 2:
        matrix = partitioning.unflattened(multiply(partitioning.flattened(wide)), *lead)
    else:
        matrix = multiply(wide.reshape(math.prod(lead), wide.shape[-1]))
    return matrix.reshape(*lead, *outputs)


def to_int8(
    x: Float[Array, '*shape'], axes: tuple[int, ...]
) -> tuple[Int8[Array, '*shape'], Float32[Array, '*scales']]:
    """Whole numbers of -127 .. 127 and the scale to multiply them by, one for all that lie along `axes`, which stay as
    axes of length 1; symmetric, rounded to nearest."""
    wide = x.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=axes, keepdims=True)
    scale = jnp.maximum(largest, jnp.finfo(jnp.float32).tiny) / LARGEST_INT8
    return jnp.round(wide / scale).astype(jnp.int8), scale


def lookup(table: Float[Array, 'V D'], tokens: Int[Array, '*rows']) -> Float[Array, '*rows D']:
    """Rows of an embedding whose vocabulary may be split over the mesh.

    Every device takes the rows that it holds, and the sum over devices is the lookup, to the bit. Left to itself, XLA
    gathers the whole table on every device, for one token a sample in each step of decoding.
    """
    mesh, axis = jax.sharding.get_abstract_mesh(), partitioning.LEARNING['vocabulary']
    if mesh.empty or mesh.shape[axis] == 1 or table.shape[0] % mesh.shape[axis]:
        return table[tokens]

    def mine(table: jax.Array, tokens: jax.Array) -> jax.Array:
        place = tokens - jax.lax.axis_index(axis) * table.shape[0]
        held = (place >= 0) & (place < table.shape[0])
        rows = jnp.where(held[..., None], table[jnp.clip(place, 0, table.shape[0] - 1)], 0)
        # XLA's compiler for CPUs (jaxlib 0.10.2) aborts at a bfloat16 sum over some of the axes; one term is not zero.
        wide = jnp.float32 if partitioning.platform() == 'cpu' else rows.dtype
        return jax.lax.psum(rows.astype(wide), axis).astype(rows.dtype)

    whole = jax.sharding.PartitionSpec()
    split = jax.sharding.PartitionSpec(axis)
    return jax.shard_map(mine, in_specs=(split, whole), out_specs=whole, axis_names={axis})(table, tokens)


def softcap(x: Float32[Array, '*shape'], cap: float) -> Float32[Array, '*shape']:
    """cap * tanh(x / cap) (Gemma 2, arXiv:2408.00118, section 2); the identity where the cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467), in float32."""

    def __init__(self, width: int, epsilon: float, offset: float = 0.0):
        self.scale = parameter(jnp.full(width, 1.0 - offset), 'norm')
        self.epsilon = epsilon
        self.offset = offset

    def __call__(self, x: Float[Array, '*rows D']) -> Float[Array, '*rows D']:
        """Normalises the last axis; the dtype of `x` is kept."""
        wide = x.astype(jnp.float32)
        scaled = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (scaled * (self.offset + self.scale[...].astype(jnp.float32))).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al. 2016, arXiv:1607.06450) without a bias, in float32."""

    def __init__(self, width: int, epsilon: float, offset: float = 0.0):
        self.scale = parameter(jnp.full(width, 1.0 - offset), 'norm')
        self.epsilon = epsilon
        self.offset = offset

    def __call__(self, x: Float[Array, '*rows D']) -> Float[Array, '*rows D']:
        """Normalises the last axis; the dtype of `x` is kept."""
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        scaled = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (scaled * (self.offset + self.scale[...].astype(jnp.float32))).astype(x.dtype)


NORMS = {'rms': RMSNorm, 'layer': LayerNorm}


class GatedFeedForward(nnx.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int, activation: str, key: jax.Array):
        gate, up, down = jax.random.split(key, 3)
        self.gate = parameter(normal(gate, (width, hidden), width), 'model', 'feed_forward')
        self.up = parameter(normal(up, (width, hidden), width), 'model', 'feed_forward')
        self.down = parameter(normal(down, (hidden, width), hidden), 'feed_forward', 'model')
        self.activation = activation

    def __call__(self, x: Float[Array, '*rows D']) -> Float[Array, '*rows D']:
        """Same shape and dtype as `x`."""
        dtype = x.dtype
        gate = linear('...d,df->...f', x, self.gate, dtype)
        up = linear('...d,df->...f', x, self.up, dtype)
        inner = ACTIVATIONS[self.activation](gate) * up
        return linear('...f,fd->...d', inner, self.down, dtype).astype(dtype)


Rotation = tuple[Float32[Array, '*rows T 1 half'], Float32[Array, '*rows T 1 half']]  # cosines and sines


def rotation(frequencies: Float32[Any, 'half'], position: Int[Array, '*rows T']) -> Rotation:
    """Cosines and sines of the angles that `rotate` turns by, shared by all heads and layers."""
    angle = position[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, '*rows T heads h'], turn: Rotation | None) -> jax.Array:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864), first half paired with second half.

    Args:
      x: queries or keys.
      turn: from `rotation`; None: no positions, `x` as it is.

    Returns:
      The rotated array, in the dtype of `x`; computed in float32.
    """
    if turn is None:
        return x
    cos, sin = turn
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of `x` and scales the rest; the identity without a key."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)
