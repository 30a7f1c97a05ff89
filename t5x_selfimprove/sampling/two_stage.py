"""Sampling in two stages: reasoning first, then the answer behind a cue."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from t5x_selfimprove.ragged import concatenate
from t5x_selfimprove.records import Prompts, Samples
from t5x_selfimprove.sampling.sampler import LanguageModel, Sampler
from t5x_selfimprove.vocabulary import encode_following

# Kojima et al. 2022, arXiv:2205.11916, by kind of answer; the answer format has the same words as its trigger.
CUES = {
    'number': 'Therefore, the answer (arabic numerals) is',
    'option': 'Therefore, among the options, the answer is',
    'yes_no': 'Therefore, the answer (Yes or No) is',
    'nli': 'Therefore, the answer (yes, no, it is not possible to tell) is',
    'span': 'Therefore, the answer is',
    'text': 'Therefore, the answer is',
}


@dataclasses.dataclass(frozen=True)
class TwoStage(Sampler):
    """Zero-shot chain of thought as Kojima et al. 2022 (arXiv:2205.11916) ask for it.

    A model that was shown no exemplars does not know how its answer is to be said. So it first reasons, after a prompt
    such as "Let's think step by step."; then prompt, reasoning and a cue are read, and the answer is drawn greedily. A
    path is all of it but the prompt:

        He has 7 + 10 = 17.   | \\nTherefore, the answer (arabic numerals) is | 17.
        drawn by the settings | given                                         | drawn greedily

    and is read by an `AnswerFormat` with the cue as its trigger. Reasoning that was cut off is asked for its answer all
    the same; whether a path ended is whether its answer did. The tokens of the cue were not drawn: their
    log-probability is 0 here, so that `improve.Recipe.drift_paths` must be 0.

    Attributes:
      max_tokens: C, of the whole path; what cue and answer leave is the reasoning's.
      cue: put behind the reasoning, after a line end; see `CUES`.
      answer_tokens: most tokens of the answer, end-of-text included.

    Raises:
      ValueError: no token is left for the reasoning, or a setting that works on whole paths while they are drawn.
    """

    cue: str = dataclasses.field(default=CUES['text'], kw_only=True)
    answer_tokens: int = dataclasses.field(default=32, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.answer_tokens < 1 or self.reasoning_tokens < 1:
            raise ValueError(
                f'max_tokens = {self.max_tokens} must be more than the {len(self.cue_tokens)} tokens of the cue and '
                f'answer_tokens = {self.answer_tokens}, at least 1, together'
            )
        if self.adaptive is not None:
            raise ValueError('adaptive counts answers while paths are drawn, and here there are none until all are')

    @functools.cached_property
    def cue_tokens(self) -> tuple[int, ...]:
        """The cue, as it follows the reasoning."""
        return tuple(encode_following(self.vocabulary, '\n' + self.cue))

    @property
    def reasoning_tokens(self) -> int:
        """Most tokens of the reasoning, its own end of text included."""
        return self.max_tokens - len(self.cue_tokens) - self.answer_tokens

    def stage(self, **settings: Any) -> Sampler:
        """A sampler of one stage: the same but for these settings."""
        same = {field.name: getattr(self, field.name) for field in dataclasses.fields(Sampler)}
        return Sampler(**same | settings)

    def __call__(
        self,
        model: LanguageModel,
        prompts: Prompts,
        key: jax.Array,
        prefix: Any = None,
        limit: Int32[Array, 'S'] | None = None,
    ) -> Samples:
        """Samples Q * N paths, question-major; arguments as `Sampler.__call__` has them.

        Raises:
          ValueError: a question has several prompts.
        """
        if prompts.tokens.shape[0] != prompts.id.shape[0]:
            raise ValueError('TwoStage reads one prompt a question; these are templates.Variants')
        reason = self.stage(max_tokens=self.reasoning_tokens)
        prefix = reason.read_prefix(model, prompts) if prefix is None else prefix
        limit = None if limit is None else jnp.minimum(limit, self.reasoning_tokens)
        reasoning = reason(model, prompts, key, prefix, limit)

        rows = reasoning.tokens.shape[0]
        length = reasoning.mask.sum(axis=1, dtype=jnp.int32)
        last = jnp.take_along_axis(reasoning.tokens, jnp.maximum(length - 1, 0)[:, None], axis=1)[:, 0]
        length = length - (jnp.isin(last, jnp.array(self.ends, jnp.int32)) & (length > 0))
        cue = jnp.broadcast_to(jnp.array(self.cue_tokens, jnp.int32), (rows, len(self.cue_tokens)))
        cue_length = jnp.full(rows, len(self.cue_tokens), jnp.int32)

        repeat = functools.partial(jnp.repeat, repeats=self.samples, axis=0, total_repeat_length=rows)
        asked, asked_length = concatenate(
            [repeat(prompts.tokens), reasoning.tokens, cue],
            [repeat(prompts.length), length, cue_length],
            prompts.tokens.shape[1] + self.reasoning_tokens + len(self.cue_tokens),
            self.vocabulary.pad_id,
        )
        extract = self.stage(max_tokens=self.answer_tokens, samples=1, temperature=0.0, transforms=(), min_tokens=0)
        answer = extract(model, Prompts(prompts.prefix, asked, asked_length, repeat(prompts.id)), key, prefix)
        return self.joined(reasoning, length, cue, answer)

    def joined(
        self, reasoning: Samples, length: Int32[Array, 'S'], cue: Int32[Array, 'S K'], answer: Samples
    ) -> Samples:
        """Reasoning without its end of text, cue and answer, one behind the other."""
        rows = length.shape[0]
        lengths = [length, jnp.full(rows, cue.shape[1], jnp.int32), answer.mask.sum(axis=1, dtype=jnp.int32)]
        none = jnp.zeros(cue.shape, jnp.float32)
        join = lambda parts, pad: concatenate(parts, lengths, self.max_tokens, pad)  # noqa: E731
        tokens, total = join([reasoning.tokens, cue, answer.tokens], self.vocabulary.pad_id)
        drawn = reasoning.drawn & answer.drawn
        steps = reasoning.slot_steps + answer.slot_steps
        return Samples(
            tokens=tokens,
            mask=(jnp.arange(self.max_tokens) < total[:, None]) & drawn[:, None],
            log_probs=join([reasoning.log_probs, none, answer.log_probs], 0.0)[0],
            ended=answer.ended,
            proposal_log_probs=join([reasoning.proposal_log_probs, none, answer.proposal_log_probs], 0.0)[0],
            drawn=drawn,
            slot_steps=steps,
        )


def two_stage(sampler: Sampler, cue: str, answer_tokens: int = 32) -> TwoStage:
    """The sampler for its reasoning, then a cue and an answer: paths are longer by these two.

    Args:
      sampler: of the reasoning.
      cue: put behind it; the trigger of the answer format.
      answer_tokens: most tokens of the answer, end-of-text included.
    """
    same = {field.name: getattr(sampler, field.name) for field in dataclasses.fields(Sampler)}
    behind = len(encode_following(sampler.vocabulary, '\n' + cue)) + answer_tokens
    return TwoStage(**same | {'max_tokens': sampler.max_tokens + behind}, cue=cue, answer_tokens=answer_tokens)
