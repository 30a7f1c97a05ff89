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
shape. `read_paths` gives the answers question by question with padding already taken out, and says which of them count
(those of truncated completions do not, unless the answer format lets them); `keep_weights` turns weights into the kept
set (cap, distinct paths first, weighting). Whatever random draw it makes should be folded from the key and the
question's id, as `keep_weights` does, so that the verdict does not depend on the batch.

This one keeps the paths of the winner where it leads the runner-up by a margin of votes, and splits no tie:

    import dataclasses
    import jax.numpy as jnp
    from t5x_selfimprove.consolidation import AnswerFormat
    from t5x_selfimprove.consolidation.selection import check_part, fraction, keep_weights, read_paths, same_answer
    from t5x_selfimprove.consolidation.vote import first_answer
    from t5x_selfimprove.records import Verdict

    @dataclasses.dataclass(frozen=True)
    class MarginVote:
        answers: AnswerFormat
        margin: int = 2
        max_kept: int | None = None
        distinct: bool = False
        weighting: str = 'path'

        def __post_init__(self):
            check_part(self)

        def __call__(self, models, questions, samples, key):
            paths = read_paths(self, questions, samples)
            count = (same_answer(paths.answer) & paths.voted[:, None, :]).sum(axis=-1) * paths.voted
            lead = count.max(axis=1)
            chosen = first_answer(paths.answer, paths.voted & (count == lead[:, None]))
            agrees = paths.voted & (paths.answer == chosen[:, None]).all(axis=-1)
            second = jnp.where(agrees, 0, count).max(axis=1)
            reward = (agrees & (lead - second >= self.margin)[:, None]).astype(jnp.float32)
            keep = keep_weights(self, reward, paths, questions, key)
            cast = paths.voted.sum(axis=1)
            share, votes = fraction(lead, cast), cast.astype(jnp.float32)
            answer, found, voted = paths.answer.reshape(-1, self.answers.room), paths.found, paths.voted
            return Verdict(
                answer, found.reshape(-1), reward.reshape(-1), keep, chosen, share, votes, voted.reshape(-1)
            )

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
