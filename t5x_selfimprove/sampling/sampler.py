"""The sampler: each question is read once, its N samples share what was computed, one while_loop draws them."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32, UInt32

from t5x_selfimprove.partitioning import constrain
from t5x_selfimprove.records import Prompts, Samples, record
from t5x_selfimprove.sampling.transforms import Transform, draw
from t5x_selfimprove.vocabulary import Vocabulary


class LanguageModel(Protocol):
    """What the sampler asks of a model. Hidden states, contexts and segments are the model's own affair."""

    def read_prefix(self, tokens):
        """The context made of text [X] that all prompts begin with."""

    def prefill(self, tokens, length, context=()):
        """(hidden [B, D], context): reads prompts after a shared context; the state that the first token is drawn
        from, and the context of the tokens to come."""

    def new_segment(self, rows, room):
        """An empty cache for the samples' own tokens."""

    def extend(self, tokens, context, own):
        """(logits [S, V], segment): reads one more token of every sample."""

    def logits(self, hidden):
        """Logits from hidden states."""


@record
class SamplingState:
    """What the loop carries.

    index          v
    tokens    7 + 4 _ _ _      drawn so far, padding after
    mask      1 1 1 0 0 0
    alive     still drawing (False once end-of-text was drawn)
    """

    index: Int32[Array, '']  # column to draw next
    tokens: Int32[Array, 'S C']
    log_probs: Float32[Array, 'S C']
    mask: Bool[Array, 'S C']
    alive: Bool[Array, 'S']
    own: object  # the samples' own segment of the cache


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws N completions of every prompt from a model that stays as it is.

    Every draw's key is folded from (key, question id, sample number, position): a question gets the same paths in
    whatever batch, order or mesh it is asked.

    Raises:
      ValueError: a field out of range.
    """

    vocabulary: Vocabulary
    samples: int = 16  # N
    max_tokens: int = 32  # C, end-of-text included
    temperature: float = 1.0  # 0 = greedy
    transforms: tuple[Transform, ...] = ()  # applied in order after the temperature

    def __post_init__(self):
        if self.samples < 1 or self.max_tokens < 1:
            raise ValueError(f'samples and max_tokens must be at least 1; they are {self.samples}, {self.max_tokens}')
        if self.temperature < 0:
            raise ValueError(f'temperature must be 0 (greedy) or positive; it is {self.temperature}')

    def __call__(self, model: LanguageModel, prompts: Prompts, key: jax.Array) -> Samples:
        """Samples Q * N completions, question-major.

        Args:
          model: the frozen model.
          prompts: Q prompts.
          key: the round's key.
        """
        questions, count = prompts.tokens.shape[0], self.samples
        keys = sample_keys(key, prompts.id, count)
        shared = (model.read_prefix(prompts.prefix),) if prompts.prefix.shape[0] else ()
        hidden, context = model.prefill(prompts.tokens, prompts.length, *shared)
        logits = jnp.repeat(model.logits(hidden), count, axis=0, total_repeat_length=questions * count)

        def step(state: SamplingState) -> SamplingState:
            previous = jax.lax.dynamic_index_in_dim(state.tokens, state.index - 1, axis=1, keepdims=False)
            logits, own = model.extend(previous, context, state.own)
            return self.write(dataclasses.replace(state, own=own), logits, keys)

        def unfinished(state: SamplingState) -> Bool[Array, '']:
            return (state.index < self.max_tokens) & state.alive.any()

        state = self.write(self.start(questions * count, model), logits, keys)
        state = jax.lax.while_loop(unfinished, step, state)
        return constrain(Samples(state.tokens, state.mask, state.log_probs, ~state.alive), 'batch')

    def start(self, rows: int, model: LanguageModel) -> SamplingState:
        """The state before anything is drawn."""
        shape = (rows, self.max_tokens)
        return SamplingState(
            index=jnp.zeros((), jnp.int32),
            tokens=jnp.full(shape, self.vocabulary.pad_id, jnp.int32),
            log_probs=jnp.zeros(shape, jnp.float32),
            mask=jnp.zeros(shape, bool),
            alive=jnp.ones(rows, bool),
            own=constrain_segment(model.new_segment(rows, self.max_tokens)),
        )

    def choose(self, logits: Float32[Array, 'S V'], keys: jax.Array, index: Int[Array, '']) -> Int32[Array, 'S']:
        """The next token of every sample. Rows of an embedding beyond the vocabulary stand for no token: they keep
        their share of the distribution, in `log_probs` here as in learning, and are never drawn."""
        if logits.shape[-1] > self.vocabulary.size:
            logits = jnp.where(jnp.arange(logits.shape[-1]) < self.vocabulary.size, logits, -jnp.inf)
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        tempered = logits / self.temperature
        for transform in self.transforms:
            tempered = transform(tempered)
        here = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        return draw(tempered, jax.vmap(jax.random.uniform)(here))

    def write(self, state: SamplingState, logits: Float32[Array, 'S V'], keys: jax.Array) -> SamplingState:
        """Draws a token for every sample that is alive, and writes it."""
        logits = constrain(logits, 'batch')
        token = jnp.where(state.alive, self.choose(logits, keys, state.index), self.vocabulary.pad_id)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        log_prob = jnp.where(state.alive, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)
        return dataclasses.replace(
            state,
            index=state.index + 1,
            tokens=state.tokens.at[:, state.index].set(token),
            log_probs=state.log_probs.at[:, state.index].set(log_prob),
            mask=state.mask.at[:, state.index].set(state.alive),
            alive=state.alive & (token != self.vocabulary.eos_id),
        )


def sample_keys(key: jax.Array, ids: UInt32[Array, 'Q 2'], samples: int) -> jax.Array:
    """One key a sample, [Q * N], folded from the key, the question's id and the sample's number."""

    def of_question(identity):
        mine = jax.random.fold_in(jax.random.fold_in(key, identity[0]), identity[1])
        return jax.vmap(jax.random.fold_in, (None, 0))(mine, jnp.arange(samples))

    return jax.vmap(of_question)(ids).reshape(-1)


def constrain_segment(segment: object) -> object:
    """Splits the samples' own segment [L, S, ...] over the batch axes."""
    split = lambda array: constrain(array, None, 'batch') if array.ndim > 1 else array  # noqa: E731
    return jax.tree.map(split, segment)
