"""Feeds: batches of whole size whatever the number of questions, and labels only where they are asked for."""

import dataclasses

import numpy as np
import pytest

from t5x_selfimprove.consolidation import AnswerFormat
from t5x_selfimprove.data import possessions
from t5x_selfimprove.data.possessions import Possessions
from t5x_selfimprove.feed import Feed

FEED = Feed(Possessions('held_out'), per_round=7, per_batch=3, room=40)
VOCABULARY = possessions.vocabulary()
ANSWERS = AnswerFormat(VOCABULARY, 'number')


def test_the_last_batch_is_filled_with_padding():
    items, batches, skipped = FEED.take(0, VOCABULARY, ANSWERS, labels=True)
    assert len(items) == 7 and not skipped and batches.tokens.shape == (3, 3, 40)
    assert batches.weight.tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0]] == batches.known.tolist()
    alone = dataclasses.replace(FEED, per_batch=7).take(0, VOCABULARY, ANSWERS, labels=True)[1]
    for name in ('tokens', 'length', 'answer', 'id'):
        whole, parts = np.asarray(getattr(alone, name))[0], np.asarray(getattr(batches, name))
        assert (parts.reshape(9, *parts.shape[2:])[:7] == whole).all(), name
    following = FEED.take(7, VOCABULARY, ANSWERS, labels=True)[0]  # padding takes no question's place
    assert [item.id for item in following] == [item.id for item in FEED.bank.take(7, 7)]


def test_labels_only_where_they_are_asked_for():
    _, batches, _ = FEED.take(0, VOCABULARY, ANSWERS, labels=False)
    assert not batches.known.any() and not batches.answer.any() and batches.weight.sum() == 7


@pytest.mark.parametrize('field', ['per_round', 'per_batch'])
def test_sizes(field):
    with pytest.raises(ValueError, match=r'= 0 .*must be at least 1'):
        dataclasses.replace(FEED, **{field: 0})
