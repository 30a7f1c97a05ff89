"""Keeps random paths whatever they answer: the control that shows what the vote itself is worth."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t5x_selfimprove.consolidation.answers import AnswerFormat
from t5x_selfimprove.consolidation.selection import check_part, keep_weights, read_paths
from t5x_selfimprove.consolidation.vote import MajorityVote
from t5x_selfimprove.records import Questions, Samples, Verdict


@dataclasses.dataclass(frozen=True)
class Unvoted:
    """Keeps `max_kept` random paths of every question, with or without an answer.

    `chosen`, `share` and `votes` still report the vote (`MajorityVote` without thresholds, ties refused), so that the
    metrics of this arm stand beside those of a voted one. They decide nothing here, and `reward` is 1 for the kept
    paths and tells nothing of the vote either.

    Attributes:
      answers: how answers are read, for the report.
      max_kept: paths kept of a question at most, distinct ones first; None = all.
      distinct: of equal completions of a question only one is kept.
      weighting: 'path' = each kept path has weight 1; 'question' = those of a question have weight 1 together.

    Raises:
      TypeError, ValueError: a field of the wrong type or out of range.
    """

    answers: AnswerFormat
    max_kept: int | None = None
    distinct: bool = False
    weighting: str = 'path'

    def __post_init__(self):
        check_part(self)

    def __call__(self, models: Any, questions: Questions, samples: Samples, key: jax.Array) -> Verdict:
        """Keeps some of S = Q * N samples of Q questions; `models` is not used."""
        paths = read_paths(self, questions, samples)
        everyone = jnp.ones(paths.found.shape, jnp.float32)
        keep = keep_weights(self, everyone, paths, questions, key)
        reported = MajorityVote(self.answers).decide(paths, questions, key)
        return dataclasses.replace(reported, keep=keep, reward=(keep > 0).astype(jnp.float32))
