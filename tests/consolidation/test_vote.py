"""The vote: exact small cases, a plain Counter on random batches, and what it must not depend on."""

import collections
import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest

from t5x_selfimprove.consolidation import MajorityVote
from t5x_selfimprove.records import Questions, Samples, Verdict
from tests.consolidation.batches import (
    BYTES,
    LETTERS,
    OPTIONS,
    Initials,
    judge,
    kept,
    letters,
    questions_of,
    samples_of,
    unchecked,
)

VOTE = MajorityVote(LETTERS)
OF_PATHS = ('answer', 'found', 'voted', 'reward', 'keep')  # what a verdict says of each path


def vote(*questions: str, part: MajorityVote = VOTE, weight: list[float] | None = None, seed: int = 0) -> Verdict:
    return judge(part, questions_of([None] * len(questions), weight=weight), letters(*questions), seed)


def chosen(verdict: Verdict) -> str:
    """The chosen answers, '-' for none."""
    return ''.join(chr(code).upper() if code else '-' for code in verdict.chosen[:, 0])


def test_by_hand():
    verdict = vote('BBAB-', 'ABABC', '-----', 'C----')
    assert chosen(verdict) == 'B--C'
    assert verdict.answer[:5, 0].tobytes() == b'bbab\0'
    assert verdict.found.tolist() == [True] * 4 + [False] + [True] * 5 + [False] * 5 + [True] + [False] * 4
    assert verdict.votes.tolist() == [4, 5, 0, 1]
    assert verdict.share.tolist() == [0.75, np.float32(0.4), 0, 1]
    assert kept(verdict, 5) == [[1, 1, 0, 1, 0], [0] * 5, [0] * 5, [1, 0, 0, 0, 0]]
    assert (verdict.reward == verdict.keep).all()


def test_split_ties():
    part = MajorityVote(LETTERS, ties='split')
    verdict = vote('-CAAC', 'ABCD-', 'BBA--', '-----', part=part)
    assert chosen(verdict) == 'CAB-'
    third = 0.25
    assert kept(verdict, 5) == [[0, 0.5, 0.5, 0.5, 0.5], [third] * 4 + [0], [1, 1, 0, 0, 0], [0] * 5]
    assert (verdict.reward == verdict.keep).all()
    assert verdict.share.tolist() == [0.5, 0.25, np.float32(2 / 3), 0]


def test_thresholds():
    texts = ('BBBAC', 'BBB-A', 'BBB--', 'BAC--', 'B----')
    for fields, wanted in [
        ({'min_share': 0.6}, [1, 1, 1, 0, 1]),
        ({'min_share': 0.61}, [0, 1, 1, 0, 1]),
        ({'min_share': 1.0}, [0, 0, 1, 0, 1]),
        ({'min_share': 0.6, 'share_of': 'all'}, [1, 1, 1, 0, 0]),
        ({'min_votes': 2}, [1, 1, 1, 0, 0]),
        ({'min_votes': 4}, [1, 1, 0, 0, 0]),
        ({'min_votes': 6}, [0, 0, 0, 0, 0]),
    ]:
        verdict = vote(*texts, part=MajorityVote(LETTERS, **fields))
        assert verdict.keep.reshape(5, 5).any(axis=1).tolist() == wanted, fields
        # What is not kept is still reported.
        assert chosen(verdict) == 'BBB-B' and verdict.reward.reshape(5, 5).sum(axis=1).tolist() == [3, 3, 3, 0, 1]
        all_paths = fields.get('share_of') == 'all'
        shares = [0.6, 0.6, 0.6, 0.2, 0.2] if all_paths else [0.6, 0.75, 1, 1 / 3, 1]
        np.testing.assert_allclose(verdict.share, shares, rtol=1e-6)


def test_a_share_that_is_just_reached_is_reached():
    for votes, count in ((3, 2), (5, 3), (7, 6), (15, 9), (16, 11)):
        texts = 'A' * count + ''.join(chr(ord('B') + place) for place in range(votes - count))
        reached = MajorityVote(LETTERS, min_share=count / votes)
        assert vote(texts, part=reached).keep.sum() == count
        missed = MajorityVote(LETTERS, min_share=count / votes + 0.001)
        assert vote(texts, part=missed).keep.sum() == 0


def test_equal_completions():
    # Lower-case letters are the same completion said again.
    texts = ('bbbAA', 'aBaB-', 'abbaC')
    everyone = vote(*texts)
    assert chosen(everyone) == 'B--' and everyone.votes.tolist() == [5, 4, 5]
    once = vote(*texts, part=MajorityVote(LETTERS, copies='once', distinct=True))
    assert chosen(once) == 'AB-' and once.votes.tolist() == [3, 3, 3]
    assert kept(once, 5) == [[0, 0, 0, 1, 1], [0, 1, 0, 1, 0], [0] * 5]
    assert once.found.tolist() == everyone.found.tolist()
    split = vote(*texts, part=MajorityVote(LETTERS, copies='once', distinct=True, ties='split'))
    third = np.float32(1 / 3)
    assert kept(split, 5)[2] == [third, third, 0, 0, third] and chosen(split) == 'ABA'
    # The share of all paths leaves repetitions out, too.
    part = MajorityVote(LETTERS, copies='once', distinct=True, share_of='all')
    assert vote('bbbb-', part=part).share.tolist() == [0.5]


def test_the_root_of_equal_completions():
    # Four times the same path for B (2 votes), two different paths for A and one C (not read: no vote).
    one = vote('bbbbAa-', part=MajorityVote(LETTERS, copies='root'))
    assert chosen(one) == '-' and one.votes.tolist() == [4] and one.share.tolist() == [0.5]  # 2 : 2 is a tie
    two = vote('bbbAa-', part=MajorityVote(LETTERS, copies='root', min_share=0.53))
    assert chosen(two) == 'A' and kept(two, 6) == [[0, 0, 0, 1, 1, 0]]
    np.testing.assert_allclose(two.share, 2 / (2 + 3**0.5), rtol=1e-4)
    # All copies may be kept; they vote together.
    assert kept(vote('bbbb', part=MajorityVote(LETTERS, copies='root', min_votes=2)), 4) == [[1, 1, 1, 1]]
    assert kept(vote('bbbb', part=MajorityVote(LETTERS, copies='root', min_votes=3)), 4) == [[0, 0, 0, 0]]


def likely(samples: Samples, *means: float) -> Samples:
    """The samples with a mean log-probability a token for each."""
    return dataclasses.replace(samples, log_probs=np.where(samples.mask, np.float32(means)[:, None], np.float32(0)))


def test_a_vote_weighted_by_probability():
    # Wang et al. 2022: two unlikely paths for B, a likely one for A. Per token, so that length does not matter.
    samples = likely(letters('BBA-'), -2.0, -1.5, -0.1, -0.2)
    questions = questions_of([None])
    part = MajorityVote(LETTERS, ballot='probability')
    assert chosen(judge(VOTE, questions, samples)) == 'B' and chosen(judge(part, questions, samples)) == 'A'
    weights = np.exp([-2.0, -1.5, -0.1, -0.2])
    verdict = judge(part, questions, samples)
    np.testing.assert_allclose(verdict.share, weights[2] / weights[:3].sum(), rtol=1e-4)
    np.testing.assert_allclose(verdict.votes, weights[:3].sum(), rtol=1e-4)
    assert kept(verdict, 4) == [[0, 0, 1, 0]] and verdict.reward.tolist() == [0, 0, 1, 0]
    whole = judge(dataclasses.replace(part, share_of='all'), questions, samples)
    np.testing.assert_allclose(whole.share, weights[2] / weights.sum(), rtol=1e-4)
    # Equal probabilities are the plain vote, ties and all; three copies weigh as the root of three.
    even = likely(letters('BBAC', 'BBAA'), *[-0.7] * 8)
    assert chosen(judge(part, questions_of([None] * 2), even)) == chosen(vote('BBAC', 'BBAA')) == 'B-'
    root = dataclasses.replace(part, copies='root')
    copies = likely(letters('bbbA'), *[-0.5] * 3, -0.1)
    np.testing.assert_allclose(judge(root, questions, copies).votes, 3**0.5 * np.exp(-0.5) + np.exp(-0.1), rtol=1e-4)
    # However unlikely, a path has a say where there is no other.
    assert chosen(judge(part, questions, likely(letters('A---'), *[-50.0] * 4))) == 'A'


def test_unanimity():
    unanimous = MajorityVote(LETTERS, min_share=1.0, share_of='all')
    verdict = vote('BBBB', 'BBB-', 'BBBA', part=unanimous)
    assert verdict.keep.reshape(3, 4).sum(axis=1).tolist() == [4, 0, 0]
    of_answered = vote('BBBB', 'BBB-', 'BBBA', part=dataclasses.replace(unanimous, share_of='answered'))
    assert of_answered.keep.reshape(3, 4).sum(axis=1).tolist() == [4, 3, 0]


def test_truncated_paths_do_not_vote_unless_they_are_let():
    # Two of three paths for B were cut off behind their answer, one of them so that it may have been cut itself.
    texts = ['So the answer is B. And~', 'The answer is B. Hence~', 'The answer is A.', 'The answer is C~']
    samples, questions = samples_of(texts), questions_of([None], OPTIONS)
    verdict = judge(MajorityVote(OPTIONS), questions, samples)
    assert verdict.answer[:, 0].tobytes() == b'bba\0' and verdict.found.tolist() == [True, True, True, False]
    assert verdict.voted.tolist() == [False, False, True, False]
    assert (chosen(verdict), verdict.votes.tolist(), kept(verdict, 4)) == ('A', [1], [[0, 0, 1, 0]])
    assert judge(MajorityVote(OPTIONS, share_of='all'), questions, samples).share.tolist() == [0.25]
    let = judge(MajorityVote(dataclasses.replace(OPTIONS, truncated_votes=True)), questions, samples)
    assert let.voted.tolist() == let.found.tolist() == verdict.found.tolist()
    assert (chosen(let), let.votes.tolist(), kept(let, 4)) == ('B', [3], [[1, 1, 0, 0]])


def test_completions_that_differ_behind_the_mask_are_equal():
    samples = letters('bb')
    tokens = np.where(samples.mask, samples.tokens, np.arange(2)[:, None])
    part = MajorityVote(LETTERS, copies='once', distinct=True)
    assert judge(part, questions_of([None]), dataclasses.replace(samples, tokens=tokens)).keep.tolist() == [1, 0]
    last = samples.mask.sum(axis=1, keepdims=True) - 1
    shorter = dataclasses.replace(samples, mask=samples.mask & (np.arange(32) < last + np.array([[1], [0]])))
    assert judge(part, questions_of([None]), shorter).keep.tolist() == [1, 1]


def test_cap():
    part = MajorityVote(LETTERS, max_kept=2)
    verdict = vote('BBABB', 'B--AA', 'A----', part=part)
    assert verdict.keep.reshape(3, 5).sum(axis=1).tolist() == [2, 2, 1]
    assert (verdict.keep <= verdict.reward).all() and verdict.reward.sum() == 7
    # Distinct paths come first, repetitions only where they run out.
    for seed in range(10):
        assert kept(vote('aaaA-', part=part, seed=seed), 5) == [[1, 0, 0, 1, 0]]
        assert sum(kept(vote('aaaa-', part=part, seed=seed), 5)[0]) == 2


def test_cap_is_drawn_evenly_and_by_key():
    count = 600
    questions, samples = questions_of([None] * count), letters(*['BBAB-'] * count)
    part = MajorityVote(LETTERS, max_kept=1)
    one = judge(part, questions, samples).keep.reshape(count, 5)
    assert one.sum() == count
    assert ((one.sum(axis=0)[[0, 1, 3]] > 150) & (one.sum(axis=0)[[0, 1, 3]] < 250)).all()  # 4.3 standard deviations
    other = judge(part, questions, samples, seed=1).keep.reshape(count, 5)
    assert 300 < (one != other).any(axis=1).sum() < 500


def test_question_weighting():
    verdict = vote('BBABB', 'B----', '-----', part=MajorityVote(LETTERS, weighting='question'))
    assert kept(verdict, 5) == [[0.25, 0.25, 0, 0.25, 0.25], [1, 0, 0, 0, 0], [0] * 5]
    capped = MajorityVote(LETTERS, weighting='question', ties='split', max_kept=3)
    np.testing.assert_allclose(vote('BBAAB', 'BBAA-', part=capped).keep.reshape(2, 5).sum(axis=1), 1)


def test_padding_questions():
    verdict = vote('BBB', 'BBB', 'AAB', weight=[1, 0, 1])
    assert kept(verdict, 3) == [[1, 1, 1], [0, 0, 0], [1, 1, 0]]
    for field in (verdict.chosen, verdict.share, verdict.votes):
        assert field[0].any() and not field[1].any()
    assert not verdict.answer[3:6].any() and not verdict.found[3:6].any() and not verdict.reward[3:6].any()


def test_an_answer_that_was_cut_is_none():
    samples = samples_of(['The answer is B.', 'The answer is B~', 'The answer is A.~', 'A', 'A'])
    let = dataclasses.replace(OPTIONS, truncated_votes=True)
    verdict = judge(MajorityVote(let, ties='split'), questions_of([None]), samples)
    assert verdict.found.tolist() == [True, False, True, False, False]
    assert verdict.votes.tolist() == [2] and verdict.keep.tolist() == [0.5, 0, 0.5, 0, 0]


def test_answers_are_read_from_the_text():
    questions, samples = random_batch(6)
    quick, whole = judge(VOTE, questions, samples), judge(MajorityVote(OPTIONS), questions, samples)
    for name, field in vars(quick).items():
        assert (field == vars(whole)[name]).all(), name


def random_batch(seed: int, count: int = 40, paths: int = 7) -> tuple[Questions, Samples]:
    rng = np.random.default_rng(seed)
    texts = [''.join(rng.choice(list('AABBCDabb-'), paths)) for _ in range(count)]
    weight = rng.integers(0, 5, count) > 0
    return questions_of([None] * count, weight=weight.astype(float)), letters(*texts)


def by_counter(part: MajorityVote, answers: list[bytes], words: list[bytes]) -> tuple[bytes, float, int, list[float]]:
    """(chosen, share, votes, weights without the cap) of one question."""
    first = [words.index(word) == place or part.copies != 'once' for place, word in enumerate(words)]
    assert part.distinct == (part.copies == 'once')
    votes = [answer for answer, counts in zip(answers, first, strict=True) if answer and counts]
    if not votes:
        return b'', 0.0, 0, [0.0] * len(answers)
    count = collections.Counter(votes)
    lead = max(count.values())
    winners = [answer for answer in count if count[answer] == lead]
    whole = len(votes) if part.share_of == 'answered' else sum(first)
    if len(winners) > 1 and part.ties == 'refuse':
        return b'', lead / whole, len(votes), [0.0] * len(answers)
    enough = lead / whole >= part.min_share and len(votes) >= part.min_votes
    weights = [
        1 / len(winners) * (answer in winners and counts and enough)
        for answer, counts in zip(answers, first, strict=True)
    ]
    return winners[0], lead / whole, len(votes), weights


@pytest.mark.parametrize(
    'part',
    [
        VOTE,
        MajorityVote(LETTERS, ties='split', min_share=0.45, max_kept=2),
        MajorityVote(LETTERS, copies='once', distinct=True, min_votes=4, share_of='all', min_share=0.3, max_kept=1),
        MajorityVote(LETTERS, copies='once', distinct=True, ties='split'),
    ],
    ids=['plain', 'split', 'distinct', 'distinct split'],
)
def test_equals_a_counter(part: MajorityVote):
    questions, samples = random_batch(0)
    verdict = judge(part, questions, samples)
    paths = 7
    for row in range(40):
        here = slice(row * paths, (row + 1) * paths)
        if not questions.weight[row]:
            assert not verdict.keep[here].any() and not verdict.votes[row]
            continue
        answers = [one.tobytes().rstrip(b'\0') for one in verdict.answer[here]]
        words = [t[m].tobytes() for t, m in zip(samples.tokens[here], samples.mask[here], strict=True)]
        winner, share, votes, weights = by_counter(part, answers, words)
        assert verdict.chosen[row].tobytes().rstrip(b'\0') == winner
        np.testing.assert_allclose(verdict.share[row], share, rtol=1e-6)
        assert verdict.votes[row] == votes
        if part.max_kept is None:
            np.testing.assert_allclose(verdict.keep[here], weights, rtol=1e-6)
        else:
            assert (verdict.keep[here] <= np.float32(weights)).all()
            assert (verdict.keep[here] > 0).sum() == min(part.max_kept, np.count_nonzero(weights))


EVERYTHING = MajorityVote(LETTERS, ties='split', max_kept=2, min_share=0.3)


def rows_of(verdict: Verdict, row: int, paths: int = 7) -> list[list]:
    """All that a verdict says of one question."""
    return [
        (
            field[row * paths : (row + 1) * paths]
            if name in ('answer', 'found', 'voted', 'reward', 'keep')
            else field[row]
        ).tolist()
        for name, field in vars(verdict).items()
    ]


def test_does_not_depend_on_the_batch():
    questions, samples = random_batch(1)
    whole = judge(EVERYTHING, questions, samples)
    order = np.random.default_rng(2).permutation(40)[:11]
    paths = (order[:, None] * 7 + np.arange(7)).reshape(-1)
    some = judge(
        EVERYTHING,
        jax.tree.map(lambda field: field[order], questions),
        jax.tree.map(lambda field: field[paths], samples),
    )
    for place, row in enumerate(order):
        assert rows_of(some, place) == rows_of(whole, row)
    keys = jax.tree.map(lambda field: field, dataclasses.replace(questions, id=questions.id + np.uint32([1, 0])))
    assert (judge(EVERYTHING, keys, samples).keep != whole.keep).any()  # the id does decide


def test_order_of_paths_only_orders_the_verdict():
    part = MajorityVote(LETTERS, min_share=0.3)
    questions, samples = random_batch(3)
    order = np.random.default_rng(4).permuted(np.tile(np.arange(7), (40, 1)), axis=1)
    paths = (np.arange(40)[:, None] * 7 + order).reshape(-1)
    before, after = (
        judge(part, questions, samples),
        judge(part, questions, jax.tree.map(lambda field: field[paths], samples)),
    )
    for name in OF_PATHS:
        assert (vars(before)[name][paths] == vars(after)[name]).all()
    for name in ('chosen', 'share', 'votes'):
        assert (vars(before)[name] == vars(after)[name]).all()


def test_equal_parts_share_a_trace():
    traces = []

    def counted(part: Any, questions: Questions, samples: Samples, key: jax.Array) -> Verdict:
        traces.append(part)
        return part(None, questions, samples, key)

    compiled = jax.jit(counted, static_argnums=0)
    for _ in range(3):
        answers = Initials(type(BYTES)())
        compiled(MajorityVote(answers, min_share=0.5), questions_of([None]), letters('AAB'), jax.random.key(0))
    assert len(traces) == 1
    compiled(MajorityVote(LETTERS, min_share=0.6), questions_of([None]), letters('AAB'), jax.random.key(0))
    assert len(traces) == 2


def test_eight_devices_say_what_one_says():
    questions, samples = random_batch(5)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    placed = jax.device_put((questions, samples), spread)
    for before, after in zip(
        jax.tree.leaves(judge(EVERYTHING, questions, samples)), jax.tree.leaves(judge(EVERYTHING, *placed)), strict=True
    ):
        assert (before == after).all()


def test_memory_of_long_completions():
    part = MajorityVote(LETTERS, copies='once', distinct=True, max_kept=4)
    samples = samples_of(['x'] * 1600, room=512)
    compiled = jax.jit(lambda q, s, k: part(None, q, s, k)).lower(questions_of([None] * 40), samples, jax.random.key(0))
    assert compiled.compile().memory_analysis().temp_size_in_bytes < 20e6  # [Q, N, N, C] would be 32 million elements


def test_samples_must_be_shared_out():
    with pytest.raises(ValueError, match=r'5 samples cannot be shared out to 2 questions'):
        VOTE(None, questions_of([None] * 2), letters('AAAAA'), jax.random.key(0))


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'answers': None}, 'MajorityVote.answers must be an AnswerFormat; it is None'),
        ({'min_share': '0.6'}, "MajorityVote.min_share must be a number; it is '0.6'"),
        ({'min_share': 60}, 'MajorityVote.min_share must be in 0..1; it is 60'),
        ({'min_share': float('nan')}, 'must be in 0..1; it is nan'),
        ({'share_of': 'each'}, "MajorityVote.share_of must be one of 'answered', 'all'; it is 'each'"),
        ({'min_votes': 0}, 'MajorityVote.min_votes must be at least 1; it is 0'),
        ({'min_votes': 1.5}, 'MajorityVote.min_votes must be a whole number; it is 1.5 (float)'),
        ({'ballot': 'log'}, "MajorityVote.ballot must be one of 'equal', 'probability'; it is 'log'"),
        ({'ties': 'drop'}, "MajorityVote.ties must be one of 'refuse', 'split'; it is 'drop'"),
        ({'max_kept': 0}, 'MajorityVote.max_kept must be at least 1; it is 0'),
        ({'distinct': 1}, 'MajorityVote.distinct must be True or False; it is 1'),
        ({'weighting': 'token'}, "MajorityVote.weighting must be one of 'path', 'question'; it is 'token'"),
    ],
)
def test_fields_are_checked(fields: dict, said: str):
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        unchecked(VOTE, **fields).__post_init__()
