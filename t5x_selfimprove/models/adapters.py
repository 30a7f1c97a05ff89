"""Low-rank adapters: a large model is trained through a few small matrices, its own weights stay as they are.

The library `qwix` makes adapters by watching the arrays a module reads; weights that a scan over layers slices are no
longer those arrays, so it does not fit models whose layers are stacked.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_selfimprove.models import layers

# Weights that can be adapted, by name, and how many of their axes (after the layers) meet the input.
TARGETS = {'query': 1, 'key': 1, 'value': 1, 'out': 2, 'gate': 1, 'up': 1, 'down': 1}


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): W + alpha / rank * A B, where A and B alone are trained.

    A starts with the variance of W's own start and B at zero, so that the adapted model begins as the model it was.
    Left out of the paper: dropout before A. Experts, embeddings and the output embedding are not adapted.

    Raises:
      ValueError: a number out of range, or a weight that cannot be adapted.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ('query', 'key', 'value', 'out', 'gate', 'up', 'down')
    merge: bool = True  # sampling reads W + A B as one matrix: faster, and a copy of the adapted weights

    def __post_init__(self):
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f'LowRank needs rank >= 1 and alpha > 0; they are {self.rank}, {self.alpha}')
        unknown = sorted(set(self.targets) - set(TARGETS))
        if unknown or not self.targets:
            raise ValueError(f'LowRank.targets must be some of {sorted(TARGETS)}; they are {self.targets}')


class Adapted(nnx.Module):
    """A weight and its adapter; reads (`[...]`) as the merged weight, in float32."""

    def __init__(self, weight: nnx.Param, inputs: int, low_rank: LowRank, key: jax.Array):
        axes = weight.get_metadata()['axes']
        stack = axes.index('layers') + 1 if 'layers' in axes else 0
        shape, end = weight.shape, stack + inputs
        fan_in = math.prod(shape[stack:end])
        start = layers.normal(key, (*shape[:end], low_rank.rank), fan_in)
        self.weight = layers.Frozen(weight[...], axes=axes)
        self.first = layers.parameter(start, *axes[:end], 'low_rank')  # A
        second = jnp.zeros((*shape[:stack], low_rank.rank, *shape[end:]))
        self.second = layers.parameter(second, *axes[:stack], 'low_rank', *axes[end:])  # B
        self.scale = low_rank.alpha / low_rank.rank
        self.merge = low_rank.merge

    def __getitem__(self, _: Any) -> jax.Array:
        """The merged weight of one layer, or of all layers where they are stacked."""

        def merge(weight: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
            return weight + self.scale * jnp.tensordot(first, second, axes=1, preferred_element_type=jnp.float32)

        axes = self.first.get_metadata()['axes']
        stacked = 'layers' in axes and self.first.ndim == len(axes)  # a scan has taken one layer out otherwise
        return (jax.vmap(merge) if stacked else merge)(self.weight[...], self.first[...], self.second[...])

    def product(self, subscripts: str, x: jax.Array, dtype: Any) -> jax.Array:
        """`layers.product` with the weight and, apart, with the two thin matrices."""
        operands, result = subscripts.split('->')
        left, right = operands.split(',')
        inside = ''.join(letter for letter in right if letter in left)
        outside = ''.join(letter for letter in right if letter not in left)
        thin = ''.join(letter for letter in left if letter not in inside) + 'z'
        plain = layers.matrix_product(subscripts, x, self.weight[...], dtype)
        narrow = layers.matrix_product(f'{left},{inside}z->{thin}', x, self.first[...], dtype)
        return plain + self.scale * layers.matrix_product(
            f'{thin},z{outside}->{result}', narrow, self.second[...], dtype
        )


def adapt(model: Any, low_rank: LowRank | None, key: jax.Array) -> Any:
    """The model with an adapter at every weight named in `targets`; all other parameters no longer train.

    Args:
      model: a model without adapters; its arrays are shared, its modules are not changed.
      low_rank: the adapters; None returns the model as it is.
      key: of their start.

    Raises:
      ValueError: the model has none of the targets.
    """
    if low_rank is None:
        return model
    keys = iter(jax.random.split(key, 1000))  # more than a model has kinds of weights

    def change(name: str, value: Any) -> Any:
        if name in low_rank.targets and 'experts' not in value.get_metadata()['axes']:
            return Adapted(value, TARGETS[name], low_rank, next(keys))
        return layers.Frozen(value[...], axes=value.get_metadata()['axes'])

    adapted = changed(model, nnx.Param, change)
    if not adapters_of(adapted):
        raise ValueError(f'the model has no weight named {", ".join(low_rank.targets)} to adapt')
    return adapted


def merged(model: Any) -> Any:
    """The model with every adapter added into its weight, in the shapes and names of a model without adapters."""
    return _plain(model, lambda adapted: adapted[...].astype(adapted.weight.dtype))


def unadapted(model: Any) -> Any:
    """The model as it is without its adapters."""
    return _plain(model, lambda adapted: adapted.weight.get_value())


def with_base(model: Any, base: Any) -> Any:
    """The adapters of `model` on the weights of `base`, a model without adapters."""
    if not adapters_of(model):
        return base
    arrays = dict(_named(base))
    return jax.tree_util.tree_map_with_path(lambda path, leaf: arrays.get(_name(path, '.weight'), leaf), model)


def for_sampling(model: Any) -> Any:
    """The model as samples are drawn from it: merged, where its adapters ask for that."""
    return merged(model) if any(adapted.merge for adapted in adapters_of(model)) else model


def adapters_of(model: Any) -> list[Adapted]:
    """The adapted weights of a model; none for a model that is no module."""
    if not isinstance(model, nnx.Module):
        return []
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, Adapted)]


def _plain(model: Any, weight: Callable[[Adapted], jax.Array]) -> Any:
    if not adapters_of(model):
        return model

    def change(_: str, value: Any) -> Any:
        kept = value.weight if isinstance(value, Adapted) else value
        array = weight(value) if isinstance(value, Adapted) else value.get_value()  # which may be a shape alone
        return layers.parameter(array, *kept.get_metadata()['axes'])

    return changed(model, (Adapted, layers.Frozen), change)


def changed(model: Any, kinds: Any, change: Callable[[str, Any], Any]) -> Any:
    """A copy of the model, its arrays shared, in which attributes of some kinds are others."""
    model = jax.tree.map(lambda array: array, model)
    inside = [module for _, module in nnx.iter_modules(model) if not isinstance(module, Adapted)]
    for module in inside:
        for name, value in sorted(vars(module).items()):
            if isinstance(value, kinds):
                setattr(module, name, change(name, value))
    return model


def _name(path: Any, without: str = '') -> str:
    return jax.tree_util.keystr(path, simple=True, separator='.').removesuffix('.value').removesuffix(without)


def _named(tree: Any) -> list[tuple[str, jax.Array]]:
    return [(_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
