"""Changes to the distribution that tokens are drawn from, and the draw itself."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32


class Transform(Protocol):
    """A change of the logits; frozen, so that it is static under jit."""

    def __call__(self, logits: Float32[Array, 'S V']) -> Float32[Array, 'S V']:
        """The changed logits; minus infinity forbids a token."""


@dataclasses.dataclass(frozen=True)
class TopK:
    """Keeps the k most likely tokens (and those that tie with the k-th)."""

    k: int

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f'top-k needs k >= 1; it is {self.k}')

    def __call__(self, logits: Float32[Array, 'S V']) -> Float32[Array, 'S V']:
        """Forbids every token less likely than the k-th."""
        least = jax.lax.top_k(logits, min(self.k, logits.shape[-1]))[0][:, -1:]
        return jnp.where(logits >= least, logits, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class TopP:
    """Nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751): the smallest set of most likely tokens that holds
    probability p. The most likely token is always kept; tokens that tie with the last one of the set are kept."""

    p: float

    def __post_init__(self):
        if not 0 < self.p <= 1:
            raise ValueError(f'top-p needs 0 < p <= 1; it is {self.p}')

    def __call__(self, logits: Float32[Array, 'S V']) -> Float32[Array, 'S V']:
        """Forbids every token outside the nucleus."""
        ranked = -jnp.sort(-logits, axis=-1)
        probability = jax.nn.softmax(ranked, axis=-1)
        inside = jnp.cumsum(probability, axis=-1) - probability < self.p
        least = jnp.min(jnp.where(inside, ranked, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(logits >= least, logits, -jnp.inf)


def draw(logits: Float32[Array, 'S V'], uniform: Float32[Array, 'S']) -> Int32[Array, 'S']:
    """Draws one token a row by inverting the cumulative distribution at one uniform number in [0, 1).

    One random number a token, where the Gumbel trick takes one for each entry of the vocabulary.
    """
    weight = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    cumulative = jnp.cumsum(weight, axis=-1)
    # A running sum is not flat to the last bit over forbidden tokens, and rounding may carry the threshold past the
    # last token with weight: a token without weight is never answered.
    able = weight > 0
    beyond = (cumulative > uniform[:, None] * cumulative[:, -1:]) & able
    last = weight.shape[-1] - 1 - jnp.argmax(able[:, ::-1], axis=-1)
    return jnp.where(beyond.any(axis=-1), jnp.argmax(beyond, axis=-1), last).astype(jnp.int32)
