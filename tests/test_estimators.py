"""Estimators over subsets of the samples against all subsets, and against the truth they estimate."""

import collections
import itertools

import numpy as np
import pytest

from t5x_selfimprove.estimators import accuracy, curve, forgetting, majority_at_k, pass_at_k, proportion

RIGHT = 'a'
SAMPLES = ['aabbc-', 'abcdef', 'aaaaaa', 'bbbccc', '------', 'a-----', 'aabbcc', 'aaabb-', 'abb---', 'bbbbaa', 'aabcde']


def counted(sampled: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(votes for the right answer, votes for each answer) of questions whose samples are letters, '-' for no vote."""
    groups = np.zeros((len(sampled), len(sampled[0])), int)
    for row, answers in enumerate(sampled):
        sizes = list(collections.Counter(answers.replace('-', '')).values())
        groups[row, : len(sizes)] = sizes
    return np.array([answers.count(RIGHT) for answers in sampled]), groups


def by_counting(answers: tuple[str, ...]) -> float:
    """Success of the majority of these samples, ties drawn by lot."""
    votes = collections.Counter(answer for answer in answers if answer != '-')
    leaders = [answer for answer, count in votes.items() if count == max(votes.values())]
    return (RIGHT in leaders) / max(1, len(leaders))


@pytest.mark.parametrize('k', range(1, 7))
def test_both_are_the_mean_over_all_subsets(k: int):
    right, groups = counted(SAMPLES)
    subsets = [list(itertools.combinations(answers, k)) for answers in SAMPLES]
    wanted = [np.mean([by_counting(subset) for subset in of_one]) for of_one in subsets]
    np.testing.assert_allclose(majority_at_k(right, groups, 6, k), wanted, atol=1e-12)
    wanted = [np.mean([RIGHT in subset for subset in of_one]) for of_one in subsets]
    np.testing.assert_allclose(pass_at_k(right, 6, k), wanted, atol=1e-12)


def test_subsets_of_more_samples_than_can_be_listed():
    draw = np.random.default_rng(0)
    sampled = [''.join(draw.choice(list('aaabbc-'), 40)) for _ in range(3)]
    right, groups = counted(sampled)
    for k in (7, 15):
        drawn = [
            np.mean([by_counting(draw.choice(list(one), k, replace=False)) for _ in range(4000)]) for one in sampled
        ]
        np.testing.assert_allclose(majority_at_k(right, groups, 40, k), drawn, atol=0.03)  # 3.8 standard errors
    long = majority_at_k(np.array([1200]), np.array([[1200, 1100, 700]]), 4096, 512)
    assert 0.5 < long[0] < 1  # nothing over- or underflows


def test_neither_is_biased():
    # The truth of k = 3 fresh samples, by all of them; the estimate from 5, over all that may be drawn.
    chances, k, samples = {'a': 0.4, 'b': 0.35, 'c': 0.15, '-': 0.1}, 3, 5
    chance = lambda answers: float(np.prod([chances[answer] for answer in answers]))  # noqa: E731
    fresh = list(itertools.product(chances, repeat=k))
    sets = list(itertools.product(chances, repeat=samples))
    right, groups = counted([''.join(one) for one in sets])
    weights = np.array([chance(one) for one in sets])
    assert weights.sum() == pytest.approx(1)
    majority, passed = majority_at_k(right, groups, samples, k), pass_at_k(right, samples, k)
    assert weights @ majority == pytest.approx(sum(chance(one) * by_counting(one) for one in fresh))
    assert weights @ passed == pytest.approx(1 - 0.6**k)
    # The share of right samples in the place of their probability is biased.
    assert weights @ (1 - (1 - right / samples) ** k) != pytest.approx(1 - 0.6**k, abs=1e-3)


def test_one_sample_is_its_own_majority():
    right, groups = counted(SAMPLES)
    np.testing.assert_allclose(majority_at_k(right, groups, 6, 1), right / 6)
    np.testing.assert_allclose(pass_at_k(right, 6, 1), right / 6)


@pytest.mark.parametrize('k', [0, 7, -1])
def test_k_must_be_drawn(k: int):
    right, groups = counted(SAMPLES)
    with pytest.raises(ValueError, match=rf'k must be in 1\.\.6, .* it is {k}'):
        majority_at_k(right, groups, 6, k)
    with pytest.raises(ValueError, match=rf'k must be in 1\.\.6, .* it is {k}'):
        pass_at_k(right, 6, k)


def test_curve():
    assert [curve(samples) for samples in (1, 2, 3, 8, 40)] == [
        (1,), (1, 2), (1, 2, 3), (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 40),
    ]  # fmt: skip


def test_accuracies_have_intervals_and_a_standard_error():
    values = np.array([1, 0, 0.5, 1, 1, 0, 0.25, 1] * 50)
    got = accuracy(values)
    assert got['value'] == values.mean() and got['stderr'] == pytest.approx(values.std(ddof=1) / 20)
    assert got['low'] == pytest.approx(got['value'] - 1.96 * got['stderr'], abs=0.006)
    assert got['high'] == pytest.approx(got['value'] + 1.96 * got['stderr'], abs=0.006)
    certain = accuracy(np.ones(10))  # ten of ten right: a bootstrap would say 1 .. 1
    assert certain == {**proportion(np.ones(10)), 'stderr': 0.0} and certain['low'] < 0.75
    assert accuracy(np.ones(1))['stderr'] is None


def test_forgetting_is_what_was_lost_since_the_best():
    assert forgetting([0.5, 0.75, 0.625]) == 0.125
    assert forgetting([0.5, 0.75, 0.875]) == -0.125
    assert forgetting([0.5]) is None
