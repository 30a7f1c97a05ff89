"""GoldAnswer and Unvoted, the arms a vote is held against, and the guide to adding a consolidator."""

import dataclasses
import inspect
import re
import textwrap

import numpy as np
import pytest

from t5x_selfimprove import consolidation
from t5x_selfimprove.consolidation import AnswerFormat, Consolidator, GoldAnswer, MajorityVote, Unvoted
from tests.consolidation.batches import (
    BYTES,
    LETTERS,
    OPTIONS,
    judge,
    kept,
    letters,
    questions_of,
    samples_of,
    unchecked,
)


def test_gold_by_hand():
    questions = questions_of(['B', 'C', None, 'A', 'A'], weight=[1, 1, 1, 1, 0])
    verdict = judge(GoldAnswer(LETTERS), questions, letters('BBA-', 'AAB-', 'AAAA', '----', 'AAAA'))
    assert kept(verdict, 4) == [[1, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4, [0] * 4]
    assert (verdict.reward == verdict.keep).all()
    assert verdict.chosen[:, 0].tobytes() == b'bc\0a\0'
    assert verdict.votes.tolist() == [3, 3, 4, 0, 0]
    np.testing.assert_allclose(verdict.share, [2 / 3, 0, 0, 0, 0])


def test_gold_cap_repetitions_and_weighting():
    questions = questions_of(['B', 'B'])
    samples = letters('bbBB-', 'bbAbb')
    capped = judge(GoldAnswer(LETTERS, max_kept=3), questions, samples)
    assert kept(capped, 5)[0] == [1, 0, 1, 1, 0] and sum(kept(capped, 5)[1]) == 3
    once = judge(GoldAnswer(LETTERS, distinct=True, weighting='question'), questions, samples)
    third = np.float32(1 / 3)
    assert kept(once, 5) == [[third, 0, third, third, 0], [1, 0, 0, 0, 0]]
    assert once.votes.tolist() == [4, 5] and once.share.tolist() == [1, np.float32(0.8)]
    assert once.reward.sum() == 8


def test_a_label_that_is_not_known_is_not_used():
    questions = dataclasses.replace(questions_of(['B', 'B']), known=np.array([False, True]))
    verdict = judge(GoldAnswer(LETTERS), questions, letters('BB', 'BB'))
    assert kept(verdict, 2) == [[0, 0], [1, 1]]
    assert verdict.chosen[:, 0].tobytes() == b'\0b' and verdict.share.tolist() == [0, 1]


def test_an_unknown_label_matches_no_missing_answer():
    verdict = judge(GoldAnswer(LETTERS), questions_of([None, 'zz']), letters('--', '--'))
    assert not verdict.keep.any() and not verdict.reward.any()


def test_gold_needs_labels_of_its_room():
    with pytest.raises(ValueError, match='needs labels of 16 bytes, these have 1'):
        judge(GoldAnswer(AnswerFormat(BYTES)), questions_of(['A']), letters('A'))


def test_unvoted_keeps_whatever_was_said():
    texts = ('BBA-', '----', 'AABB')
    questions, samples = questions_of([None] * 3, weight=[1, 1, 0]), letters(*texts)
    everything = judge(Unvoted(LETTERS), questions, samples)
    assert kept(everything, 4) == [[1] * 4, [1] * 4, [0] * 4]
    some = judge(Unvoted(LETTERS, max_kept=2), questions, samples)
    assert some.keep.reshape(3, 4).sum(axis=1).tolist() == [2, 2, 0]
    assert (some.reward == some.keep).all()
    voted = judge(MajorityVote(LETTERS), questions, samples)
    for name in ('answer', 'found', 'chosen', 'share', 'votes'):
        assert (vars(some)[name] == vars(voted)[name]).all()


def test_unvoted_does_not_look_at_the_answers():
    count = 300
    questions = questions_of([None] * count)
    part = Unvoted(LETTERS, max_kept=2, weighting='question')
    one = judge(part, questions, letters(*['BBA-'] * count))
    other = judge(part, questions, letters(*['-CCC'] * count))
    assert (one.keep == other.keep).all()
    drawn = (one.keep.reshape(count, 4) > 0).sum(axis=0)
    assert drawn.sum() == 2 * count and ((drawn > 110) & (drawn < 190)).all()  # 4.6 standard deviations about 150
    assert np.unique(one.keep).tolist() == [0, 0.5]


@pytest.mark.parametrize('kind', [GoldAnswer, Unvoted])
def test_fields_are_checked(kind: type):
    part = kind(LETTERS)
    assert part == kind(LETTERS) and hash(part) == hash(kind(LETTERS))
    for fields, said in [
        ({'answers': 'number'}, f"{kind.__name__}.answers must be an AnswerFormat; it is 'number'"),
        ({'max_kept': True}, f'{kind.__name__}.max_kept must be a whole number; it is True (bool)'),
        ({'weighting': None}, f"{kind.__name__}.weighting must be one of 'path', 'question'; it is None"),
    ]:
        with pytest.raises((TypeError, ValueError), match=re.escape(said)):
            unchecked(part, **fields).__post_init__()


def test_the_guide_works():
    guide = inspect.getdoc(consolidation)
    code = textwrap.dedent(re.search(r'^    import dataclasses\n(?:(?:    .*)?\n)*', guide, re.MULTILINE).group())
    assert len(code.strip().splitlines()) <= 38
    names = {'__name__': 'guide'}
    exec(compile(code, 'guide', 'exec', dont_inherit=True), names)
    part = names['MarginVote'](LETTERS, max_kept=2)
    assert isinstance(part, Consolidator)
    verdict = judge(part, questions_of([None] * 4), letters('BBAA-', 'BBBAD', 'BBA--', '-----'))
    assert verdict.chosen[:, 0].tobytes() == b'bbb\0'
    assert [sum(row) for row in kept(verdict, 5)] == [0, 2, 0, 0] and kept(verdict, 5)[1][3:] == [0, 0]
    np.testing.assert_allclose(verdict.share, [0.5, 0.6, 2 / 3, 0])


def test_a_truncated_path_is_not_kept_for_its_label_unless_it_is_let():
    samples, questions = samples_of(['The answer is B. And~', 'The answer is B.']), questions_of(['B'], OPTIONS)
    verdict = judge(GoldAnswer(OPTIONS), questions, samples)
    assert verdict.found.tolist() == [True, True] and verdict.keep.tolist() == [0, 1] == verdict.voted.tolist()
    let = dataclasses.replace(OPTIONS, truncated_votes=True)
    assert judge(GoldAnswer(let), questions, samples).keep.tolist() == [1, 1]
