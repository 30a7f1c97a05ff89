"""Guards against collapse: what a model that only imitates itself loses first, and what is done when it does.

A model that is trained on the winners of its own vote can drift to few answers that it is sure of, right or wrong
(Shumailov et al. 2024, "AI models collapse when trained on recursively generated data"; for the majority vote as
reward, Zuo et al. 2025, TTRL, arXiv:2504.16084). The signs are measured in every round on what it samples anyway;
only the last needs labels, of a small set that is evaluated and never trained on.
"""

import collections
import dataclasses
from typing import Any

import numpy as np

from t5x_selfimprove.records import Samples, Verdict
from t5x_selfimprove.session import Session

ACTIONS = ('warn', 'stop', 'roll_back')

# Name of a bound -> the figure, whether it is the least, and the figure in words.
BOUNDS = {
    'min_entropy': ('entropy', True, 'entropy of a token, nats'),
    'min_distinct_answers': ('distinct_answers', True, 'distinct answers of a question'),
    'min_vote_margin': ('vote_margin', True, 'margin of the vote'),
    'max_vote_margin': ('vote_margin', False, 'margin of the vote'),
    'min_answered': ('answered', True, 'share of paths with an answer'),
    'min_length': ('mean_length', True, 'length of a path, tokens'),
    'max_length': ('mean_length', False, 'length of a path, tokens'),
    'max_truncated': ('truncated', False, 'share of paths cut off'),
    'max_wrong_consensus': ('wrong_consensus', False, 'share of wrong answers among the consolidated ones'),
}


class Collapsed(RuntimeError):
    """A guard that was to end the run has seen a sign of collapse."""


@dataclasses.dataclass(frozen=True)
class Guards:
    """Bounds on the figures of a round, each a mean over its paths or questions; None = not looked at.

    Attributes:
      action: 'warn' tells of it and goes on. 'stop' ends the run when the round is saved, to be looked at. 'roll_back'
        ends it without saving the round: the last checkpoint is that of the round before, and the same command, with
        other settings, does the round again.
      min_entropy: of a token, in nats: mean of -log p under the untempered model over the tokens of all paths.
      min_distinct_answers: different answers of a question, of those that were found.
      min_vote_margin, max_vote_margin: votes for the first answer less those for the second, in parts of the votes
        cast, 0..1; only questions with a vote.
      min_answered: share of the paths with an answer.
      min_length, max_length: of a path, in tokens.
      max_truncated: share of the paths that were cut off at the length limit.
      max_wrong_consensus: of the questions of the suite `canary` whose answer its consolidator kept, the share whose
        answer is wrong; looked at after each of its evaluations.
      canary: name of that suite: 'held_out', or one of train.Improve.out_of_domain.

    Raises:
      ValueError: an action that is none; a canary without bound, or the other way round.
    """

    action: str = 'warn'
    min_entropy: float | None = None
    min_distinct_answers: float | None = None
    min_vote_margin: float | None = None
    max_vote_margin: float | None = None
    min_answered: float | None = None
    min_length: float | None = None
    max_length: float | None = None
    max_truncated: float | None = None
    max_wrong_consensus: float | None = None
    canary: str | None = None

    def __post_init__(self):
        if self.action not in ACTIONS:
            raise ValueError(f'the action of Guards is one of {", ".join(ACTIONS)}; it is {self.action!r}')
        if (self.canary is None) != (self.max_wrong_consensus is None):
            raise ValueError(
                f'canary = {self.canary} and max_wrong_consensus = {self.max_wrong_consensus} do not go together: give '
                'both or neither'
            )

    def check_canary(self, suites: list[str]) -> None:
        """Raises ValueError unless the canary is one of the suites that are evaluated."""
        if self.canary is not None and self.canary not in suites:
            raise ValueError(f'the canary {self.canary!r} is no suite of this run; there are {", ".join(suites)}')

    def alarms(self, figures: dict[str, Any]) -> list[str]:
        """A sentence for every bound that the figures do not keep. A figure that is None, or not there, keeps it."""
        found = []
        for name, (figure, least, words) in BOUNDS.items():
            bound, value = getattr(self, name), figures.get(figure)
            if bound is not None and value is not None and not (value >= bound if least else value <= bound):
                found.append(f'{words}: {value:.3g}, {"less" if least else "more"} than {name} = {bound:g}')
        return found


class Watch:
    """The guards at work in a run: the alarms since its last checkpoint."""

    def __init__(self, guards: Guards, session: Session):
        self.guards, self.session = guards, session
        self.alarms: list[str] = []

    def look(self, number: int, figures: dict[str, Any]) -> None:
        """Writes and says which bounds the figures of round `number` do not keep."""
        for alarm in self.guards.alarms(figures):
            self.alarms.append(f'round {number}: {alarm}')
            self.session.writer.write('alarm', round=number, alarm=alarm, action=self.guards.action)
            self.session.display.say(f'ALARM, round {number}: {alarm}')

    def end_if_alarmed(self, saved: bool) -> None:
        """Ends the run where guards are to end it at this place, before or after the round was saved.

        Raises:
          Collapsed: says which alarms, and what the same command does then.
        """
        alarms, self.alarms = self.alarms, [] if saved else self.alarms
        if not alarms or self.guards.action != ('stop' if saved else 'roll_back'):
            return
        last = self.session.checkpoints.latest
        what = 'The round is saved' if saved else f'Rolled back: the last state is checkpoint {last}, of before'
        raise Collapsed(
            f'{"; ".join(alarms)}. {what}; the same command goes on from there. Change the recipe, or the bounds of '
            'guards.Guards where this is meant'
        )


def figures_of(samples: Samples, verdict: Verdict, questions: int) -> dict[str, float | None]:
    """The figures of a round that are not counted on the devices.

    Args:
      samples, verdict: of Q * N samples, NumPy arrays; padding questions are last.
      questions: number of those that are none.

    Returns:
      entropy, distinct_answers and vote_margin as `Guards` has them; None where there is nothing to take a mean of.
    """
    count = samples.ended.shape[0] // verdict.votes.shape[0]
    rows = questions * count
    mask = samples.mask[:rows]
    tokens = int(mask.sum())
    distinct, margins = [], []
    for start in range(0, rows, count):
        own = slice(start, start + count)
        answers = [bytes(answer) for answer in verdict.answer[own]]
        distinct.append(len({answer for answer, found in zip(answers, verdict.found[own], strict=True) if found}))
        votes = collections.Counter(answer for answer, voted in zip(answers, verdict.voted[own], strict=True) if voted)
        if votes:
            first, second = ([number for _, number in votes.most_common(2)] + [0])[:2]
            margins.append((first - second) / votes.total())
    return {
        'entropy': -float(samples.log_probs[:rows][mask].sum(dtype=np.float64)) / tokens if tokens else None,
        'distinct_answers': float(np.mean(distinct)) if distinct else None,
        'vote_margin': float(np.mean(margins)) if margins else None,
    }
