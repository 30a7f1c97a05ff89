"""Majority vote over the answers of a question's paths: the label-free training signal."""

import dataclasses
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, UInt8

from t5x_selfimprove.consolidation.answers import AnswerFormat
from t5x_selfimprove.consolidation.selection import (
    Paths,
    check_choice,
    check_integer,
    check_part,
    fraction,
    has_earlier,
    keep_weights,
    read_paths,
    same_answer,
)
from t5x_selfimprove.records import Questions, Samples, Verdict

TIES = ('refuse', 'split')
SHARES = ('answered', 'all')
COPIES = ('each', 'root', 'once')
BALLOTS = ('equal', 'probability')
UNIT = 1 << 16  # of a vote; N <= 4096 paths fit in 32 bits with room to spare


@dataclasses.dataclass(frozen=True)
class Tally:
    """The count of the votes of each question, in whole numbers of 1 / UNIT votes.

    answers of 5 paths    7  9  7  -  9
    leading               1  1  1  0  1      lead 2, leaders 2 (a tie), cast 4, ballots 5 (all times UNIT)
    """

    leading: Bool[Array, 'Q N']  # the path's answer has the most votes, alone or in a tie
    lead: Int32[Array, 'Q']  # votes for an answer in the lead
    leaders: Int32[Array, 'Q']  # answers in the lead; 0 = no votes
    cast: Int32[Array, 'Q']  # votes of the paths whose answer counts
    ballots: Int32[Array, 'Q']  # votes there might have been, had all paths an answer


def ballots_of(paths: Paths, copies: str, ballot: str = 'equal') -> Int32[Array, 'Q N']:
    """The vote of each path in units, whatever its answer: k identical paths cast k votes together ('each'), the
    square root of k ('root') or one ('once'), each of them one vote ('equal') or as much as the path is likely
    ('probability'). Whole numbers, so that ties are ties in any order of summation."""
    if copies == 'root':
        table = jnp.asarray(np.rint(UNIT / np.sqrt(np.arange(1, paths.copies.shape[1] + 1))), jnp.int32)
        vote = table[paths.copies - 1]
    else:
        vote = jnp.where(paths.repeated & (copies == 'once'), 0, UNIT)
    if ballot == 'probability':
        weighted = jnp.rint(vote * paths.likelihood).astype(jnp.int32)
        vote = jnp.where(vote > 0, jnp.maximum(weighted, 1), 0)  # however unlikely, a path has a say
    return jnp.where(paths.real, vote, 0).astype(jnp.int32)


def tally(paths: Paths, copies: str = 'each', ballot: str = 'equal') -> Tally:
    """Counts the votes of each question. Paths without an answer that counts, and padding, cast none."""
    ballots = ballots_of(paths, copies, ballot)
    votes = jnp.where(paths.voted, ballots, 0)
    same = same_answer(paths.answer)
    count = jnp.where(paths.voted, jnp.where(same, votes[:, None, :], 0).sum(axis=-1), 0)
    lead = count.max(axis=1)
    leading = paths.voted & (count == lead[:, None])
    opens = leading & ~has_earlier(same & paths.voted[:, None, :])  # the first path of each answer in the lead
    return Tally(leading, lead, opens.sum(axis=1, dtype=jnp.int32), votes.sum(axis=1), ballots.sum(axis=1))


@dataclasses.dataclass(frozen=True)
class MajorityVote:
    """Keeps the paths whose answer won the vote of their question; reads no label.

    With the defaults this is the rule of LMSI (Huang et al. 2022, arXiv:2210.11610): the majority answer of
    self-consistency (Wang et al. 2022, arXiv:2203.11171, unweighted sum), every path that agrees with it kept, no
    threshold. The papers leave ties and answers that cannot be read unspecified; `min_votes`, the cap and the
    weightings are not theirs either. A cap is in ReST-EM (Singh et al. 2023, arXiv:2312.06585: at most 10), distinct
    paths are in RFT (Yuan et al. 2023, arXiv:2308.01825, by equation list; here by tokens). `ballot` is the normalised
    weighted sum of Wang et al. (section 2, table 1), which they found to be no better than the unweighted; their sums
    by unnormalised probability are left out. A unanimous vote is `min_share = 1.0, share_of = 'all'`.

    The verdict tells the vote of every question, kept or not: `chosen` is the winner (zeros where there is none),
    `share` the share of an answer in the lead, `votes` the votes cast. A refused tie is `votes > 0` with `chosen` all
    zeros. `reward` is 1 for each path that agrees with the winner, whatever the thresholds.

    Attributes:
      answers: how answers are read and compared. Paths without an answer cast no vote, nor do truncated ones unless
        `answers.truncated_votes`; they are of "all paths" for `share_of`.
      min_share: least share of the winner for its paths to be kept, 0..1.
      share_of: what `share` and `min_share` are a share of: the votes cast ('answered'), or all paths ('all'; the
        confidence of Huang et al.).
      min_votes: least sum of the votes cast for anything to be kept.
      ties: with several answers in the lead, 'refuse' keeps nothing and chooses none; 'split' keeps the paths of all
        of them with weight (and reward) 1 / their number, and chooses the one drawn first.
      max_kept: paths kept of a question at most, chosen at random, distinct ones first; None = all.
      copies: what k identical completions of a question cast together: k votes ('each', the papers' rule), the square
        root of k ('root') or one ('once'). Paths that differ are independent evidence; a model that repeats itself is
        sure of itself, which is less than that but more than nothing ('root' is our own rule).
      ballot: what one path casts: one vote ('equal'), or its length-normalised probability under the model that drew
        it, exp(mean log-probability of its tokens), at temperature 1 whatever it was drawn at ('probability').
      distinct: of identical completions of a question only one is kept.
      weighting: 'path' = each kept path has weight 1 (1 / number of answers in a split tie); 'question' = the kept
        paths of a question have weight 1 together.

    Raises:
      TypeError, ValueError: a field of the wrong type or out of range.
    """

    answers: AnswerFormat
    min_share: float = 0.0
    share_of: str = 'answered'
    min_votes: int = 1
    ties: str = 'refuse'
    max_kept: int | None = None
    copies: str = 'each'
    ballot: str = 'equal'
    distinct: bool = False
    weighting: str = 'path'

    def __post_init__(self):
        check_part(self)
        if not isinstance(self.min_share, numbers.Real) or isinstance(self.min_share, bool):
            raise TypeError(f'MajorityVote.min_share must be a number; it is {self.min_share!r}')
        if not 0 <= self.min_share <= 1:
            raise ValueError(f'MajorityVote.min_share must be in 0..1; it is {self.min_share}')
        check_choice('MajorityVote.share_of', self.share_of, SHARES)
        check_integer('MajorityVote.min_votes', self.min_votes, 1)
        check_choice('MajorityVote.ties', self.ties, TIES)
        check_choice('MajorityVote.copies', self.copies, COPIES)
        check_choice('MajorityVote.ballot', self.ballot, BALLOTS)

    def __call__(self, models: Any, questions: Questions, samples: Samples, key: jax.Array) -> Verdict:
        """Votes on Q questions.

        Args:
          models: not used.
          questions: Q questions; those of weight 0 get an empty verdict.
          samples: S = Q * N samples, question-major.
          key: of the round; it only chooses among more than `max_kept` paths.
        """
        return self.decide(read_paths(self, questions, samples), questions, key)

    def decide(self, paths: Paths, questions: Questions, key: jax.Array) -> Verdict:
        """The same for paths that were read before."""
        votes = tally(paths, self.copies, self.ballot)
        decided = votes.leaders == 1 if self.ties == 'refuse' else votes.leaders >= 1
        agrees = votes.leading & decided[:, None]
        reward = agrees / jnp.maximum(votes.leaders, 1)[:, None].astype(jnp.float32)
        whole = votes.cast if self.share_of == 'answered' else votes.ballots
        # One unit of slack, so that 9 of 15 is 0.6 in the rounding of every device.
        enough = (votes.lead + 1 >= self.min_share * whole) & (votes.cast >= self.min_votes * UNIT)
        eligible = jnp.where(enough[:, None], reward, 0.0)
        return Verdict(
            answer=paths.answer.reshape(-1, self.answers.room),
            found=paths.found.reshape(-1),
            reward=reward.reshape(-1),
            keep=keep_weights(self, eligible, paths, questions, key),
            chosen=first_answer(paths.answer, agrees),
            share=fraction(votes.lead, whole),
            votes=votes.cast / jnp.float32(UNIT),
            voted=paths.voted.reshape(-1),
        )


def first_answer(answer: UInt8[Array, 'Q N A'], among: Bool[Array, 'Q N']) -> UInt8[Array, 'Q A']:
    """The answer of the first of these paths; zeros where there is none."""
    first = jnp.argmax(among, axis=1)
    taken = jnp.take_along_axis(answer, first[:, None, None], axis=1)[:, 0]
    return jnp.where(among.any(axis=1)[:, None], taken, 0).astype(jnp.uint8)
