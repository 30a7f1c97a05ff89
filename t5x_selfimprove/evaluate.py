"""Evaluation with the same sampler and the same reading of answers as training.

One program measures a model on labelled questions; the host turns its per-question results into accuracies with
95 % intervals, a reliability curve and histograms.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Integer

from t5x_selfimprove import metrics, tally
from t5x_selfimprove.improve import Consolidator
from t5x_selfimprove.metrics import Metrics
from t5x_selfimprove.models import decoding
from t5x_selfimprove.records import Questions, Samples, Verdict, record
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.templates import Template

CALIBRATION_BINS = 10
BOOTSTRAPS = 1000
Z = 1.959964  # of a two-sided 95 % interval


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a model is measured: greedy, and by a vote over N samples.

    Attributes:
      prompt: put round each question.
      sampler: of the N samples; greedy decoding is the same sampler at temperature 0 with one sample.
      consolidator: of the vote.
    """

    prompt: Template
    sampler: Sampler
    consolidator: Consolidator

    @property
    def greedy(self) -> Sampler:
        """The sampler of greedy decoding."""
        return dataclasses.replace(self.sampler, samples=1, temperature=0.0)


@record
class Results:
    """What was measured, question by question; [G, Q] for G batches."""

    weight: Float32[Array, '*outer Q']  # 1 where the question is no padding and has a label
    greedy_correct: Float32[Array, '*outer Q']
    greedy_answered: Float32[Array, '*outer Q']
    greedy_ended: Float32[Array, '*outer Q']
    greedy_length: Int32[Array, '*outer Q']
    majority_correct: Float32[Array, '*outer Q']
    share: Float32[Array, '*outer Q']
    votes: Float32[Array, '*outer Q']
    correct: Float32[Array, '*outer Q']  # samples with the right answer
    kept: Float32[Array, '*outer Q']  # kept paths
    kept_correct: Float32[Array, '*outer Q']  # kept paths with the right answer


@functools.partial(jax.jit, static_argnames=('evaluation', 'keeper'))
def measure(
    model: Any,
    questions: Questions,
    seed: Integer[Array, ''],
    evaluation: Evaluation,
    keeper: Consolidator | None = None,
) -> tuple[Results, Samples, Verdict, Metrics]:
    """Measures a model on labelled questions [G, Q, ...].

    The draws depend on (seed, question id, sample number) alone, so two models are compared on the same randomness.
    With the training's consolidator as `keeper`, the verdict says which paths training would keep: how often they are
    right is seen here, on labelled questions, and never needs a label in training.
    """
    key = jax.random.key(seed)
    frozen = decoding.for_sampling(model, evaluation.sampler.weights)
    prefix = evaluation.sampler.read_prefix(
        frozen, evaluation.prompt(jax.tree.map(lambda array: array[0], questions))
    )

    def batch(_, questions: Questions):
        prompts = evaluation.prompt(questions)
        greedy = evaluation.greedy(frozen, prompts, key, prefix)
        alone = evaluation.consolidator(frozen, questions, greedy, key)
        samples = evaluation.sampler(frozen, prompts, key, prefix)
        verdict = evaluation.consolidator(frozen, questions, samples, key)
        keep = jnp.zeros_like(verdict.keep) if keeper is None else keeper(frozen, questions, samples, key).keep
        verdict = dataclasses.replace(verdict, keep=keep)
        right = (verdict.answer == jnp.repeat(questions.answer, evaluation.sampler.samples, axis=0)).all(-1)
        by_question = lambda flags: flags.reshape(questions.weight.shape[0], -1).sum(axis=-1, dtype=jnp.float32)  # noqa: E731
        right &= verdict.found
        results = Results(
            weight=questions.weight * questions.known,
            greedy_correct=jnp.float32((alone.answer == questions.answer).all(-1) & alone.found),
            greedy_answered=jnp.float32(alone.found),
            greedy_ended=jnp.float32(greedy.ended),
            greedy_length=greedy.mask.sum(axis=-1, dtype=jnp.int32),
            majority_correct=jnp.float32((verdict.chosen == questions.answer).all(-1) & (verdict.votes > 0)),
            share=verdict.share,
            votes=verdict.votes,
            correct=by_question(right),
            kept=by_question(verdict.keep > 0),
            kept_correct=by_question((verdict.keep > 0) & right),
        )
        return None, (results, samples, verdict, tally.tally(questions, samples, verdict))

    _, (results, samples, verdict, counts) = jax.lax.scan(batch, None, questions)
    return results, samples, verdict, metrics.summed(counts)


def summarise(results: Results, samples_per_question: int) -> dict[str, Any]:
    """Accuracies with intervals from per-question results; runs on the host.

    Proportions have Wilson score intervals (Wilson 1927); the calibration error (ECE, Guo et al. 2017,
    arXiv:1706.04599, ten equal bins, vote share against accuracy of the majority) and the means have percentile
    bootstrap intervals over questions. `pass_at_n` is the share of questions with a right answer among the N samples.

    Raises:
      ValueError: no question has a label.
    """
    flat = {field.name: np.asarray(getattr(results, field.name)).ravel() for field in dataclasses.fields(results)}
    labelled = flat.pop('weight') > 0
    if not labelled.any():
        raise ValueError('none of the evaluation questions has a label; evaluation needs answers')
    flat = {name: array[labelled].astype(np.float64) for name, array in flat.items()}
    share, right = flat['share'], flat['majority_correct']
    kept = flat['kept'].sum()
    return {
        'questions': int(labelled.sum()),
        'samples_per_question': samples_per_question,
        'greedy_accuracy': proportion(flat['greedy_correct']),
        'majority_accuracy': proportion(right),
        'pass_at_n': proportion(flat['correct'] > 0),
        'sample_accuracy': bootstrap(flat['correct'] / samples_per_question, np.mean),
        'answered': proportion(flat['greedy_answered']),
        'truncated': float(1 - flat['greedy_ended'].mean()),
        'mean_length': float(flat['greedy_length'].mean()),
        'mean_vote_share': bootstrap(share, np.mean),
        'calibration_error': bootstrap(np.stack([share, right], -1), calibration_error),
        'brier': float(((share - right) ** 2).mean()),
        'kept_share': float((flat['kept'] > 0).mean()),
        'kept_precision': float(flat['kept_correct'].sum() / kept) if kept else None,
        'reliability': reliability(share, right),
    }


def interval(value: float, low: float, high: float) -> dict[str, float]:
    """A number with its 95 % interval, as it is written everywhere."""
    return {'value': float(value), 'low': float(low), 'high': float(high)}


def proportion(flags: np.ndarray) -> dict[str, float]:
    """Share of true flags with its Wilson score interval."""
    count, share = len(flags), float(np.mean(flags))
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def bootstrap(rows: np.ndarray, statistic: Any) -> dict[str, float]:
    """A statistic of rows with its percentile bootstrap interval; the resampling is always the same."""
    generator = np.random.default_rng(0)
    draws = [statistic(rows[generator.integers(0, len(rows), len(rows))]) for _ in range(BOOTSTRAPS)]
    return interval(statistic(rows), *np.quantile(draws, [0.025, 0.975]))


def calibration_error(pairs: np.ndarray) -> float:
    """Expected calibration error of (confidence, correct) rows: mean over bins of |confidence - accuracy|."""
    bins = bin_of(pairs[:, 0])
    gaps = np.bincount(bins, pairs[:, 0] - pairs[:, 1], CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(pairs))


def bin_of(share: np.ndarray) -> np.ndarray:
    """The calibration bin of each share; 7/10 in float32 is a little less than 0.7 and still opens the eighth bin."""
    return np.clip((share * CALIBRATION_BINS + 1e-5).astype(int), 0, CALIBRATION_BINS - 1)


def reliability(share: np.ndarray, right: np.ndarray) -> list[dict[str, float | int | None]]:
    """Per bin of vote share: how many questions, their mean share, and how often the majority was right."""
    bins = bin_of(share)
    table = []
    for number in range(CALIBRATION_BINS):
        here = bins == number
        table.append(
            {
                'low': number / CALIBRATION_BINS,
                'high': (number + 1) / CALIBRATION_BINS,
                'count': int(here.sum()),
                'mean_share': float(share[here].mean()) if here.any() else None,
                'accuracy': float(right[here].mean()) if here.any() else None,
            }
        )
    return table
