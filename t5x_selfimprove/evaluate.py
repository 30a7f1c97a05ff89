"""Evaluation with the same sampler and the same reading of answers as training.

One program measures a model on labelled questions, in the decodings of Huang et al. 2022 (arXiv:2210.11610): standard
(an answer at once, greedily, where there is a prompt for it), greedy by chain of thought, and self-consistency (a vote
over N sampled paths). The host turns its per-question results into accuracies with 95 % intervals and a reliability
curve (`estimators`).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Integer

from t5x_selfimprove import metrics, tally
from t5x_selfimprove.consolidation import MajorityVote
from t5x_selfimprove.consolidation.selection import has_earlier, same_answer
from t5x_selfimprove.estimators import (
    accuracy,
    bootstrap,
    calibration_error,
    check_k,
    curve,
    majority_at_k,
    pass_at_k,
    reliability,
)
from t5x_selfimprove.improve import Consolidator
from t5x_selfimprove.metrics import Metrics
from t5x_selfimprove.models import decoding
from t5x_selfimprove.records import Questions, Samples, Verdict, record
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.templates import Template

STANDARD = {'standard_accuracy': 'standard_correct', 'standard_answered': 'standard_answered'}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a model is measured: greedy, and by a vote over N samples.

    Attributes:
      prompt: put round each question.
      sampler: of the N samples, with a temperature of its own; greedy decoding is the same sampler at temperature 0
        with one sample.
      consolidator: of the vote.
      direct_prompt: a prompt that asks for the answer at once; with one, greedy decoding after it is measured, too.
      at: the ks of maj@k and pass@k; () = the powers of two below N, and N.

    Raises:
      ValueError: a k that is not in 1..N.
    """

    prompt: Template
    sampler: Sampler
    consolidator: Consolidator
    direct_prompt: Template | None = None
    at: tuple[int, ...] = ()

    def __post_init__(self):
        for k in self.at:
            check_k(k, self.sampler.samples)

    @property
    def greedy(self) -> Sampler:
        """The sampler of greedy decoding."""
        return dataclasses.replace(self.complete, samples=1, temperature=0.0)

    @property
    def complete(self) -> Sampler:
        """The sampler of the N samples: all of them, however soon a vote is decided, as maj@k and pass@k need."""
        return dataclasses.replace(self.sampler, adaptive=None)

    @property
    def weighted(self) -> MajorityVote:
        """The vote weighted by length-normalised probability (Wang et al. 2022, arXiv:2203.11171)."""
        return MajorityVote(self.consolidator.answers, ballot='probability', ties='split')

    @property
    def ks(self) -> tuple[int, ...]:
        """The ks of maj@k and pass@k."""
        return self.at or curve(self.sampler.samples)


@record
class Results:
    """What was measured, question by question; [G, Q] for G batches."""

    weight: Float32[Array, '*outer Q']  # 1 where the question is no padding and has a label
    greedy_correct: Float32[Array, '*outer Q']
    greedy_answered: Float32[Array, '*outer Q']
    greedy_ended: Float32[Array, '*outer Q']
    greedy_length: Int32[Array, '*outer Q']
    standard_correct: Float32[Array, '*outer Q']  # of the answer at once; the greedy one where that was not asked for
    standard_answered: Float32[Array, '*outer Q']
    majority_correct: Float32[Array, '*outer Q']
    weighted_correct: Float32[Array, '*outer Q']
    share: Float32[Array, '*outer Q']
    votes: Float32[Array, '*outer Q']
    correct: Float32[Array, '*outer Q']  # samples with the right answer, truncated or not
    right_votes: Int32[Array, '*outer Q']  # samples with the right answer that count in a vote
    groups: Int32[Array, '*outer Q N']  # votes for each answer, at the first sample that has it; 0 elsewhere
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
        samples = evaluation.complete(frozen, prompts, key, prefix)
        verdict = evaluation.consolidator(frozen, questions, samples, key)
        weighted = evaluation.weighted(frozen, questions, samples, key)
        keep = jnp.zeros_like(verdict.keep) if keeper is None else keeper(frozen, questions, samples, key).keep
        verdict = dataclasses.replace(verdict, keep=keep)
        direct = alone
        if evaluation.direct_prompt is not None:
            direct = evaluation.greedy(frozen, evaluation.direct_prompt(questions), key)
            direct = evaluation.consolidator(frozen, questions, direct, key)
        right = right_answers(questions, verdict)
        by_question = functools.partial(sum_by_question, questions.weight.shape[0])
        results = Results(
            weight=questions.weight * questions.known,
            greedy_correct=jnp.float32(right_answers(questions, alone)),
            greedy_answered=jnp.float32(alone.found),
            greedy_ended=jnp.float32(greedy.ended),
            greedy_length=greedy.mask.sum(axis=-1, dtype=jnp.int32),
            standard_correct=jnp.float32(right_answers(questions, direct)),
            standard_answered=jnp.float32(direct.found),
            majority_correct=jnp.float32((verdict.chosen == questions.answer).all(-1) & (verdict.votes > 0)),
            weighted_correct=jnp.float32((weighted.chosen == questions.answer).all(-1) & (weighted.votes > 0)),
            share=verdict.share,
            votes=verdict.votes,
            correct=by_question(right),
            right_votes=by_question(right & verdict.voted).astype(jnp.int32),
            groups=vote_groups(verdict, questions.weight.shape[0]),
            kept=by_question(verdict.keep > 0),
            kept_correct=by_question((verdict.keep > 0) & right),
        )
        return None, (results, samples, verdict, tally.tally(questions, samples, verdict))

    _, (results, samples, verdict, counts) = jax.lax.scan(batch, None, questions)
    return results, samples, verdict, metrics.summed(counts)


def right_answers(questions: Questions, verdict: Verdict) -> Bool[Array, 'S']:
    """Whether each sample has the answer of its question's label."""
    count = verdict.found.shape[0] // questions.weight.shape[0]
    return (verdict.answer == jnp.repeat(questions.answer, count, axis=0)).all(-1) & verdict.found


def sum_by_question(count: int, flags: Bool[Array, 'S']) -> Float32[Array, 'Q']:
    """How many samples of each of `count` questions have a flag."""
    return flags.reshape(count, -1).sum(axis=-1, dtype=jnp.float32)


def vote_groups(verdict: Verdict, count: int) -> Int32[Array, 'Q N']:
    """Votes for each answer of `count` questions, at the first sample that has it; 0 elsewhere."""
    voted = verdict.voted.reshape(count, -1)
    same = same_answer(verdict.answer.reshape(*voted.shape, -1)) & voted[:, None, :] & voted[:, :, None]
    return jnp.where(voted & ~has_earlier(same), same.sum(axis=-1), 0).astype(jnp.int32)


def summarise(
    results: Results, samples_per_question: int, at: tuple[int, ...] = (), standard: bool = False
) -> dict[str, Any]:
    """Accuracies with intervals from per-question results; runs on the host.

    `maj_at_k` and `pass_at_k` are exact means over the subsets of k of the N samples. `majority_accuracy` is the
    consolidator's own decision: where it refuses ties, a tie is wrong there and a matter of chance in `maj_at_k`. An
    answer of a truncated completion, where it could be read, is right or wrong like others but for the votes.

    Args:
      results: from `measure`.
      samples_per_question: N.
      at: the ks; () = the powers of two below N, and N.
      standard: whether an answer at once was asked for.

    Raises:
      ValueError: no question has a label, or a k is not in 1..N.
    """
    flat = {}
    for field in dataclasses.fields(results):
        array = np.asarray(getattr(results, field.name))
        flat[field.name] = array.reshape(-1, samples_per_question) if field.name == 'groups' else array.ravel()
    labelled = flat.pop('weight') > 0
    if not labelled.any():
        raise ValueError('none of the evaluation questions has a label; evaluation needs answers')
    flat = {name: array[labelled].astype(np.float64) for name, array in flat.items()}
    share, right, kept = flat['share'], flat['majority_correct'], flat['kept'].sum()
    votes, correct = (flat['right_votes'].astype(int), flat['groups'].astype(int)), flat['correct'].astype(int)
    ks, count = at or curve(samples_per_question), samples_per_question
    direct = {name: accuracy(flat[name_of]) for name, name_of in STANDARD.items()} if standard else {}
    return {
        'questions': int(labelled.sum()),
        'samples_per_question': count,
        'greedy_accuracy': accuracy(flat['greedy_correct']),
        'majority_accuracy': accuracy(right),
        'weighted_accuracy': accuracy(flat['weighted_correct']),
        'pass_at_n': accuracy(flat['correct'] > 0),
        'sample_accuracy': accuracy(flat['correct'] / count),
        'maj_at_k': {str(k): accuracy(majority_at_k(*votes, count, k)) for k in ks},
        'pass_at_k': {str(k): accuracy(pass_at_k(correct, count, k)) for k in ks},
        **direct,
        'answered': accuracy(flat['greedy_answered']),
        'truncated': float(1 - flat['greedy_ended'].mean()),
        'mean_length': float(flat['greedy_length'].mean()),
        'mean_vote_share': bootstrap(share, np.mean),
        'calibration_error': bootstrap(np.stack([share, right], -1), calibration_error),
        'brier': float(((share - right) ** 2).mean()),
        'kept_share': float((flat['kept'] > 0).mean()),
        'kept_precision': float(flat['kept_correct'].sum() / kept) if kept else None,
        'reliability': reliability(share, right),
    }
