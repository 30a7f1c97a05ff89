"""The formats that a kept path is trained in: one sampled path makes several examples.

The mixed formats of "Large Language Models Can Self-Improve" (Huang et al. 2022, arXiv:2210.11610, section 3.2) are

    prompt                                         target
    exemplars with rationales, question            'path': rationale and answer
    the same exemplars without rationales, question  'answer'
    question, "Let's think step by step."          'path'
    question, the cue for an answer                'answer'

so that the model does not learn one style of prompt by heart, and learns to say the answer at once, too.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from t5x_selfimprove.consolidation.answers import AnswerFormat
from t5x_selfimprove.learning import lessons
from t5x_selfimprove.records import Examples, Questions, Samples
from t5x_selfimprove.templates import Template

TARGETS = ('path', 'answer')


@dataclasses.dataclass(frozen=True)
class LessonFormat:
    """A prompt that kept paths are trained after, and how much of a path is learnt.

    The answer of a path is its own last words, from the token on in which the last trigger phrase of the answer format
    begins: " The answer is 7.", with all that follows, the end of text first of all. A path without the phrase makes no
    example for its answer.

    Attributes:
      name: as the sample store writes it.
      prompt: put round the question.
      target: 'path', all of it, or 'answer', its last words.

    Raises:
      ValueError: a name that is empty or has a comma, another target.
    """

    name: str
    prompt: Template
    target: str = 'path'

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name or ',' in self.name:
            raise ValueError(f'LessonFormat.name must be a name without a comma; it is {self.name!r}')
        if self.target not in TARGETS:
            raise ValueError(f'LessonFormat.target must be one of {TARGETS}; it is {self.target!r}')


def check_formats(formats: tuple[LessonFormat, ...]) -> None:
    """Raises ValueError unless the formats have names of their own."""
    names = [one.name for one in formats]
    if len(set(names)) < len(names):
        raise ValueError(f'every format needs a name of its own; they are {", ".join(names)}')


def examples_in(
    formats: tuple[LessonFormat, ...],
    questions: Questions,
    samples: Samples,
    keep: Float32[Array, 'S'],
    answers: AnswerFormat,
    pad: int,
) -> Examples:
    """Each sample once in each format: E = F * S examples, format-major, of the room of the largest format.

    Args:
      formats: F formats.
      questions: Q questions.
      samples: their Q * N samples.
      keep: training weight of each sample in each of the formats; 0 leaves it out.
      answers: says where the answer of a path begins.
      pad: padding token.
    """
    targets = {'path': (samples, keep)}
    if any(one.target == 'answer' for one in formats):
        start = answers.phrase_start(samples.tokens, samples.mask)
        targets['answer'] = from_token(samples, start), jnp.where(start < 0, 0, keep)
    return joined([lessons.examples_of(one.prompt(questions), *targets[one.target], pad) for one in formats], pad)


def from_token(samples: Samples, start: Int32[Array, 'S']) -> Samples:
    """The samples from a token of each on, at the left; nothing of those whose start is negative.

    start 2   a b c d _   ->   c d _ _ _
    """
    room = samples.tokens.shape[1]
    place = jnp.arange(room) + start[:, None]
    inside = (place < room) & (start >= 0)[:, None]
    take = lambda array: jnp.take_along_axis(array, jnp.clip(place, 0, room - 1), axis=1)  # noqa: E731
    return dataclasses.replace(
        samples,
        tokens=take(samples.tokens),
        mask=take(samples.mask) & inside,
        log_probs=jnp.where(inside, take(samples.log_probs), 0.0),
    )


def joined(parts: list[Examples], pad: int) -> Examples:
    """Examples one after the other, of the room of the longest."""
    room = max(part.tokens.shape[1] for part in parts)
    widened = [jnp.pad(one.tokens, ((0, 0), (0, room - one.tokens.shape[1])), constant_values=pad) for one in parts]
    fields = {
        name: jnp.concatenate([vars(one)[name] for one in parts]) for name in ('prompt_length', 'length', 'weight')
    }
    rooms = tuple(max(sizes) for sizes in zip(*(one.rooms for one in parts), strict=True))
    return Examples(tokens=jnp.concatenate(widened), rooms=rooms, **fields)
