"""Mixture of experts: each token is answered by a few of many feed-forwards, chosen by a router."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from t5x_selfimprove.models import layers
from t5x_selfimprove.models.config import Experts


class MixtureOfExperts(nnx.Module):
    """Top-k routing over gated feed-forwards; no token is dropped.

    Tokens are sorted by expert and each expert multiplies its own stretch of them (`jax.lax.ragged_dot`), so the work
    is that of k experts a token, and a token's answer does not depend on the rest of the batch.
    """

    def __init__(self, width: int, experts: Experts, activation: str, key: jax.Array):
        router, gate, up, down = jax.random.split(key, 4)
        count, hidden = experts.count, experts.feed_forward
        names = ('experts', 'model', 'expert_feed_forward')
        self.router = layers.parameter(layers.normal(router, (width, count), width), 'model', 'router')
        self.gate = layers.parameter(layers.normal(gate, (count, width, hidden), width), *names)
        self.up = layers.parameter(layers.normal(up, (count, width, hidden), width), *names)
        self.down = layers.parameter(
            layers.normal(down, (count, hidden, width), hidden), 'experts', 'expert_feed_forward', 'model'
        )
        self.experts = experts
        self.activation = activation

    def __call__(
        self, x: Float[Array, 'B T D'], weight: Float32[Array, 'B T'] | None = None
    ) -> tuple[Float[Array, 'B T D'], Float32[Array, '']]:
        """The weighted answers of the chosen experts, and the load-balancing loss over tokens of positive weight."""
        flat = x.reshape(-1, x.shape[-1])
        probability = jax.nn.softmax(layers.product('td,de->te', flat, self.router[...], x.dtype), axis=-1)
        share, chosen = jax.lax.top_k(probability, self.experts.chosen)
        if self.experts.normalize:
            share = share / share.sum(axis=-1, keepdims=True)
        order = jnp.argsort(chosen.reshape(-1), stable=True)
        token = order // self.experts.chosen
        sizes = jnp.bincount(chosen.reshape(-1), length=self.experts.count).astype(jnp.int32)
        answers = self._answer(flat[token], sizes) * share.reshape(-1)[order][:, None]
        mixed = jnp.zeros(flat.shape, jnp.float32).at[token].add(answers)
        counted = jnp.ones(flat.shape[0]) if weight is None else weight.reshape(-1)
        return mixed.reshape(x.shape).astype(x.dtype), self._balance(probability, chosen, counted)

    def _answer(self, x: Float[Array, 'M D'], sizes: jax.Array) -> Float32[Array, 'M D']:
        def product(rows: jax.Array, weights: nnx.Param) -> jax.Array:
            return jax.lax.ragged_dot(rows, weights[...].astype(rows.dtype), sizes, preferred_element_type=jnp.float32)

        inner = layers.ACTIVATIONS[self.activation](product(x, self.gate)) * product(x, self.up)
        return product(inner.astype(x.dtype), self.down)

    def _balance(self, probability: jax.Array, chosen: jax.Array, weight: jax.Array) -> Float32[Array, '']:
        """Number of experts times the sum over experts of (share of the choices) * (mean router probability)
        (Fedus et al. 2021, arXiv:2101.03961, eq. 4, with k choices a token)."""
        total = jnp.maximum(weight.sum(), 1.0)
        choices = jax.nn.one_hot(chosen, self.experts.count).sum(axis=1)
        share = jnp.einsum('te,t->e', choices, weight) / total
        mean = jnp.einsum('te,t->e', probability, weight) / total
        return self.experts.count * jnp.sum(share * mean)
