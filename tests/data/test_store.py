"""The sample store on arrays small enough to write out."""

import json

import numpy as np
import pytest

from t5x_selfimprove.data import store
from t5x_selfimprove.data.items import make_item
from t5x_selfimprove.records import Samples, Verdict
from t5x_selfimprove.vocabulary import ByteVocabulary

VOCABULARY = ByteVocabulary()
ROOM = 3  # bytes of an answer


def answers(*texts: str) -> np.ndarray:
    return np.array([list(text.encode().ljust(ROOM, b'\0')) for text in texts], np.uint8)


def two_questions() -> tuple[Samples, Verdict]:
    """Two questions and one of padding, two paths each: 'ab' + end, 'c'; 'd' + end, nothing; padding."""
    texts = ['ab', 'c', 'd', '', 'z', 'z']
    tokens = np.full((6, 4), VOCABULARY.pad_id, np.int32)
    mask = np.zeros((6, 4), bool)
    ended = np.array([True, False, True, False, True, True])
    for row, text in enumerate(texts):
        ids = VOCABULARY.encode(text) + [VOCABULARY.eos_id] * bool(ended[row])
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    log_probs = np.where(mask, -0.5, 0).astype(np.float32)
    return Samples(tokens, mask, log_probs, ended), Verdict(
        answer=answers('21', '', '7', '', '9', '9'),
        found=np.array([True, False, True, False, True, True]),
        reward=np.array([1, 0, 0.25, 0, 1, 1], np.float32),
        keep=np.array([1, 0, 0, 0, 1, 1], np.float32),
        chosen=answers('21', '', '9'),
        share=np.array([2 / 3, 0, 1], np.float32),
        votes=np.array([1, 1, 2], np.float32),
        voted=np.array([True, False, True, False, True, True]),
    )


ITEMS = [make_item('How many?', 'two', '21'), make_item('Wie viele?', None, None)]


def test_lines():
    first, second = store.lines(ITEMS, *two_questions(), VOCABULARY, labels=True, limit=9)
    assert first == {
        'id': ITEMS[0].id,
        'question': 'How many?',
        'gold': '21',
        'chosen': '21',
        'share': 0.6667,
        'votes': 1.0,
        'kept_paths': 1,
        'paths': [
            {'text': 'ab', 'answer': '21', 'found': True, 'ended': True, 'tokens': 3, 'log_prob': -1.5,
             'reward': 1.0, 'kept': 1.0},
            {'text': 'c', 'answer': '', 'found': False, 'ended': False, 'tokens': 1, 'log_prob': -0.5,
             'reward': 0.0, 'kept': 0.0},
        ],
    }  # fmt: skip
    assert (second['question'], second['gold'], second['chosen'], second['kept_paths']) == ('Wie viele?', None, '', 0)
    assert [(path['text'], path['tokens'], path['reward']) for path in second['paths']] == [('d', 2, 0.25), ('', 0, 0)]


def test_labels_are_never_written_for_unlabelled_questions():
    found = store.lines(ITEMS, *two_questions(), VOCABULARY, labels=False, limit=9)
    assert [one['gold'] for one in found] == [None, None]
    assert 'two' not in json.dumps(found)  # nor the rationale


@pytest.mark.parametrize('limit', [0, 1, 2])
def test_limit(limit: int):
    found = store.lines(ITEMS, *two_questions(), VOCABULARY, labels=False, limit=limit)
    assert [one['id'] for one in found] == [item.id for item in ITEMS[:limit]]
