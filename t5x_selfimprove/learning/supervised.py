"""The supervised learner: next-token likelihood of kept paths, with replay of labelled examples mixed in."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5x_selfimprove.learning import losses
from t5x_selfimprove.learning.lessons import Packing, epoch_orders, minibatch, tokens_in
from t5x_selfimprove.learning.optimizers import AdamW, Optimizer
from t5x_selfimprove.metrics import Mean, Metrics, Sum, summed
from t5x_selfimprove.models import parameters
from t5x_selfimprove.records import Examples, Lessons, TrainState

EPOCH_ORDERS = 8  # distinct shuffles of the rows before they repeat


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Trains on kept samples by next-token likelihood (Huang et al. 2022, arXiv:2210.11610, section 3.2).

    The paper trains once from the base model; `start_from` and the number of rounds are free here. Left out: nothing
    of the loss; the paper's four prompt formats are made before (`formats.LessonFormat`).

    Raises:
      ValueError: a field out of range.
    """

    packing: Packing
    optimizer: Optimizer = AdamW()
    steps: int = 400  # optimizer updates a round
    batch_rows: int = 64  # rows of one update, replay included
    accumulate: int = 1  # parts that a batch is computed in, one after the other
    replay_share: float = 0.3  # of the rows of a batch
    start_from: str = 'previous'  # or 'base': the parameters that the run started with
    fresh_optimizer: bool = True  # moments and schedule start anew every round
    total_rounds: int = 1  # rounds the schedule spans where the optimizer is not fresh

    def __post_init__(self):
        if self.start_from not in ('previous', 'base'):
            raise ValueError(f"start_from must be 'previous' or 'base'; it is {self.start_from!r}")
        if not 0 <= self.replay_share <= 1:
            raise ValueError(f'replay_share must be in [0, 1]; it is {self.replay_share}')
        if min(self.steps, self.batch_rows, self.accumulate, self.total_rounds) < 1:
            raise ValueError('steps, batch_rows, accumulate and total_rounds must be at least 1')
        if self.batch_rows % self.accumulate:
            raise ValueError(f'batch_rows = {self.batch_rows} must be a multiple of accumulate = {self.accumulate}')

    @property
    def replay_rows(self) -> int:
        """Rows of a batch that are replayed."""
        return round(self.batch_rows * self.replay_share)

    @property
    def transformation(self) -> optax.GradientTransformation:
        """The optax transformation, its schedule spanning a round or the whole run."""
        return self.optimizer.build(self.steps * (1 if self.fresh_optimizer else self.total_rounds))

    def init(self, model: Any) -> optax.OptState:
        """Optimizer state for a model."""
        return self.transformation.init(parameters.split(model)[0])

    def __call__(
        self, state: TrainState, examples: Examples, replay: Lessons | None, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """One round of training.

        Args:
          state: the state before.
          examples: E examples; those of weight 0 are left out.
          replay: packed labelled rows, needed where `replay_share` is positive.
          key: the round's key.

        Returns:
          The state after, and the round's metrics.
        """
        pack_key, train_key = jax.random.split(key)
        lessons, dropped = self.packing(examples, pack_key)
        if self.start_from == 'base':
            state = dataclasses.replace(state, model=parameters.join(state.base, parameters.split(state.model)[1]))
        if self.fresh_optimizer:
            state = dataclasses.replace(state, optimizer=self.init(state.model))
        state, metrics = self.train(state, lessons, replay, train_key, self.steps)
        fresh = self.batch_rows if replay is None else self.batch_rows - self.replay_rows
        passes = self.steps * fresh / jnp.maximum(lessons.filled, 1)
        metrics |= {
            'dropped_examples': Sum(dropped.astype(jnp.float32)),
            'filled_rows': Sum(lessons.filled.astype(jnp.float32)),
            'passes': Mean(passes, jnp.ones(())),
        }
        return state, metrics

    def train(
        self, state: TrainState, lessons: Lessons, replay: Lessons | None, key: jax.Array, steps: int
    ) -> tuple[TrainState, Metrics]:
        """`steps` updates over minibatches of shuffled lessons and replay."""
        order_key, replay_key, dropout_key = jax.random.split(key, 3)
        fresh = self.batch_rows if replay is None else self.batch_rows - self.replay_rows
        sources = [(lessons, fresh, epoch_orders(lessons, EPOCH_ORDERS, order_key))]
        if replay is not None:
            sources.append((replay, self.replay_rows, epoch_orders(replay, EPOCH_ORDERS, replay_key)))
        sources = [source for source in sources if source[1]]

        def update(state, number):
            parts = [minibatch(rows, order, number * count, count) for rows, count, order in sources]
            batch = jax.tree.map(lambda *x: jnp.concatenate(x) if x[0].ndim else x[0], *parts)
            return self.update(state, batch, jax.random.fold_in(dropout_key, number))

        state, metrics = jax.lax.scan(update, state, jnp.arange(steps))
        return state, summed(metrics)

    def update(self, state: TrainState, batch: Lessons, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One optimizer update on one batch; the batch's loss is the mean over its weighted tokens."""
        trained, rest = parameters.split(state.model)
        use_dropout = state.model.config.dropout > 0
        micro = jax.tree.map(
            lambda x: x.reshape(self.accumulate, -1, *x.shape[1:]) if x.ndim else jnp.broadcast_to(x, self.accumulate),
            batch,
        )

        def loss(trained, rows, dropout_key):
            return losses.next_token(parameters.join(trained, rest), rows, dropout_key)

        def part(carry, inputs):
            number, rows = inputs
            dropout_key = jax.random.fold_in(key, number) if use_dropout else None
            (total, weight), gradient = jax.value_and_grad(loss, has_aux=True)(trained, rows, dropout_key)
            return jax.tree.map(jnp.add, carry, (total, weight, gradient)), None

        zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
        (total, weight, gradient), _ = jax.lax.scan(part, zero, (jnp.arange(self.accumulate), micro))
        gradient = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-6), gradient)
        updates, optimizer = self.transformation.update(gradient, state.optimizer, trained)
        metrics = {
            'loss': Mean(total, weight),
            'gradient_norm': Mean(optax.tree.norm(gradient), jnp.ones(())),
            'training_tokens': Sum(tokens_in(batch)),
        }
        model = parameters.join(optax.apply_updates(trained, updates), rest)
        return dataclasses.replace(state, step=state.step + 1, model=model, optimizer=optimizer), metrics
