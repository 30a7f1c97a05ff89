"""The whole method on one page: a model improves itself on questions without labels.

    for each round:
        sample       N chains of thought for every question, from the parameters as they are
        consolidate  read the answers, vote, decide which paths to keep
        learn        train the parameters on the kept paths (and a share of replay)

`one_round` is all of it as one pure function of the state: jitted once with the state donated, it is one compiled
program over one mesh. (The named scopes tell profiles and `precompile` which part of the method an instruction is of.)
"Large Language Models Can Self-Improve" (Huang et al. 2022, arXiv:2210.11610) is the recipe
with a majority vote; other methods exchange the parts.
"""

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import UInt32

from t5x_selfimprove import metrics, partitioning
from t5x_selfimprove.consolidation import AnswerFormat
from t5x_selfimprove.formats import LessonFormat, check_formats, examples_in
from t5x_selfimprove.learning import lessons
from t5x_selfimprove.metrics import Metrics
from t5x_selfimprove.models import decoding, parameters
from t5x_selfimprove.records import Examples, Lessons, Prompts, Questions, Samples, TrainState, Verdict, record
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.tally import tally
from t5x_selfimprove.templates import Template


class Consolidator(Protocol):
    """Decides what the samples of a batch are worth; frozen, so that it is static under jit."""

    answers: AnswerFormat

    def __call__(self, models: Any, questions: Questions, samples: Samples, key: jax.Array) -> Verdict:
        """Q questions and their Q * N samples to a verdict."""


class Learner(Protocol):
    """Turns kept examples into new parameters; frozen, so that it is static under jit."""

    def init(self, model: Any) -> Any:
        """Optimizer state."""

    def __call__(
        self, state: TrainState, examples: Examples, replay: Lessons | None, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """One round of training."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method of self-improvement: the four parts of a round. Equal recipes share a trace."""

    prompt: Template
    sampler: Sampler
    consolidator: Consolidator
    learner: Learner
    lesson_prompt: Template | None = None  # what the kept paths are trained after; None = `prompt`
    formats: tuple[LessonFormat, ...] = ()  # or what they are trained after and in, each of them once in each
    drift_paths: int = 8  # paths a round whose log-probabilities are computed as in learning, too; 0: none

    def __post_init__(self):
        if self.formats and self.lesson_prompt is not None:
            raise ValueError('a Recipe has either lesson_prompt or formats, which have prompts of their own')
        check_formats(self.formats)

    @property
    def lessons(self) -> tuple[LessonFormat, ...]:
        """The formats that kept paths are trained in."""
        return self.formats or (LessonFormat('path', self.lesson_prompt or self.prompt),)

    @property
    def replay_prompt(self) -> Template:
        """What replayed examples are trained after: no prompt for an answer alone, since they have rationales."""
        return next((one.prompt for one in self.lessons if one.target == 'path'), self.prompt)


@record
class Round:
    """What a round leaves beside the new state; [G, ...] for G batches of questions."""

    metrics: Metrics
    samples: Samples
    verdict: Verdict
    model: UInt32[Any, '*rounds 2']  # fingerprint of the parameters that drew the samples


def one_round(
    state: TrainState, questions: Questions, replay: Lessons | None, *, recipe: Recipe
) -> tuple[TrainState, Round]:
    """One round of self-improvement.

    Args:
      state: the state before; donate it.
      questions: G batches of Q questions, [G, Q, ...]; labels are not read unless the consolidator does.
      replay: packed labelled rows to mix in, or None.
      recipe: the method.

    Returns:
      The state after, and the round's metrics, samples and verdict.
    """
    vocabulary = recipe.sampler.vocabulary
    sample_key, judge_key, learn_key = jax.random.split(round_key(state), 3)
    with jax.named_scope('sampling'):
        # Gathered, adapters merged and the prefix read once a round and not once a batch or a token.
        frozen = decoding.for_sampling(state.model, recipe.sampler.weights)
        some = jax.tree.map(lambda array: array[0], questions)
        prefix = recipe.sampler.read_prefix(frozen, recipe.prompt(some))

    def batch(_, questions: Questions) -> tuple[None, tuple[Samples, Verdict, Examples, Metrics]]:
        with jax.named_scope('sampling'):
            samples = recipe.sampler(frozen, recipe.prompt(questions), sample_key, prefix)
        with jax.named_scope('consolidation'):
            verdict = recipe.consolidator(frozen, questions, samples, judge_key)
            learnt = lessons.closed(samples, vocabulary.eos_id) if recipe.sampler.stop else samples
            answers = recipe.consolidator.answers
            examples = examples_in(recipe.lessons, questions, learnt, verdict.keep, answers, vocabulary.pad_id)
            counts = tally(questions, samples, verdict)
        return None, (samples, verdict, examples, counts)

    _, (samples, verdict, examples, counts) = jax.lax.scan(batch, None, questions)
    examples = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), examples)
    drift = {}
    if recipe.drift_paths:
        first = jax.tree.map(lambda array: array[0], samples)
        drift = log_prob_drift(state.model, recipe.prompt(some), first, recipe.drift_paths, vocabulary.pad_id)
    drawn_by = parameters.fingerprint(state.model)
    with jax.named_scope('learning'):
        state, learned = recipe.learner(state, examples, replay, learn_key)
    state = dataclasses.replace(
        state, round=state.round + 1, model=parameters.constrain(state.model, partitioning.LEARNING)
    )
    return state, Round(metrics.summed(counts) | drift | learned, samples, verdict, drawn_by)


def rounds(
    state: TrainState, questions: Questions, replay: Lessons | None, *, recipe: Recipe
) -> tuple[TrainState, Round]:
    """Several rounds in one dispatch: questions [rounds, G, Q, ...]; each leaf of the result leads with the rounds."""
    return jax.lax.scan(lambda state, questions: one_round(state, questions, replay, recipe=recipe), state, questions)


def log_prob_drift(model: Any, prompts: Prompts, samples: Samples, paths: int, pad: int) -> Metrics:
    """The largest difference, in nats, between the log-probabilities of tokens as they were drawn and as learning
    computes them, in the first paths of a batch: whether the model that samples is the model that learns."""
    keep = jnp.ones(samples.ended.shape)
    examples = lessons.examples_of(prompts, samples, keep, pad)
    examples, few = jax.tree.map(lambda array: array[:paths], (examples, dataclasses.replace(samples, slot_steps=None)))
    rows = lessons.one_a_row(examples, model.config.reads_source)
    source = {} if rows.source is None else {'source': rows.source}
    hidden = model.forward(rows.tokens, rows.position, rows.segment, **source)
    learnt = model.log_probs(hidden, rows.targets)
    # The place before a completion: its prompt's last token, or a decoder's start token.
    before = examples.prompt_length - 1 if rows.source is None else jnp.zeros_like(examples.prompt_length)
    place = jnp.minimum(before[:, None] + jnp.arange(few.tokens.shape[1]), learnt.shape[1] - 1)
    again = jnp.take_along_axis(learnt, place, axis=1)
    apart = jnp.where(few.mask, jnp.abs(again - few.log_probs), 0.0)
    return {'log_prob_drift': metrics.Mean(apart.max(), jnp.ones(()))}


def program(recipe: Recipe) -> Any:
    """`rounds` of a recipe as one jitted program, the state given up to it. What a run compiles, and `precompile`."""
    return jax.jit(functools.partial(rounds, recipe=recipe), donate_argnums=0)


def round_key(state: TrainState) -> jax.Array:
    """The key of the round that is about to run, from the run's seed and the round's number alone."""
    return jax.random.fold_in(jax.random.key(state.seed), state.round)


def new_state(model: Any, learner: Learner, seed: int, keep_base: bool) -> TrainState:
    """The state before the first round.

    Args:
      model: the parameters to start from.
      learner: whose optimizer state is made.
      seed: of every draw of the run, 0 <= seed < 2**32.
      keep_base: whether the first parameters are kept, for recipes that start each round from them.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        round=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        model=model,
        optimizer=learner.init(model),
        base=jax.tree.map(jnp.copy, parameters.split(model)[0]) if keep_base else None,
    )
