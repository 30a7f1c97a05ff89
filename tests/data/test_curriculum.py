"""A curriculum gives the items of its stages, each from its own start, across any cut."""

import pytest

from t5x_selfimprove.data.curriculum import Curriculum
from t5x_selfimprove.data.possessions import Possessions

EASY, HARD = Possessions('unlabelled', 1, 2, 2), Possessions('unlabelled', 1, 5, 5)


def test_stages_follow_one_another():
    bank = Curriculum((EASY, HARD), 10)
    assert bank.take(0, 30) == EASY.take(0, 10) + HARD.take(0, 20)
    assert bank.size is None
    bank.check()


def test_a_cut_changes_nothing():
    bank = Curriculum((EASY, HARD, EASY), 7)
    whole = bank.take(0, 25)
    assert [item for start in range(0, 25, 5) for item in bank.take(start, 5)] == whole
    assert bank.take(6, 9) == whole[6:15]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='at least one stage'):
        Curriculum((), 10)
    with pytest.raises(TypeError, match='must be banks'):
        Curriculum(('easy',), 10)
    with pytest.raises(ValueError, match='per_stage'):
        Curriculum((EASY,), 0)
