"""From a bank to the batches that a round takes: the place where labels are dropped."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int64, UInt64

from t5x_selfimprove import processes, shares
from t5x_selfimprove.data.items import Bank, Item, Unlabelled, encode_questions, take_at
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
        self,
        position: int,
        vocabulary: Vocabulary,
        answer_format: Any,
        labels: bool,
        rows: Int64[np.ndarray, 'R'] | None = None,
    ) -> tuple[dict[int, Item], Questions]:
        """Some rows of each batch of the questions from `position` on. Of the bank no other question is read.

        Args:
          position: in the bank, of the first question.
          vocabulary: of the tokens.
          answer_format: of the labels; None where they are not used.
          labels: whether labels are read; else nothing behind this sees one.
          rows: which, of 0 .. per_batch - 1, rising; None: all of them.

        Returns:
          Items by their places, 0 .. per_round - 1, those that are too long among them; arrays [G, R, ...] of the same,
          in which the rows of those that are too long, and those behind the last question, are padding.

        Raises:
          ValueError, OSError: as the bank and `encode_questions` do.
        """
        rows = np.arange(self.per_batch) if rows is None else rows
        places = (np.arange(self.batches)[:, None] * self.per_batch + rows).ravel()
        read = places[places < self.per_round]
        items = take_at(self.bank if labels else Unlabelled(self.bank), position + read)
        encoded, _ = encode_questions(items, vocabulary, self.room, answer_format, self.too_long, count=len(places))
        batches = jax.tree.map(lambda array: array.reshape(self.batches, len(rows), *array.shape[1:]), encoded)
        return dict(zip(read.tolist(), items, strict=True)), batches


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The questions of a run's rounds, of which each process reads its share. All processes call it together."""

    mesh: jax.sharding.Mesh
    feed: Feed
    vocabulary: Vocabulary
    answer_format: Any
    labels: bool
    evaluated: UInt64[np.ndarray, 'E'] | None  # ids of questions that are not to be trained on; None: all may be

    def check(self, numbers: Sequence[int]) -> None:
        """Looks at the questions of some rounds, counted from 0.

        Raises:
          Exception: something is wrong with them: one is too long, cannot be spelled or is not to be trained on, or
            they cannot be read.
        """

        def look() -> None:
            for number in numbers:
                self._share(number)

        processes.agreed('looking at the questions', look)

    def take(self, numbers: Sequence[int]) -> tuple[list[dict[int, Item]], Questions, Bool[np.ndarray, 'rounds E']]:
        """The questions of some rounds: those that this process has read, by round and place; those of all processes
        [rounds, G, Q, ...] on the devices, padding last in each round; the places that have one. Raises as `check`."""
        read = processes.agreed('reading questions', lambda: [self._share(number) for number in numbers])
        share = jax.tree.map(lambda *arrays: np.stack(arrays), *[batches for _, batches in read])
        questions, there = shares.place(self.mesh, share, 2, self.feed.per_batch)
        return [items for items, _ in read], questions, there

    def _share(self, number: int) -> tuple[dict[int, Item], Questions]:
        rows, position = shares.rows_here(self.mesh, self.feed.per_batch), number * self.feed.per_round
        items, batches = self.feed.take(position, self.vocabulary, self.answer_format, self.labels, rows)
        evaluated = () if self.evaluated is None else self.evaluated
        shared = np.intersect1d(evaluated, shares.ids(batches.id, batches.weight))
        if len(shared):
            raise ValueError(
                f'{len(shared)} questions of round {number + 1} are evaluation questions (first: {shared[0]:016x}). '
                'Use other splits, or set train_on_evaluation=True to say that this is meant'
            )
        return items, batches
