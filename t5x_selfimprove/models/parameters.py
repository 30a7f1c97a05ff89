"""What can be said of a tree of parameters: logical axes, counts, sharding from one rule table to another."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, UInt32

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import layers


def _is_parameter(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def logical_axes(tree: Any) -> list[partitioning.Axes | None]:
    """The logical axes of every array of a model, or of a tree made of models (optimizer state, gradients), in the
    order of `jax.tree.leaves`; None for an array without names."""
    found: list[partitioning.Axes | None] = []
    for leaf in jax.tree.leaves(tree, is_leaf=_is_parameter):
        axes = partitioning.Axes(leaf.get_metadata()['axes']) if _is_parameter(leaf) else None
        found += [axes] * len(jax.tree.leaves(leaf))
    return found


def shardings(tree: Any, mesh: jax.sharding.Mesh, rules: partitioning.Rules) -> Any:
    """A tree of `NamedSharding` like `tree`. Raises ValueError where a parameter cannot be divided."""
    return partitioning.tree_shardings(tree, logical_axes(tree), mesh, rules)


def constrain(tree: Any, rules: partitioning.Rules) -> Any:
    """Constrains every parameter to a rule table inside a program; a no-op where there is no mesh."""
    leaves, treedef = jax.tree.flatten(tree)
    constrained = [
        leaf if axes is None or len(axes.names) != leaf.ndim else partitioning.constrain(leaf, *axes.names, rules=rules)
        for leaf, axes in zip(leaves, logical_axes(tree), strict=True)
    ]
    return jax.tree.unflatten(treedef, constrained)


def stacked(layer: Any) -> Any:
    """Puts the name 'layers' before the axes of every parameter of a layer that `jax.vmap` has stacked."""
    for leaf in jax.tree.leaves(layer, is_leaf=_is_parameter):
        leaf.set_metadata(axes=('layers', *leaf.get_metadata()['axes']))
    return layer


def split(model: Any) -> tuple[Any, Any]:
    """(the parameters that train, the rest): two models with None in the other's places."""
    leaves, treedef = jax.tree.flatten(model, is_leaf=_is_parameter)
    trained = [None if isinstance(leaf, layers.Frozen) else leaf for leaf in leaves]
    rest = [leaf if isinstance(leaf, layers.Frozen) else None for leaf in leaves]
    return jax.tree.unflatten(treedef, trained), jax.tree.unflatten(treedef, rest)


def join(trained: Any, rest: Any) -> Any:
    """The model that `split` took apart."""
    whole = lambda leaf: leaf is None or _is_parameter(leaf)  # noqa: E731
    pairs = zip(jax.tree.leaves(trained, is_leaf=whole), jax.tree.leaves(rest, is_leaf=whole), strict=True)
    leaves = [one if other is None else other for one, other in pairs]
    return jax.tree.unflatten(jax.tree.structure(trained, is_leaf=whole), leaves)


def count(tree: Any) -> int:
    """Number of numbers in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def fingerprint(tree: Any) -> UInt32[Array, '2']:
    """64 bits that tell one set of parameters from another; to be called under `jit`.

    The bits of every number are mixed with its place, in the manner of xxHash, and summed as whole numbers, which is
    the same on every mesh. It is no protection against somebody who wants two models to look alike.
    """
    total = jnp.zeros(2, jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        width = jnp.dtype(leaf.dtype).itemsize
        bits = jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width])
        place = jnp.zeros(leaf.shape, jnp.uint32)  # number of each element, modulo 2**32; made shard by shard
        for axis, size in enumerate(leaf.shape):
            place = place * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        mixed = (bits.astype(jnp.uint32) ^ (place * jnp.uint32(2654435769))) * jnp.uint32(2246822507)
        mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(3266489909)
        # One reduction of both: two would keep `mixed`, an array as large as the parameter, between them.
        pair, zeros = (mixed ^ (mixed >> 16), mixed >> 7), (jnp.uint32(0), jnp.uint32(0))
        sums = jax.lax.reduce(pair, zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), range(leaf.ndim))
        total = total * jnp.uint32(16777619) + jnp.stack(sums)
    return total


def fingerprint_text(words: Any) -> str:
    """A fingerprint as 16 hex digits."""
    high, low = (int(word) for word in words)
    return f'{high:08x}{low:08x}'
