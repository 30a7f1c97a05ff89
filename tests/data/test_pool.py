"""A pool takes from its banks in turn, each in its own order, and every item once in an epoch."""

import collections
import json

import pytest

from t5x_selfimprove.data.pool import Pool
from t5x_selfimprove.data.possessions import Possessions
from t5x_selfimprove.data.question_files import JsonLines

ENDLESS = Possessions('unlabelled', 1, 2, 2)


@pytest.fixture
def banks(tmp_path):
    """Three banks of 6, 3 and 2 questions; the first in another order every epoch."""
    made = []
    for name, size in (('a', 6), ('b', 3), ('c', 2)):
        file = tmp_path / f'{name}.jsonl'
        file.write_text(''.join(json.dumps({'question': f'{name}{i}', 'answer': str(i)}) + '\n' for i in range(size)))
        made.append(JsonLines(str(file), shuffle_seed=3 if name == 'a' else None))
    return tuple(made)


def questions(items) -> list[str]:
    return [item.question for item in items]


def test_an_epoch_holds_every_item_once(banks):
    pool = Pool(banks)
    assert pool.size == 11
    for epoch in range(2):
        taken = questions(pool.take(11 * epoch, 11))
        assert len(set(taken)) == 11
        for bank in banks:
            own = questions(bank.take(epoch * bank.size, bank.size))
            assert [question for question in taken if question in own] == own
        letters = [question[0] for question in taken]
        assert letters == list('abacabaacba')  # spread evenly
    assert questions(pool.take(0, 11)) != questions(pool.take(11, 11))  # the shuffled bank's epochs


def test_rates_and_cuts(banks):
    pool = Pool((banks[0], ENDLESS, banks[2]), (1, 3, 1))
    assert pool.size is None
    whole = pool.take(0, 40)
    assert [item for start in range(0, 40, 8) for item in pool.take(start, 8)] == whole
    assert pool.take(3, 1) == whole[3:4] and pool.take(7, 0) == []
    counts = collections.Counter(item.question[0] for item in whole)
    assert counts['a'] == counts['c'] == 8
    assert [item for item in whole if item.question[0] not in 'ac'] == ENDLESS.take(0, 24)
    assert [item.answer for item in whole if item.question[0] == 'c'] == ['0', '1'] * 4


def test_mistakes_are_named(banks, tmp_path):
    with pytest.raises(ValueError, match='at least one bank'):
        Pool(())
    with pytest.raises(TypeError, match='must be banks'):
        Pool(('easy',))
    with pytest.raises(ValueError, match=r'as many as banks, 3; they are \(1, 2\)'):
        Pool(banks, (1, 2))
    with pytest.raises(ValueError, match=r'Pool\.rates must be at least 1; it is 0'):
        Pool(banks, (1, 0, 1))
    with pytest.raises(ValueError, match=r'bank 2 of the pool is endless: give Pool\.rates'):
        Pool((banks[0], ENDLESS)).check()
    with pytest.raises(FileNotFoundError):
        Pool((banks[0], JsonLines(str(tmp_path / 'none.jsonl')))).check()
    assert Pool(banks).check() == []
