"""The form of a model that samples are drawn from: made once a round, read at every token.

What pays is a matter of the platform. On a CPU (jax 0.10, one core of an AMD EPYC, 64 samples, 8 layers of width 512)
a step on layers of their own takes less than on slices of stacked ones, because XLA copies a slice before it multiplies
with it, and the product with the output embedding runs at 234 GFLOP/s as [D, V] against 71 as [V, D]. Matrices of
float32 are packed for a kernel of our own (`packed`). Accelerators read slices in place, and there layers stay stacked,
so that a deep model compiles as fast as a shallow one.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import adapters, cache, layers, native, packed, parameters

WEIGHTS = ('as trained', 'int8')


def for_sampling(model: Any, weights: str = 'as trained') -> Any:
    """The model as samples are drawn from it; whatever is no module is returned as it is.

    Adapters are merged where they ask for that, matrices are cast to the dtype of the computation or rounded where
    asked for, and parameters are laid out for sampling (gathered over the axes that only save memory).

    Args:
      model: as it is trained.
      weights: 'as trained', or 'int8': the matrices of attention and feed-forward, not of experts, and the output
        embedding, as whole numbers of -127 .. 127 times a scale for each output (symmetric, rounded to nearest).

    Raises:
      ValueError: another kind of weights.
    """
    check_weights(weights)
    if not isinstance(model, nnx.Module):
        return model
    model = adapters.for_sampling(model)
    apart = partitioning.platform() == 'cpu'
    model = jax.tree.map(lambda array: array, model)  # whose attributes may be set
    if weights == 'int8':
        model = _changed(model, Quantized)
        matrix = jnp.swapaxes(model.output_embedding, 0, 1)
        model.output_matrix = nnx.data(Quantized(matrix, 1, ('model', 'vocabulary')))
    else:
        model = narrowed(model)
        if apart:
            matrix, axes = jnp.swapaxes(model.output_embedding, 0, 1), ('model', 'vocabulary')
            pack = not native.trouble(model.config.dtype)
            model.output_matrix = nnx.data(Packed(matrix, 1, axes) if pack else layers.parameter(matrix, *axes))
            model = _changed(model, Packed) if pack else model
    # Last, so that what is gathered is what is read, in its few bytes.
    model = parameters.constrain(model, partitioning.SAMPLING)
    if apart:
        stack = _stack(model)
        stack.blocks = unstacked(stack.blocks)
    return model


def narrowed(model: nnx.Module) -> nnx.Module:
    """The model with its matrices in the dtype that it computes in, to which they are cast wherever they are read."""

    def narrow(leaf: jax.Array, axes: partitioning.Axes | None) -> jax.Array:
        names = [name for name in axes.names if name != 'layers'] if axes else []
        return leaf.astype(model.config.dtype) if 'model' in names and len(names) > 1 else leaf

    leaves, treedef = jax.tree.flatten(model)
    return jax.tree.unflatten(treedef, list(map(narrow, leaves, parameters.logical_axes(model))))


def check_weights(weights: str) -> None:
    """Raises ValueError for weights of a kind that there is not."""
    if weights not in WEIGHTS:
        raise ValueError(f'weights must be one of {", ".join(map(repr, WEIGHTS))}; it is {weights!r}')


def unstacked(blocks: nnx.Module) -> Any:
    """The stacked layers as an `nnx.List` of layers."""
    count = jax.tree.leaves(blocks)[0].shape[0]
    return nnx.List([jax.tree.map(lambda array, number=number: array[number], blocks) for number in range(count)])


def layers_apart(model: Any) -> int:
    """How many layers a program of one step consists of that are not one loop over stacked layers; 0: none."""
    if not isinstance(model, nnx.Module):
        return 0
    blocks = _stack(model).blocks
    return len(blocks) if isinstance(blocks, nnx.List) else 0


def _stack(model: Any) -> Any:
    """What holds the layers that a token to come goes through."""
    return model.decoder if hasattr(model, 'decoder') else model


class Quantized(nnx.Module):
    """A weight in int8 with a scale for each output."""

    def __init__(self, weight: jax.Array, inputs: int, axes: tuple[str, ...]):
        """Rounds a weight, the first `inputs` axes of which (after the layers) meet the input."""
        start = axes.index('layers') + 1 if 'layers' in axes else 0
        inside = tuple(range(start, start + inputs))
        values, scale = layers.to_int8(weight, inside)
        self.values = layers.parameter(values, *axes)
        self.scale = layers.parameter(jnp.squeeze(scale, inside), *(n for i, n in enumerate(axes) if i not in inside))

    def product(self, subscripts: str, x: jax.Array, dtype: Any) -> Float32[Array, '*shape']:
        """`layers.matrix_product` with the weight."""
        product = layers.matrix_product(subscripts, x, self.values[...].astype(dtype), dtype)
        return product * self.scale[...].astype(jnp.float32)


class Packed(nnx.Module):
    """A weight as panels for the kernel of `packed`."""

    def __init__(self, weight: jax.Array, inputs: int, axes: tuple[str, ...]):
        """Packs a weight, the first `inputs` axes of which (after the layers) meet the input."""
        start = axes.index('layers') + 1 if 'layers' in axes else 0
        stack, self.outputs = weight.shape[:start], weight.shape[start + inputs :]
        self.inputs = inputs
        matrix = weight.reshape(*stack, math.prod(weight.shape[start : start + inputs]), -1)
        self.panels = layers.parameter(packed.pack(matrix), *axes[:start], None, None, None)  # whole on every device

    def product(self, _: str, x: jax.Array, dtype: Any) -> Float32[Array, '*shape']:
        """`layers.matrix_product` with the weight, whose subscripts its shape tells."""
        multiply = lambda flat: packed.product(flat.astype(dtype), self.panels[...], math.prod(self.outputs))  # noqa: E731
        return layers.of_rows(multiply, x, self.inputs, self.outputs)


def _changed(model: nnx.Module, form: Callable[[jax.Array, int, tuple[str, ...]], Any]) -> nnx.Module:
    """The model with its matrices, but for those of experts and the output embedding, in another form."""

    def change(name: str, value: Any) -> Any:
        axes = value.get_metadata()['axes']
        if name not in adapters.TARGETS or 'experts' in axes:
            return value
        return form(value.get_value(), adapters.TARGETS[name], axes)

    return adapters.changed(model, (nnx.Param, layers.Frozen), change)


def bytes_of_own(model: Any, room: int, kind: str = cache.KINDS[0]) -> int:
    """Bytes that the ring of one sample takes."""
    shapes = jax.eval_shape(lambda model: model.new_own(1, room, kind), model)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
