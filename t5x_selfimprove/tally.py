"""Counts over a batch of samples and its verdict, on device: the numbers that a round reports."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from t5x_selfimprove.metrics import Mean, Metrics, Sum
from t5x_selfimprove.records import Questions, Samples, Verdict

SHARE_BINS = 20
LENGTH_BINS = 16


def histogram(
    values: Float[Array, '*n'], weight: Float32[Array, '*n'], top: float, bins: int
) -> Float32[Array, '{bins}']:
    """Weights per equal bin of 0..top; `top` itself falls in the last bin."""
    bin_number = jnp.clip((values / top * bins + 1e-5).astype(jnp.int32), 0, bins - 1)
    return jnp.zeros(bins, jnp.float32).at[bin_number.ravel()].add(weight.ravel())


def length_edges(max_tokens: int) -> list[float]:
    """Edges of the length histogram, in tokens."""
    return [max_tokens * bin_number / LENGTH_BINS for bin_number in range(LENGTH_BINS + 1)]


def tally(questions: Questions, samples: Samples, verdict: Verdict) -> Metrics:
    """Counts of one batch; padding questions are not counted.

    Means are over samples that were drawn or over questions with at least one vote (mean_vote_share). `slot_use` is the
    part of the slots' steps that drew a token of a path; the rest went to paths that had ended, or to padding.
    `truncated` samples were cut off at the length limit; `truncated_answered` are those of them in which an answer
    could be read all the same, which is counted in the vote (`voted`) only where the answer format says so.
    """
    count = samples.ended.shape[0] // questions.weight.shape[0]
    weight = questions.weight
    sample_weight = jnp.repeat(weight, count)
    if samples.drawn is not None:
        sample_weight = sample_weight * samples.drawn
    length = samples.mask.sum(axis=-1).astype(jnp.float32)
    voted = weight * (verdict.votes > 0)
    kept = (verdict.keep > 0) * sample_weight
    kept_questions = (kept.reshape(-1, count).sum(axis=-1) > 0).astype(jnp.float32)
    total = sample_weight.sum()
    drawn = (length * sample_weight).sum()
    used = {} if samples.slot_steps is None else {'slot_use': Mean(drawn, samples.slot_steps.astype(jnp.float32))}
    return used | {
        'questions': Sum(weight.sum()),
        'samples': Sum(total),
        'answered': Mean((verdict.found * sample_weight).sum(), total),
        'ended': Mean((samples.ended * sample_weight).sum(), total),
        'truncated': Mean((~samples.ended * sample_weight).sum(), total),
        'truncated_answered': Mean(
            (~samples.ended & verdict.found * (sample_weight > 0)).sum(dtype=jnp.float32), total
        ),
        'voted': Mean((verdict.voted * sample_weight).sum(), total),
        'mean_length': Mean((length * sample_weight).sum(), total),
        'mean_vote_share': Mean((verdict.share * voted).sum(), voted.sum()),
        'questions_without_answer': Sum((weight - voted).sum()),
        'kept_questions': Sum(kept_questions.sum()),
        'kept_paths': Sum(kept.sum()),
        'sampled_tokens': Sum(drawn),
        'share_histogram': Sum(histogram(verdict.share, voted, 1.0, SHARE_BINS)),
        'length_histogram': Sum(histogram(length, sample_weight, samples.tokens.shape[1], LENGTH_BINS)),
    }
