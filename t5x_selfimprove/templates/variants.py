"""Several prompts for the same question, dealt out to its samples."""

import dataclasses
import functools

import jax.numpy as jnp

from t5x_selfimprove.records import Prompts, Questions
from t5x_selfimprove.templates.text import Template, concatenate


@dataclasses.dataclass(frozen=True)
class Variants:
    """Sample i of a question reads prompt i mod K of K templates, e.g. with instructions in other words.

    What all of them begin with is the prefix that is read once; from the first token on in which they differ, each
    question is read K times.

    Raises:
      ValueError: there is no template, or they have other vocabularies.
    """

    templates: tuple[Template, ...]

    def __post_init__(self):
        if not self.templates:
            raise ValueError('Variants needs at least one template')
        if len({one.vocabulary for one in self.templates}) > 1:
            raise ValueError('the templates of Variants have different vocabularies')

    @functools.cached_property
    def before(self) -> tuple[int, ...]:
        """Tokens that all prompts begin with."""
        texts = [one.before for one in self.templates]
        same = [len(set(column)) == 1 for column in zip(*texts, strict=False)]
        return texts[0][: (*same, False).index(False)]

    def __call__(self, questions: Questions) -> Prompts:
        """Renders Q questions as Q * K prompts, question-major; runs on device."""
        made = [self._render(one, questions) for one in self.templates]
        room = max(tokens.shape[1] for tokens, _ in made)
        pad = self.templates[0].vocabulary.pad_id
        widened = [jnp.pad(one, ((0, 0), (0, room - one.shape[1])), constant_values=pad) for one, _ in made]
        tokens = jnp.stack(widened, axis=1).reshape(-1, room)
        length = jnp.stack([length for _, length in made], axis=1).reshape(-1)
        return Prompts(jnp.array(self.before, jnp.int32), tokens, length, questions.id)

    def _render(self, template: Template, questions: Questions) -> tuple:
        around = (template.before[len(self.before) :], template.after)
        texts = [jnp.broadcast_to(jnp.array(text, jnp.int32), (*questions.length.shape, len(text))) for text in around]
        lengths = [jnp.full_like(questions.length, len(text)) for text in around]
        room = questions.tokens.shape[-1] + sum(map(len, around))
        if room == 0:
            raise ValueError('a prompt needs at least one token after the shared prefix')
        pad = template.vocabulary.pad_id
        parts, sizes = [texts[0], questions.tokens, texts[1]], [lengths[0], questions.length, lengths[1]]
        return concatenate(parts, sizes, room, pad)
