"""Evaluation: intervals and curves on exact small cases, and a model of known answers measured."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import metrics
from t5x_selfimprove.consolidation.vote import MajorityVote
from t5x_selfimprove.estimators import accuracy, bootstrap, calibration_error, proportion, reliability
from t5x_selfimprove.evaluate import Evaluation, Results, measure, summarise
from t5x_selfimprove.records import Questions, check
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.templates import Template
from tests.consolidation.batches import Initials, Spelled
from tests.sampling.tables import EOS, Table


@pytest.mark.parametrize(
    ('right', 'count', 'low', 'high'),
    [  # Wilson score intervals as statsmodels' proportion_confint(right, count, method='wilson') gives them
        (0, 10, 0.0, 0.27753280),
        (8, 10, 0.49016247, 0.94331784),
        (10, 10, 0.72246720, 1.0),
        (500, 1000, 0.46907074, 0.53092926),
        (1, 1, 0.20654931, 1.0),
    ],
)
def test_wilson_intervals(right, count, low, high):
    got = proportion(np.arange(count) < right)
    assert got['value'] == right / count
    assert got['low'] == pytest.approx(low, abs=2e-6)
    assert got['high'] == pytest.approx(high, abs=2e-6)
    assert got['low'] <= got['value'] <= got['high']


def test_bootstrap_intervals():
    rows = np.random.default_rng(1).normal(5, 2, 400)
    got = bootstrap(rows, np.mean)
    assert got == bootstrap(rows, np.mean)
    assert got['value'] == pytest.approx(rows.mean())
    half = 1.96 * rows.std() / 20
    assert got['low'] == pytest.approx(rows.mean() - half, abs=0.03)
    assert got['high'] == pytest.approx(rows.mean() + half, abs=0.03)
    assert bootstrap(np.ones(7), np.mean) == {'value': 1.0, 'low': 1.0, 'high': 1.0}


def test_calibration_error_by_hand():
    # bin 0.6..0.7: shares 0.6, 0.65, right one of two: |1.25 - 1|; bin 0.9..1: shares 0.95, 1, both right: |1.95 - 2|
    pairs = np.array([[0.6, 1], [0.65, 0], [0.95, 1], [1.0, 1]])
    assert calibration_error(pairs) == pytest.approx((0.25 + 0.05) / 4)
    assert calibration_error(np.array([[1.0, 1], [0.0, 0]])) == 0
    assert calibration_error(np.array([[1.0, 0]] * 3)) == 1


def test_reliability_by_hand():
    table = reliability(np.array([0.0, 0.05, 0.5, 0.55, 0.59, 1.0]), np.array([0, 1, 1, 1, 0, 1.0]))
    assert [row['count'] for row in table] == [2, 0, 0, 0, 0, 3, 0, 0, 0, 1]
    assert [(row['low'], row['high']) for row in table] == [(n / 10, (n + 1) / 10) for n in range(10)]
    assert table[0]['mean_share'] == pytest.approx(0.025) and table[0]['accuracy'] == 0.5
    assert table[5]['mean_share'] == pytest.approx((0.5 + 0.55 + 0.59) / 3)
    assert table[5]['accuracy'] == pytest.approx(2 / 3)
    assert table[9]['mean_share'] == table[9]['accuracy'] == 1
    assert table[1] == {'low': 0.1, 'high': 0.2, 'count': 0, 'mean_share': None, 'accuracy': None}


def results(share, right, samples=4, **fields):
    """Results of four votes a question for one answer, greedy as right as the majority."""
    count = len(share)
    groups = np.zeros((count, samples), np.int32)
    groups[:, 0] = 4
    ones, right = np.ones(count, np.float32), np.array(right, np.float32)
    return Results(
        **{
            'weight': ones, 'greedy_correct': right, 'greedy_answered': ones, 'greedy_ended': ones,
            'greedy_length': np.full(count, 7, np.int32), 'majority_correct': right,
            'standard_correct': 0 * ones, 'standard_answered': 0 * ones, 'weighted_correct': right,
            'right_votes': (4 * right).astype(np.int32), 'groups': groups,
            'share': np.array(share, np.float32), 'votes': 4 * ones, 'correct': 4 * right, 'kept': 4 * ones,
            'kept_correct': 4 * right, **{name: np.array(value, np.float32) for name, value in fields.items()},
        }
    )  # fmt: skip


def test_shares_on_the_edge_of_a_bin_count_in_the_bin_they_begin():
    # Shares leave the device as float32, where 7/10 is a little less than 0.7.
    share = np.arange(11) / 10
    got = summarise(results(share, share > 0.4, 10), 10)['reliability']
    assert [row['count'] for row in got] == [1] * 9 + [2]
    for row in got:
        assert row['low'] - 1e-6 <= row['mean_share']


def test_a_summary_by_hand():
    measured = results(
        share=[1.0, 0.75, 0.5, 0.0, 0.9],
        right=[1, 1, 0, 0, 1],
        weight=[1, 1, 1, 1, 0],  # the last has no label or is padding
        greedy_correct=[1, 0, 0, 0, 1],
        greedy_answered=[1, 1, 1, 0, 1],
        greedy_ended=[1, 1, 1, 0, 0],
        greedy_length=[4, 5, 6, 9, 9],
        correct=[4, 3, 1, 0, 4],
        kept=[4, 3, 2, 0, 4],
        kept_correct=[4, 3, 0, 0, 4],
        weighted_correct=[1, 1, 1, 0, 0],
        right_votes=[4, 3, 1, 0, 0],
        groups=[[4, 0, 0, 0], [3, 0, 0, 1], [1, 2, 0, 1], [0, 0, 0, 0], [4, 0, 0, 0]],
        standard_correct=[0, 0, 1, 0, 1],
    )
    # As a program leaves it: batches of questions lead.
    batched = jax.tree.map(lambda x: np.stack([x[:3], np.concatenate([x[3:], 0 * x[:1]])]), measured)
    for each in (measured, batched):
        got = summarise(each, 4, at=(1, 2, 4), standard=True)
        assert (got['questions'], got['samples_per_question']) == (4, 4)
        assert got['greedy_accuracy'] == accuracy(np.array([1, 0, 0, 0]))
        assert got['majority_accuracy'] == accuracy(np.array([1, 1, 0, 0]))
        assert got['weighted_accuracy'] == got['pass_at_n'] == accuracy(np.array([1, 1, 1, 0]))
        assert got['answered'] == accuracy(np.array([1, 1, 1, 0]))
        assert got['standard_accuracy']['value'] == 0.25 and 'standard_accuracy' not in summarise(each, 4)
        assert list(got['maj_at_k']) == list(got['pass_at_k']) == ['1', '2', '4']
        assert got['maj_at_k']['1']['value'] == pytest.approx(8 / 16)
        assert got['maj_at_k']['1'] == pytest.approx(got['sample_accuracy'])
        # Of two of A A A B: A A (right) in half of the subsets, else a tie; of A B B C: a tie with A in half of them.
        assert got['maj_at_k']['2']['value'] == pytest.approx((1 + 3 / 4 + 1 / 4) / 4)
        assert got['maj_at_k']['4']['value'] == pytest.approx(2 / 4)
        assert got['pass_at_k']['2']['value'] == pytest.approx((1 + 1 + 1 / 2) / 4)
        assert got['pass_at_k']['4'] == got['pass_at_n']
        assert got['sample_accuracy']['value'] == 8 / 16
        assert got['truncated'] == 0.25
        assert got['mean_length'] == 6
        assert got['mean_vote_share']['value'] == pytest.approx(2.25 / 4)
        assert got['brier'] == pytest.approx((0 + 0.25**2 + 0.5**2 + 0) / 4)
        assert got['calibration_error']['value'] == pytest.approx((0 + 0.25 + 0.5 + 0) / 4)
        assert got['kept_share'] == 0.75
        assert got['kept_precision'] == pytest.approx(7 / 9)
        assert sum(row['count'] for row in got['reliability']) == 4
    assert summarise(results([0.5], [1], kept=[0], kept_correct=[0]), 4)['kept_precision'] is None


def test_without_labels_there_is_nothing_to_measure():
    with pytest.raises(ValueError, match='none of the evaluation questions has a label'):
        summarise(results([0.5, 1.0], [0, 1], weight=[0, 0]), 4)


# A model of known answers. Questions are one letter; the answer is the first letter of the completion.

WORDS = Spelled((b'', b'', b'A', b'B', b'C', b'?'))
A, B, C, NONE = 2, 3, 4, 5
CHANCES = {  # question: chances of answering A, B, C and nothing
    A: (1.0, 0.0, 0.0, 0.0),
    B: (0.6, 0.4, 0.0, 0.0),
    C: (0.0, 0.0, 0.0, 1.0),
}


def table_of(chances):
    """Answers by chance and ends; without an answer it goes on to the end of the room."""
    table = np.full((6, 4, 6, 6), -1e9, np.float32)
    for question, row in chances.items():
        table[question, 0, :, A:] = np.log(np.maximum(row, 1e-30))
        table[question, 1:, :, EOS] = 0
        table[question, 1:, NONE, EOS], table[question, 1:, NONE, NONE] = -1e9, 0
    return Table(jnp.asarray(table))


def questions_of(rows):
    """Questions [1, Q] from (question, label, weight); a label of None is unknown."""
    answers = [[ord(label)] if label else [0] for _, label, _ in rows]
    return Questions(
        tokens=jnp.array([[[question] for question, _, _ in rows]]),
        length=jnp.ones((1, len(rows)), jnp.int32),
        answer=jnp.array([answers], jnp.uint8),
        known=jnp.array([[label is not None for _, label, _ in rows]]),
        weight=jnp.array([[weight for _, _, weight in rows]], jnp.float32),
        id=jnp.arange(2 * len(rows), dtype=jnp.uint32).reshape(1, -1, 2),
    )


ASKED = [(A, 'a', 1), (A, 'b', 1), (B, 'b', 1), (C, 'c', 1), (A, None, 1), (A, 'a', 0)]


@dataclasses.dataclass(frozen=True)
class Letters(Initials):
    """The first token is the answer, if it is a letter."""

    def extract(self, tokens, mask, ended=None):
        found = (tokens[:, 0] >= A) & (tokens[:, 0] <= C)
        return jnp.where(found, tokens[:, :1].T - A + ord('a'), 0).T.astype(jnp.uint8), found


EVALUATION = Evaluation(
    Template(WORDS), Sampler(WORDS, samples=400, max_tokens=3), MajorityVote(Letters(WORDS), min_share=0.7)
)


def test_a_model_of_known_answers_is_measured():
    keeper = EVALUATION.consolidator
    found = measure(table_of(CHANCES), questions_of(ASKED), jnp.int32(0), EVALUATION, keeper)
    got, samples, verdict, counts = jax.tree.map(np.asarray, found)
    check(samples)
    check(verdict)
    assert got.weight.tolist() == [[1, 1, 1, 1, 0, 0]]
    assert got.greedy_correct[0, :4].tolist() == [1, 0, 0, 0]
    assert got.greedy_answered[0, :4].tolist() == [1, 1, 1, 0]
    assert got.greedy_ended[0, :4].tolist() == [1, 1, 1, 0]
    assert got.greedy_length[0, :4].tolist() == [2, 2, 2, 3]
    assert got.majority_correct[0, :4].tolist() == [1, 0, 0, 0]
    assert got.votes[0, :4].tolist() == [400, 400, 400, 0]
    assert got.correct[0, :2].tolist() == [400, 0] and got.correct[0, 3] == 0
    assert (got.right_votes == got.correct).all()
    most = 400 * got.share[0, 2]
    assert np.sort(got.groups[0, 2])[-3:] == pytest.approx([0, 400 - most, most])
    assert got.groups.sum(axis=-1).tolist() == got.votes.tolist()
    assert got.weighted_correct[0, :4].tolist() == [1, 0, 0, 0]
    assert (got.standard_correct == got.greedy_correct).all()  # nothing else was asked for
    assert got.share[0, 2] == pytest.approx(0.6, abs=0.08)
    assert got.correct[0, 2] == pytest.approx(400 * (1 - got.share[0, 2]))
    assert got.kept[0, :4].tolist() == [400, 400, 0, 0]  # 0.6 is below the threshold
    assert got.kept_correct[0, :4].tolist() == [400, 0, 0, 0]
    summary = summarise(got, 400)
    assert summary['questions'] == 4 and summary['kept_precision'] == 0.5
    assert summary['greedy_accuracy']['value'] == 0.25 and summary['pass_at_n']['value'] == 0.5
    assert metrics.values(counts)['questions'] == 5  # labelled or not


def test_an_answer_at_once_is_asked_for_with_a_prompt_of_its_own():
    table = np.array(table_of(CHANCES).table)
    table[B:NONE, 0, A] = -1e9  # behind another letter than that of the question...
    table[B:NONE, 0, A, C] = 0  # ... it answers C
    asks = dataclasses.replace(EVALUATION, direct_prompt=Template(WORDS, '{question}A'))
    got = measure(Table(jnp.asarray(table)), questions_of(ASKED), jnp.int32(0), asks)[0]
    assert got.greedy_correct[0, :4].tolist() == [1, 0, 0, 0]
    assert got.standard_correct[0, :4].tolist() == [1, 0, 0, 1]
    assert got.greedy_answered[0, 3] == 0 and got.standard_answered[0, 3] == 1
    with pytest.raises(ValueError, match='k must be in 1'):
        dataclasses.replace(EVALUATION, at=(1, 401))


def test_measuring_is_seeded_and_batched_without_a_difference():
    asked = questions_of([(B, 'b', 1), (B, 'a', 1), (A, 'a', 1), (C, 'c', 1)])
    tiny = table_of(CHANCES)
    one, same, other = (measure(tiny, asked, jnp.int32(seed), EVALUATION)[0].share for seed in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()
    halves = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[2:]), asked)
    assert measure(tiny, halves, jnp.int32(1), EVALUATION)[0].share.ravel().tolist() == one.ravel().tolist()


def test_greedy_is_the_same_sampler_without_chance():
    assert EVALUATION.greedy == dataclasses.replace(EVALUATION.sampler, samples=1, temperature=0.0)
