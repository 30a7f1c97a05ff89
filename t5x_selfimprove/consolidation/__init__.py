"""Consolidation: what a question's sampled paths say together, and which of them are worth training on.

    answers.py     AnswerFormat: token ids -> canonical answer bytes, on device
    canonical.py   ... the rules of each kind of answer
    selection.py   shared: paths of a question, equal ones, which are kept
    vote.py        MajorityVote: no label
    gold.py        GoldAnswer: the label
    unvoted.py     Unvoted: random paths, the control

How to add one
--------------
A consolidator is a frozen dataclass that can be called (`Consolidator` below). It is a static argument of the compiled
round: fields are plain values, and equal ones share a trace. In `__call__` everything is `jax.numpy` on arrays of fixed
shape. `read_paths` gives the answers question by question with padding already taken out, `keep_weights` turns weights
into the kept set (cap, distinct paths first, weighting). Whatever random draw it makes should be folded from the key
and the question's id, as `keep_weights` does, so that the verdict does not depend on the batch.

This one weighs each vote with the probability of its path, length-normalised (Wang et al. 2022, the normalised
weighted sum), and keeps the paths of the winner:

    import dataclasses
    import jax.numpy as jnp
    from t5x_selfimprove.consolidation import AnswerFormat
    from t5x_selfimprove.consolidation.selection import check_part, keep_weights, read_paths, same_answer
    from t5x_selfimprove.consolidation.vote import first_answer
    from t5x_selfimprove.records import Verdict

    @dataclasses.dataclass(frozen=True)
    class ProbabilityVote:
        answers: AnswerFormat
        max_kept: int | None = None
        distinct: bool = False
        weighting: str = 'path'

        def __post_init__(self):
            check_part(self)

        def __call__(self, models, questions, samples, key):
            paths = read_paths(self, questions, samples)
            length = jnp.maximum(samples.mask.sum(axis=1), 1)
            weight = jnp.exp(samples.log_probs.sum(axis=1) / length).reshape(paths.found.shape)
            weight = jnp.where(paths.found, weight, 0.0)
            score = jnp.where(same_answer(paths.answer), weight[:, None, :], 0.0).sum(axis=-1) * paths.found
            best = score.max(axis=1, keepdims=True)
            chosen = first_answer(paths.answer, paths.found & (score == best))
            agrees = paths.found & (paths.answer == chosen[:, None]).all(axis=-1)
            reward = agrees.astype(jnp.float32)
            keep = keep_weights(self, reward, paths, questions, key)
            share = best[:, 0] / jnp.maximum(weight.sum(axis=1), 1e-30)
            votes = paths.found.sum(axis=1).astype(jnp.float32)
            answer, found = paths.answer.reshape(-1, self.answers.room), paths.found.reshape(-1)
            return Verdict(answer, found, reward.reshape(-1), keep, chosen, share, votes)

To reach it from gin, add a line to the table of parts in `config/table.py`; `tests/consolidation` shows what to test,
and runs this example.
"""

from typing import Any, Protocol, runtime_checkable

import jax

from t5x_selfimprove.consolidation.answers import AnswerFormat, answer_bytes, answer_text
from t5x_selfimprove.consolidation.gold import GoldAnswer
from t5x_selfimprove.consolidation.unvoted import Unvoted
from t5x_selfimprove.consolidation.vote import MajorityVote
from t5x_selfimprove.records import Questions, Samples, Verdict

__all__ = [
    'AnswerFormat',
    'Consolidator',
    'GoldAnswer',
    'MajorityVote',
    'Unvoted',
    'answer_bytes',
    'answer_text',
]


@runtime_checkable
class Consolidator(Protocol):
    """What a recipe asks of a consolidator; implementations are frozen dataclasses."""

    answers: AnswerFormat

    def __call__(self, models: Any, questions: Questions, samples: Samples, key: jax.Array) -> Verdict:
        """Judges S = Q * N samples, question-major, of Q questions.

        Args:
          models: models that judge, where the consolidator needs any; else not used.
          questions: of the batch; those of weight 0 are padding and keep nothing.
          samples: their completions.
          key: of the round.
        """
        ...
