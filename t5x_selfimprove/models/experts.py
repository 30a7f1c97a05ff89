"""Mixture of experts: each token is answered by a few of many feed-forwards, chosen by a router."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import layers
from t5x_selfimprove.models.config import Experts
from t5x_selfimprove.partitioning import LEARNING, SAMPLING, Axes


class MixtureOfExperts(nnx.Module):
    """Top-k routing over gated feed-forwards; no token is dropped, and its answer does not depend on the rest of the
    batch.

    On a mesh each device answers for the experts that it holds: the tokens of its group along the mesh axis `expert`
    are gathered, and the answers summed and scattered back. No expert's weights move over that axis.
    """

    def __init__(self, width: int, experts: Experts, activation: str, key: jax.Array):
        router, gate, up, down = jax.random.split(key, 4)
        count, hidden = experts.count, experts.feed_forward
        self.router = layers.parameter(layers.normal(router, (width, count), width), 'model', 'router')
        self.gate = layers.parameter(layers.normal(gate, (count, width, hidden), width), *INNER)
        self.up = layers.parameter(layers.normal(up, (count, width, hidden), width), *INNER)
        self.down = layers.parameter(layers.normal(down, (count, hidden, width), hidden), *OUTER)
        self.experts = experts
        self.activation = activation

    def __call__(
        self, x: Float[Array, 'B T D'], weight: Float32[Array, 'B T'] | None = None
    ) -> tuple[Float[Array, 'B T D'], Float32[Array, '']]:
        """The weighted answers of the chosen experts, and the load-balancing loss over tokens of positive weight."""
        flat = partitioning.flattened(x)
        probability = jax.nn.softmax(layers.product('td,de->te', flat, self.router[...], x.dtype), axis=-1)
        share, chosen = jax.lax.top_k(probability, self.experts.chosen)
        if self.experts.normalize:
            share = share / share.sum(axis=-1, keepdims=True)
        weights = tuple(each[...].astype(x.dtype) for each in (self.gate, self.up, self.down))
        way = one_by_one if partitioning.platform() == 'cpu' else sorted_by_expert
        mixed = over_mesh(functools.partial(way, self.activation), flat, chosen, share, weights)
        counted = jnp.ones(flat.shape[0]) if weight is None else partitioning.flattened(weight)
        answers = partitioning.unflattened(mixed, *x.shape[:2]).astype(x.dtype)
        return answers, self._balance(probability, chosen, counted)

    def _balance(self, probability: jax.Array, chosen: jax.Array, weight: jax.Array) -> Float32[Array, '']:
        """Number of experts times the sum over experts of (share of the choices) * (mean router probability)
        (Fedus et al. 2021, arXiv:2101.03961, eq. 4, with k choices a token)."""
        total = jnp.maximum(weight.sum(), 1.0)
        choices = jax.nn.one_hot(chosen, self.experts.count).sum(axis=1)
        share = jnp.einsum('te,t->e', choices, weight) / total
        mean = jnp.einsum('te,t->e', probability, weight) / total
        return self.experts.count * jnp.sum(share * mean)


INNER = ('experts', 'model', 'expert_feed_forward')
OUTER = ('experts', 'expert_feed_forward', 'model')
Weights = tuple[Float[Array, 'E D F'], Float[Array, 'E D F'], Float[Array, 'E F D']]  # gate, up, down


def one_by_one(
    activation: str,
    start: Float32[Array, 'M D'],
    x: Float[Array, 'M D'],
    chosen: Int32[Array, 'M k'],
    share: Float32[Array, 'M k'],
    weights: Weights,
) -> Float32[Array, 'M D']:
    """Every expert reads every token and its answer counts where it was chosen: E / k times the needed work.

    It is the way of CPUs, where XLA turns a ragged product into E masked dense ones. CPU time, 64 experts of 128 x 64,
    4 of them chosen, for 512 tokens: 11 ms against 76 ms sorted, with gradients 54 ms against 292 ms; for 64 tokens
    3 ms against 7 ms (`tests/benchmarks/experts.py`).

    Args:
      activation: of the gate.
      start: zeros, which the answers are added to.
      x: tokens.
      chosen: numbers of the experts that answer each token; numbers that are none of `weights` count for nothing.
      share: weights of their answers.
      weights: of the experts.
    """

    def answer(mixed: jax.Array, inputs: tuple) -> tuple[jax.Array, None]:
        number, gate, up, down = inputs
        mine = jnp.where(chosen == number, share, 0.0).sum(axis=-1, keepdims=True)
        inner = layers.ACTIVATIONS[activation](layers.product('td,df->tf', x, gate, x.dtype))
        inner = inner * layers.product('td,df->tf', x, up, x.dtype)
        return mixed + mine * layers.product('tf,fd->td', inner, down, x.dtype), None

    return jax.lax.scan(answer, start, (jnp.arange(weights[0].shape[0]), *weights))[0]


def sorted_by_expert(
    activation: str,
    start: Float32[Array, 'M D'],
    x: Float[Array, 'M D'],
    chosen: Int32[Array, 'M k'],
    share: Float32[Array, 'M k'],
    weights: Weights,
) -> Float32[Array, 'M D']:
    """Tokens are sorted by expert and each expert multiplies its own stretch of them (`jax.lax.ragged_dot`): the work
    of k experts a token. Arguments as of `one_by_one`."""
    count, choices = weights[0].shape[0], chosen.shape[1]
    held = (chosen >= 0) & (chosen < count)
    place = jnp.where(held, chosen, count).reshape(-1)
    # The choices held elsewhere come last; a token chooses an expert once.
    order = jnp.argsort(place, stable=True)[: x.shape[0] * min(choices, count)]
    sizes = jnp.bincount(place, length=count).astype(jnp.int32)
    token = order // choices

    def product(rows: jax.Array, weight: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(rows, weight, sizes, preferred_element_type=jnp.float32)

    rows = x[token]
    inner = layers.ACTIVATIONS[activation](product(rows, weights[0])) * product(rows, weights[1])
    answers = product(inner.astype(x.dtype), weights[2]) * share.reshape(-1)[order][:, None]
    answers = jnp.where(held.reshape(-1)[order][:, None], answers, 0.0)
    return start.at[token].add(answers)


def over_mesh(
    answer: Callable[..., Float32[Array, 'M D']],
    x: Float[Array, 'M D'],
    chosen: Int32[Array, 'M k'],
    share: Float32[Array, 'M k'],
    weights: Weights,
) -> Float32[Array, 'M D']:
    """`answer` on every device for its own tokens and experts; at once where there is no mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return answer(jnp.zeros(x.shape), x, chosen, share, weights)

    def mine(x: jax.Array, chosen: jax.Array, share: jax.Array, weights: Weights) -> jax.Array:
        gather = lambda rows: jax.lax.all_gather(rows, 'expert', axis=0, tiled=True)  # noqa: E731
        first = jax.lax.axis_index('expert') * weights[0].shape[0]
        x = gather(x)
        start = jax.lax.pcast(jnp.zeros(x.shape), mesh.axis_names, to='varying')
        mixed = answer(start, x, gather(chosen) - first, gather(share), weights)
        mixed = jax.lax.psum_scatter(mixed, 'expert', scatter_dimension=0, tiled=True)
        return jax.lax.psum(mixed, 'tensor')

    rows = partitioning.spec_of(Axes(('tokens', None)), LEARNING)
    specs = tuple(partitioning.spec_of(Axes(names), SAMPLING) for names in (INNER, INNER, OUTER))
    padding = -x.shape[0] % partitioning.path_parts(mesh)
    padded = [jnp.pad(each, ((0, padding), (0, 0))) for each in (x, chosen, share)]
    split = jax.shard_map(mine, mesh=mesh, in_specs=(rows, rows, rows, specs), out_specs=rows)
    return split(*padded, weights)[: x.shape[0]]
