"""No more paths than a vote needs: questions whose majority is settled give their slots to others."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt8

from t5x_selfimprove.sampling.slots import Loop, Paths, Plan


class Answers(Protocol):
    """What reads the answers of paths; `consolidation.AnswerFormat` is one."""

    truncated_votes: bool  # whether the answer of a path that was cut off counts

    def extract(self, tokens, mask, ended):
        """(canonical bytes [S, A], whether an answer was found [S])."""


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Stops drawing for a question once its majority is settled.

    That is once the paths that are not finished cannot change it any more: the first answer leads the second by more
    than they are. With a `confidence` also once the first answer is that likely to be the more frequent one of the two
    leading answers, by a Beta posterior with a flat prior (Aggarwal et al. 2023, arXiv:2305.11860, eq. 2), after at
    least `least` paths. Of the paths then given up nothing is kept. A vote that counts otherwise than one path, one
    vote, may have been changed by them.

    Raises:
      ValueError: a field out of range.
    """

    answers: Answers
    confidence: float | None = None
    least: int = 4

    def __post_init__(self):
        if self.confidence is not None and not 0.5 < self.confidence < 1:
            raise ValueError(f'confidence must lie between 0.5 and 1; it is {self.confidence}')
        if self.least < 1:
            raise ValueError(f'least must be at least 1; it is {self.least}')

    def __call__(self, plan: Plan, loop: Loop) -> Loop:
        """Gives up the paths of settled questions, begun or not. Finished paths have been flushed."""
        settled = self.settled(plan, loop.paths)
        of_path = jnp.repeat(settled, plan.samples, total_repeat_length=plan.parts * plan.paths)
        by_part = lambda flags: jnp.pad(flags.reshape(plan.parts, -1), ((0, 0), (0, 1)))  # noqa: E731
        paths = loop.slots.path.reshape(plan.parts, -1)
        given_up = jnp.take_along_axis(by_part(of_path), paths, axis=1).reshape(-1)
        slots = dataclasses.replace(
            loop.slots,
            alive=loop.slots.alive & ~given_up,
            path=jnp.where(given_up, plan.paths, loop.slots.path),
        )
        return dataclasses.replace(loop, slots=slots, waiting=loop.waiting & ~of_path)

    def settled(self, plan: Plan, paths: Paths) -> Bool[Array, 'Q']:
        """Which questions need no more paths."""
        finished = paths.count > 0
        mask = jnp.arange(paths.tokens.shape[1]) < paths.count[:, None]
        answer, found = self.answers.extract(paths.tokens, mask, paths.ended)
        shape = (plan.parts * plan.questions, plan.samples)
        votes = found & finished & (paths.ended | self.answers.truncated_votes)
        finished, found = finished.reshape(shape), votes.reshape(shape)
        first, second = leading_two(answer.reshape(*shape, -1), found)
        remaining = plan.samples - finished.sum(axis=1)
        settled = first - second > remaining
        if self.confidence is not None:
            likely = jax.scipy.special.betainc(second + 1.0, first + 1.0, 0.5)
            settled |= (likely >= self.confidence) & (finished.sum(axis=1) >= self.least)
        return settled


def leading_two(answer: UInt8[Array, 'Q N A'], found: Bool[Array, 'Q N']) -> tuple[jax.Array, jax.Array]:
    """Votes for the most frequent answer of each question and for the next, [Q] each."""
    same = (answer[:, :, None] == answer[:, None, :]).all(axis=-1) & found[:, None, :] & found[:, :, None]
    votes = same.sum(axis=-1)
    first = votes.max(axis=1)
    of_first = jnp.take_along_axis(same, jnp.argmax(votes, axis=1)[:, None, None], axis=1)[:, 0]
    return first, jnp.where(of_first, 0, votes).max(axis=1)
