"""What the consolidators share: the paths of each question, which of them say the same, and which are kept."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, UInt8, UInt32

from t5x_selfimprove.consolidation.answers import AnswerFormat
from t5x_selfimprove.records import Questions, Samples

WEIGHTINGS = ('path', 'question')
SELECTION = 0x53454C45  # keeps these draws apart from any others that are folded from the same key and question


@dataclasses.dataclass(frozen=True)
class Paths:
    """The samples of a batch, question by question. In rows of questions that are padding nothing is found."""

    answer: UInt8[Array, 'Q N A']
    found: Bool[Array, 'Q N']
    voted: Bool[Array, 'Q N']  # its answer counts: found, and not cut off unless truncated completions may vote
    real: Bool[Array, 'Q N']  # no padding, and not given up
    repeated: Bool[Array, 'Q N']  # the same completion as an earlier path of the question
    copies: Int32[Array, 'Q N']  # paths of the question with the same completion, itself included
    likelihood: Float32[Array, 'Q N']  # length-normalised: the geometric mean of its tokens' probabilities


def read_paths(part: Any, questions: Questions, samples: Samples) -> Paths:
    """Extracts the answers of a batch and groups them by question.

    Args:
      part: a consolidator, with `answers`.
      questions: Q questions.
      samples: S = Q * N samples, question-major.

    Raises:
      ValueError: S is no multiple of Q.
    """
    count, total = questions.weight.shape[0], samples.tokens.shape[0]
    if not count or total % count:
        raise ValueError(f'{total} samples cannot be shared out to {count} questions: S must be Q * N')
    answer, found = part.answers.extract(samples.tokens, samples.mask, samples.ended)
    real = jnp.broadcast_to((questions.weight > 0)[:, None], (count, total // count))
    if samples.drawn is not None:
        real = real & samples.drawn.reshape(real.shape)
    found = found.reshape(real.shape) & real
    voted = found & (samples.ended.reshape(real.shape) | part.answers.truncated_votes)
    answer = jnp.where(found[..., None], answer.reshape(*real.shape, -1), 0).astype(jnp.uint8)
    same = same_row(jnp.where(samples.mask, samples.tokens, -1).reshape(*real.shape, -1))
    length = jnp.maximum(samples.mask.sum(axis=-1), 1)
    likelihood = jnp.exp(samples.log_probs.sum(axis=-1) / length).reshape(real.shape)
    return Paths(answer, found, voted, real, has_earlier(same), same.sum(axis=-1, dtype=jnp.int32), likelihood)


def same_row(values: Int32[Array, 'Q N W'] | UInt32[Array, 'Q N W']) -> Bool[Array, 'Q N N']:
    """Which rows of each question are equal. W words are compared one after the other: no [Q, N, N, W] is held."""

    def step(same: Any, word: Any) -> tuple[Any, None]:
        return same & (word[:, :, None] == word[:, None, :]), None

    start = jnp.ones((*values.shape[:2], values.shape[1]), bool)
    return jax.lax.scan(step, start, jnp.moveaxis(values, -1, 0), unroll=4)[0]


def same_answer(answer: UInt8[Array, 'Q N A']) -> Bool[Array, 'Q N N']:
    """Which paths of a question have the same answer bytes; two without an answer are the same, too."""
    room = answer.shape[-1]
    padded = jnp.pad(answer, ((0, 0), (0, 0), (0, -room % 4)))
    words = jax.lax.bitcast_convert_type(padded.reshape(*answer.shape[:2], -1, 4), jnp.uint32)
    return same_row(words)


def has_earlier(related: Bool[Array, 'Q N N']) -> Bool[Array, 'Q N']:
    """Whether a path is related to one drawn before it: any related[q, n, m] with m < n."""
    count = related.shape[-1]
    return (related & jnp.tril(jnp.ones((count, count), bool), -1)).any(axis=-1)


def keep_weights(
    part: Any, eligible: Float32[Array, 'Q N'], paths: Paths, questions: Questions, key: jax.Array
) -> Float32[Array, 'S']:
    """Training weights of the samples: at most `max_kept` of the eligible paths of each question.

    Which ones is drawn uniformly, repetitions of a path only after all distinct ones. The draw is folded from the key
    and the question's id, so it does not depend on the batch.

    Args:
      part: a consolidator, with `max_kept`, `distinct` and `weighting`.
      eligible: weight that each path would have; 0 = not to be kept.
      paths: from `read_paths`.
      questions: of the batch.
      key: of the round.
    """
    weights = jnp.where(paths.real & ~(paths.repeated & part.distinct), eligible, 0.0)
    if part.max_kept is not None:
        order = _draw_order(key, questions.id, weights.shape[1]) >> 1
        order = jnp.where(paths.repeated, order | jnp.uint32(1 << 31), order)
        place = jnp.arange(weights.shape[1])
        mine, other = order[:, :, None], order[:, None, :]
        before = (other < mine) | ((other == mine) & (place[None, :] < place[:, None]))
        rank = (before & (weights > 0)[:, None, :]).sum(axis=-1)
        weights = jnp.where(rank < part.max_kept, weights, 0.0)
    if part.weighting == 'question':
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / jnp.where(total > 0, total, 1.0)
    return weights.reshape(-1)


def fraction(part: Int32[Array, 'Q'], whole: Int32[Array, 'Q']) -> Float32[Array, 'Q']:
    """part / whole; 0 of nothing is 0."""
    return part.astype(jnp.float32) / jnp.maximum(whole, 1).astype(jnp.float32)


def _draw_order(key: jax.Array, ids: UInt32[Array, 'Q 2'], count: int) -> UInt32[Array, 'Q N']:
    def of_question(identity: Any) -> Any:
        mine = jax.random.fold_in(jax.random.fold_in(key, SELECTION), identity[0])
        return jax.random.bits(jax.random.fold_in(mine, identity[1]), (count,), jnp.uint32)

    return jax.vmap(of_question)(ids)


def check_part(part: Any) -> None:
    """Checks the fields that all consolidators here have.

    Raises:
      TypeError, ValueError: names the class, the field, its value and what it may be.
    """
    name = type(part).__name__
    if not isinstance(part.answers, AnswerFormat):
        raise TypeError(f'{name}.answers must be an AnswerFormat; it is {part.answers!r:.80}')
    if type(part.distinct) is not bool:
        raise TypeError(f'{name}.distinct must be True or False; it is {part.distinct!r}')
    if part.max_kept is not None:
        check_integer(f'{name}.max_kept', part.max_kept, 1)
    check_choice(f'{name}.weighting', part.weighting, WEIGHTINGS)


def check_integer(field: str, value: Any, low: int) -> None:
    """Raises TypeError unless `value` is an integer, ValueError unless it is at least `low`."""
    if type(value) is not int:
        raise TypeError(f'{field} must be a whole number; it is {value!r} ({type(value).__name__})')
    if value < low:
        raise ValueError(f'{field} must be at least {low}; it is {value}')


def check_choice(field: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f'{field} must be one of {", ".join(map(repr, choices))}; it is {value!r}')
