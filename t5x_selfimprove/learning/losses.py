"""Losses over minibatches of lessons, each as (total, weight) so that sums over minibatches and devices stay exact."""

from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from t5x_selfimprove.partitioning import constrain
from t5x_selfimprove.records import Lessons


class LearningModel(Protocol):
    """What learning asks of a model."""

    def forward_with_loss(self, tokens, position, segment, dropout_key=None) -> tuple[Array, Array]:
        """Hidden states [B, T, D] of packed rows, and the model's own part of the loss per token. An encoder-decoder
        takes `source` besides, what its encoder reads."""

    def log_probs(self, hidden: Float[Array, '*rows D'], targets: Int[Array, '*rows']) -> Float32[Array, '*rows']:
        """Log-probabilities of the targets."""


def next_token(
    model: LearningModel, lessons: Lessons, dropout_key: jax.Array | None
) -> tuple[Float32[Array, ''], Float32[Array, '']]:
    """Weighted negative log-likelihood of the completion tokens, and the model's own loss for each of them.

    Returns:
      (sum over tokens of weight * -log p, sum of weights); the loss of the literature is their quotient.
    """
    tokens = constrain(lessons.tokens, 'batch')
    # Rows packed for the other kind of model are refused by its signature, never misread.
    source = {} if lessons.source is None else {'source': constrain(lessons.source, 'batch')}
    hidden, own = model.forward_with_loss(tokens, lessons.position, lessons.segment, dropout_key, **source)
    log_probs = model.log_probs(hidden, lessons.targets)
    weight = jnp.sum(lessons.loss_weight)
    return own * weight - jnp.sum(log_probs * lessons.loss_weight), weight
