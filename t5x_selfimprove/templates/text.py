"""A text with a {question} in it."""

import dataclasses
import functools

import jax.numpy as jnp

from t5x_selfimprove.ragged import concatenate
from t5x_selfimprove.records import Prompts, Questions
from t5x_selfimprove.vocabulary import Vocabulary, encode_following, encode_preceding

SLOT = '{question}'


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt around a question.

    The text before the slot (instructions, exemplars) is the same for every question; the sampler computes it once.

    Raises:
      ValueError: the text does not hold the slot exactly once, or the vocabulary cannot spell the text round it.
    """

    vocabulary: Vocabulary
    text: str = SLOT
    # End of text after the prompt, as the encoders of T5 were trained to read.
    ends: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        if self.text.count(SLOT) != 1:
            raise ValueError(
                f'a template holds {SLOT} exactly once; this one {self.text.count(SLOT)} times: {self.text!r}'
            )
        _ = self.before, self.after

    @functools.cached_property
    def before(self) -> tuple[int, ...]:
        """Tokens before the question, beginning-of-text first where the vocabulary has one."""
        start = () if self.vocabulary.bos_id is None else (self.vocabulary.bos_id,)
        return (*start, *encode_preceding(self.vocabulary, self.text.split(SLOT)[0]))

    @functools.cached_property
    def after(self) -> tuple[int, ...]:
        """Tokens after the question."""
        end = (self.vocabulary.eos_id,) if self.ends else ()
        return (*encode_following(self.vocabulary, self.text.split(SLOT)[1]), *end)

    def __call__(self, questions: Questions) -> Prompts:
        """Renders Q questions of room W as prompts of room P = W + len(after); runs on device.

        Raises:
          ValueError: the prompts would be empty.
        """
        room = questions.tokens.shape[-1] + len(self.after)
        if room == 0:
            raise ValueError('a prompt needs at least one token after the shared prefix')
        tokens, length = concatenate(
            [
                questions.tokens,
                jnp.broadcast_to(jnp.array(self.after, jnp.int32), (*questions.length.shape, len(self.after))),
            ],
            [questions.length, jnp.full_like(questions.length, len(self.after))],
            room,
            self.vocabulary.pad_id,
        )
        return Prompts(jnp.array(self.before, jnp.int32), tokens, length, questions.id)
