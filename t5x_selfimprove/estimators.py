"""Accuracies, calibration and their intervals from per-question results; NumPy on the host.

Every accuracy is a mean over questions of a number in 0..1: right or not, or the exact expectation of that over the
subsets of k of a question's N samples (pass@k, maj@k), so that one set of samples gives the whole curve over k without
bias.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

CALIBRATION_BINS = 10
BOOTSTRAPS = 1000
Z = 1.959964  # of a two-sided 95 % interval


def interval(value: float, low: float, high: float) -> dict[str, float]:
    """A number with its 95 % interval, as it is written everywhere."""
    return {'value': float(value), 'low': float(low), 'high': float(high)}


def accuracy(values: np.ndarray) -> dict[str, float]:
    """Mean over questions of numbers in 0..1 with its percentile bootstrap interval and standard error.

    Where all questions came out the same, resampling them shows no spread, which says little of the questions that were
    not asked: there the interval is Wilson's. `stderr` is the sample standard deviation / sqrt(n), as
    lm-evaluation-harness has it; None of a single question.
    """
    values = np.asarray(values, np.float64)
    found = proportion(values) if values.min() == values.max() in (0, 1) else bootstrap(values, np.mean)
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {**found, 'stderr': error}


def proportion(flags: np.ndarray) -> dict[str, float]:
    """Share of true flags with its Wilson score interval (Wilson 1927)."""
    count, share = len(flags), float(np.mean(flags))
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def bootstrap(rows: np.ndarray, statistic: Callable[[np.ndarray], Any]) -> dict[str, float]:
    """A statistic of rows with its percentile bootstrap interval; the resampling is always the same."""
    generator = np.random.default_rng(0)
    draws = [statistic(rows[generator.integers(0, len(rows), len(rows))]) for _ in range(BOOTSTRAPS)]
    return interval(statistic(rows), *np.quantile(draws, [0.025, 0.975]))


def pass_at_k(correct: Int[np.ndarray, 'Q'], samples: int, k: int) -> Float[np.ndarray, 'Q']:
    """Probability that one of k samples is right, of each question.

    The unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, equation 1): 1 - C(N - c, k) / C(N, k), the share of
    the subsets of k of the N samples that hold a right one.

    Args:
      correct: c, right samples of each question.
      samples: N.
      k: 1..N.

    Raises:
      ValueError: k is not in 1..N.
    """
    check_k(k, samples)
    place = np.arange(k)
    wrong = np.maximum(samples - np.asarray(correct)[:, None] - place, 0)
    return 1.0 - np.prod(wrong / (samples - place), axis=1)


def majority_at_k(
    right: Int[np.ndarray, 'Q'], groups: Int[np.ndarray, 'Q N'], samples: int, k: int
) -> Float[np.ndarray, 'Q']:
    """Probability that the majority of k samples is right, of each question.

    Exactly the mean over all subsets of k of the N samples, and so unbiased for k fresh samples. Samples that do not
    vote are drawn like the others. Of m answers with the most votes each is chosen with probability 1 / m (the first
    drawn wins, in whatever order).

    Args:
      right: votes for the right answer among the N samples.
      groups: votes for each answer, that one included; zeros fill the rest.
      samples: N.
      k: 1..N.

    Raises:
      ValueError: k is not in 1..N.
    """
    check_k(k, samples)
    found = []
    for votes, sizes in zip(np.asarray(right).tolist(), np.asarray(groups).tolist(), strict=True):
        others = sorted(size for size in sizes if size)
        if votes:
            others.remove(votes)
        found.append(_majority(votes, tuple(others), samples - votes - sum(others), k))
    return np.array(found)


def check_k(k: int, samples: int) -> None:
    """Raises ValueError unless k of N samples can be drawn."""
    if not 1 <= k <= samples:
        raise ValueError(f'k must be in 1..{samples}, the samples that there are of each question; it is {k}')


@functools.lru_cache(maxsize=1 << 16)
def _majority(right: int, others: tuple[int, ...], silent: int, k: int) -> float:
    """Expected success of the majority of k samples of right + sum(others) + silent.

    k drawn without replacement are independent binomial counts of every answer, given that they sum to k; the parameter
    of the binomials drops out, and k / N keeps all numbers near 1. For j votes for the right answer: answers that j
    votes could reach are gone through one by one, with how many of them do; all the rest is one binomial.
    """
    if not right:
        return 0.0
    total = right + sum(others) + silent
    if k == total:
        return 0.0 if others and others[-1] > right else 1 / (1 + others.count(right))
    chance = k / total
    expected = 0.0
    of_right = _binomial(right, chance)
    for votes in range(1, min(right, k) + 1):
        rivals = [size for size in others if size >= votes]
        rest = _binomial(total - right - sum(rivals), chance)
        used = np.zeros((k // votes, k + 1))  # [other answers with as many votes, samples drawn]
        room = k + 1 - votes
        used[0, votes : votes + len(rest)] = of_right[votes] * rest[:room]
        for size in rivals:
            counts = _binomial(size, chance)
            below = np.stack([np.convolve(row, counts[:votes])[: k + 1] for row in used])
            below[1:, votes:] += counts[votes] * used[:-1, :-votes]
            used = below
        expected += float((used[:, k] / np.arange(1, len(used) + 1)).sum())
    return min(1.0, expected / _binomial(total, chance)[k])


@functools.lru_cache(maxsize=1 << 12)
def _binomial(count: int, chance: float) -> Float[np.ndarray, '_']:
    """Probabilities of 0..count successes, 0 < chance < 1."""
    numbers = np.arange(count + 1)
    log_factorial = np.array([math.lgamma(number + 1) for number in range(count + 1)])
    logs = log_factorial[-1] - log_factorial - log_factorial[::-1]
    return np.exp(logs + numbers * math.log(chance) + (count - numbers) * math.log1p(-chance))


def curve(samples: int) -> tuple[int, ...]:
    """The ks that are reported where none are asked for: the powers of two below N, and N."""
    return (*(2**power for power in range((samples - 1).bit_length())), samples)


def calibration_error(pairs: Float[np.ndarray, 'Q 2']) -> float:
    """Expected calibration error of (confidence, correct) rows: mean over bins of |confidence - accuracy| (ECE, Guo et
    al. 2017, arXiv:1706.04599, ten equal bins)."""
    bins = bin_of(pairs[:, 0])
    gaps = np.bincount(bins, pairs[:, 0] - pairs[:, 1], CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(pairs))


def bin_of(share: Float[np.ndarray, 'Q']) -> Int[np.ndarray, 'Q']:
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


def forgetting(accuracies: Sequence[float]) -> float | None:
    """The best accuracy of any earlier measurement less the last one (Chaudhry et al. 2018, arXiv:1801.10112, equation
    3); negative where the last is the best. None of fewer than two."""
    return max(accuracies[:-1]) - accuracies[-1] if len(accuracies) > 1 else None
