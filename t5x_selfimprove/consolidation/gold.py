"""Keeps the paths that reach the label: for evaluation, and the upper reference of what votes can do."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t5x_selfimprove.consolidation.answers import AnswerFormat
from t5x_selfimprove.consolidation.selection import check_part, fraction, keep_weights, read_paths
from t5x_selfimprove.records import Questions, Samples, Verdict


@dataclasses.dataclass(frozen=True)
class GoldAnswer:
    """Keeps the paths whose answer equals the label of their question. Questions without a label keep nothing.

    The filter of STaR (Zelikman et al. 2022, arXiv:2203.14465; without its rationalisation, which samples again with
    the answer as a hint), of RFT (Yuan et al. 2023, arXiv:2308.01825; without its check of the equations) and of
    ReST-EM (Singh et al. 2023, arXiv:2312.06585, which keeps at most 10).

    In the verdict `chosen` is the label (zeros where it is not known), `share` the share of the counted paths that
    have it, `votes` the counted paths (those with an answer, `answers.truncated_votes` says whether truncated ones are
    among them), and `reward` 1 for each counted path that has it.

    Attributes:
      answers: how answers are read; the labels must have been encoded with an equal one.
      max_kept: paths kept of a question at most, chosen at random, distinct ones first; None = all.
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
        """Compares S = Q * N samples with the labels of Q questions; `models` is not used.

        Raises:
          ValueError: the labels have another room than the answers.
        """
        room = questions.answer.shape[-1]
        if room != self.answers.room:
            raise ValueError(
                f'GoldAnswer needs labels of {self.answers.room} bytes, these have {room}: '
                'encode them with an equal AnswerFormat'
            )
        paths = read_paths(self, questions, samples)
        known = questions.known & (questions.weight > 0)
        correct = paths.voted & known[:, None] & (paths.answer == questions.answer[:, None]).all(axis=-1)
        cast = paths.voted.sum(axis=1)
        reward = correct.astype(jnp.float32)
        return Verdict(
            answer=paths.answer.reshape(-1, self.answers.room),
            found=paths.found.reshape(-1),
            reward=reward.reshape(-1),
            keep=keep_weights(self, reward, paths, questions, key),
            chosen=jnp.where(known[:, None], questions.answer, 0).astype(jnp.uint8),
            share=fraction(correct.sum(axis=1), cast),
            votes=cast.astype(jnp.float32),
            voted=paths.voted.reshape(-1),
        )
