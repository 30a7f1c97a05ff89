"""From a bank to the batches that a round takes: the place where labels are dropped."""

import dataclasses
from typing import Any

import jax

from t5x_selfimprove.data.items import Bank, Item, Unlabelled, encode_questions
from t5x_selfimprove.records import Questions
from t5x_selfimprove.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Feed:
    """Questions of a bank as batches for the compiled program.

    Attributes:
      bank: where the questions come from.
      per_round: questions of one round, or of an evaluation.
      per_batch: Q, questions that are sampled at a time; small batches stay in a CPU's cache. The last is filled with
        padding.
      room: tokens of the longest question.
      too_long: 'refuse' stops before work starts; 'skip' leaves longer questions out and counts them.
      name: of the suite, where the questions are for evaluation.

    Raises:
      ValueError: sizes below 1.
    """

    bank: Bank
    per_round: int
    per_batch: int
    room: int
    too_long: str = 'refuse'
    name: str = 'held_out'

    def __post_init__(self):
        if self.per_batch < 1 or self.per_round < 1:
            raise ValueError(f'per_round = {self.per_round} and per_batch = {self.per_batch} must be at least 1')

    @property
    def batches(self) -> int:
        """G, batches of a round."""
        return -(-self.per_round // self.per_batch)

    def take(
        self, position: int, vocabulary: Vocabulary, answer_format: Any, labels: bool
    ) -> tuple[list[Item], Questions, int]:
        """The items from `position` on: (those that fit, [G, Q, ...] arrays of them, how many were too long)."""
        bank = self.bank if labels else Unlabelled(self.bank)
        items = bank.take(position, self.per_round)
        rows = self.batches * self.per_batch
        encoded, skipped = encode_questions(items, vocabulary, self.room, answer_format, self.too_long, count=rows)
        if skipped:
            items = [item for item in items if len(vocabulary.encode(item.question)) <= self.room]
        batches = jax.tree.map(lambda array: array.reshape(-1, self.per_batch, *array.shape[1:]), encoded)
        return items, batches, skipped
