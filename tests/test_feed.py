"""Feeds: batches of whole size whatever the number of questions, the rows of one process or all, labels where asked."""

import dataclasses

import jax
import numpy as np
import pytest

from t5x_selfimprove.consolidation import AnswerFormat
from t5x_selfimprove.data import possessions
from t5x_selfimprove.data.items import take_at
from t5x_selfimprove.data.possessions import Possessions
from t5x_selfimprove.feed import Feed

BANK = Possessions('held_out')
FEED = Feed(BANK, per_round=7, per_batch=3, room=40)
VOCABULARY = possessions.vocabulary()
ANSWERS = AnswerFormat(VOCABULARY, 'number')


@dataclasses.dataclass(frozen=True)
class Counted:
    """A bank that writes down which positions it was asked for."""

    asked: list
    size = None

    def take(self, position, count):
        self.asked.append((position, count))
        return BANK.take(position, count)

    def check(self):
        pass


def test_the_last_batch_is_filled_with_padding():
    items, batches = FEED.take(0, VOCABULARY, ANSWERS, labels=True)
    assert list(items) == [*range(7)] and batches.tokens.shape == (3, 3, 40)
    assert batches.weight.tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0]] == batches.known.tolist()
    alone = dataclasses.replace(FEED, per_batch=7).take(0, VOCABULARY, ANSWERS, labels=True)[1]
    for name in ('tokens', 'length', 'answer', 'id'):
        whole, parts = np.asarray(getattr(alone, name))[0], np.asarray(getattr(batches, name))
        assert (parts.reshape(9, *parts.shape[2:])[:7] == whole).all(), name
    following, _ = FEED.take(7, VOCABULARY, ANSWERS, labels=True)  # padding takes no question's place
    assert [item.id for item in following.values()] == [item.id for item in BANK.take(7, 7)]


def test_labels_only_where_they_are_asked_for():
    _, batches = FEED.take(0, VOCABULARY, ANSWERS, labels=False)
    assert not batches.known.any() and not batches.answer.any() and batches.weight.sum() == 7


def test_of_some_rows_nothing_else_is_read():
    feed = dataclasses.replace(FEED, bank=Counted([]), room=BANK_ROOM, too_long='skip')
    whole, batches = feed.take(5, VOCABULARY, ANSWERS, labels=True)
    assert feed.bank.asked == [(5, 7)] and 0 < batches.weight.sum() < 7
    turns = (([0], [(5, 1), (8, 1), (11, 1)]), ([1, 2], [(6, 2), (9, 2)]), ([0, 2], [(5, 1), (7, 2), (10, 2)]))
    for rows, asked in turns:
        feed.bank.asked.clear()
        items, share = feed.take(5, VOCABULARY, ANSWERS, labels=True, rows=np.array(rows))
        assert feed.bank.asked == asked
        assert items == {place: item for place, item in whole.items() if place % 3 in rows}
        jax.tree.map(np.testing.assert_array_equal, share, jax.tree.map(lambda array: array[:, rows], batches))  # noqa: B023
    assert take_at(BANK, np.arange(0)) == []


BANK_ROOM = int(np.median([len(VOCABULARY.encode(item.question)) for item in BANK.take(5, 7)]))  # some are longer


@pytest.mark.parametrize('field', ['per_round', 'per_batch'])
def test_sizes(field):
    with pytest.raises(ValueError, match=r'= 0 .*must be at least 1'):
        dataclasses.replace(FEED, **{field: 0})
