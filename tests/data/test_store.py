"""The sample store on arrays small enough to write out."""

import dataclasses
import json
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
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


ORIGIN = store.Origin(round=3, seed=7, model='0123456789abcdef', formats=('path', 'direct'))


def written(tmp_path, labels=True, limit=None) -> pathlib.Path:
    file = tmp_path / 'samples' / 'round_0003.parquet'
    store.write(file, store.table(ITEMS[:limit], *two_questions(), VOCABULARY, labels, ORIGIN))
    return file


def test_a_row_is_a_path(tmp_path):
    rows = pyarrow.parquet.read_table(written(tmp_path)).to_pylist()
    assert [(row['question_id'], row['sample']) for row in rows] == [
        (ITEMS[0].id, 0), (ITEMS[0].id, 1), (ITEMS[1].id, 0), (ITEMS[1].id, 1),
    ]  # fmt: skip
    assert rows[0] == {
        'question_id': ITEMS[0].id, 'question': 'How many?', 'gold': '21', 'suite': None, 'round': 3, 'sample': 0,
        'tokens': [*VOCABULARY.encode('ab'), VOCABULARY.eos_id], 'length': 3, 'text': 'ab', 'log_prob': -1.5,
        'ended': True, 'answer': '21', 'found': True, 'voted': True, 'reward': 1.0, 'kept': True, 'weight': 1.0,
        'formats': ['path', 'direct'], 'chosen': '21', 'vote_share': float(np.float32(2 / 3)), 'votes': 1.0,
        'model': '0123456789abcdef', 'seed': 7,
    }  # fmt: skip
    assert (rows[1]['kept'], rows[1]['formats'], rows[1]['ended'], rows[1]['voted']) == (False, [], False, False)
    assert [row['gold'] for row in rows] == ['21', '21', None, None] and rows[2]['reward'] == 0.25


def test_what_was_told_is_read(tmp_path):
    file = written(tmp_path)
    told = store.lines(ITEMS, *two_questions(), VOCABULARY, labels=True)
    assert list(store.questions(store.read(file))) == told
    assert list(store.questions(store.read(file, store.SHOWN), wanted={1})) == told[1:]
    assert store.about(file) == {'questions': 2, 'text_bytes': 4}
    # The same question twice in a row is two questions.
    twice = store.table(ITEMS[:1] * 2, *two_questions(), VOCABULARY, True, ORIGIN)
    assert len(list(store.questions(twice))) == 2


def test_unlabelled_and_limited(tmp_path):
    rows = pyarrow.parquet.read_table(written(tmp_path, labels=False, limit=1)).to_pylist()
    assert len(rows) == 2 and [row['gold'] for row in rows] == [None, None]
    none = written(tmp_path, limit=0)
    assert pyarrow.parquet.read_table(none).num_rows == 0 and list(store.questions(store.read(none))) == []
    assert store.about(none) == {'questions': 0, 'text_bytes': 0}


def test_paths_that_were_given_up_have_no_row(tmp_path):
    samples, verdict = two_questions()
    samples = dataclasses.replace(samples, drawn=np.array([False, True, True, True, True, True]))
    told = store.lines(ITEMS, samples, verdict, VOCABULARY, labels=True)
    assert [len(one['paths']) for one in told] == [1, 2] and told[0]['kept_paths'] == 0
    store.write(tmp_path / 'a.parquet', store.table(ITEMS, samples, verdict, VOCABULARY, True, ORIGIN))
    rows = pyarrow.parquet.read_table(tmp_path / 'a.parquet').to_pylist()
    assert [(row['sample'], row['text']) for row in rows] == [(1, 'c'), (0, 'd'), (1, '')]
    assert list(store.questions(store.read(tmp_path / 'a.parquet'))) == told


def test_pandas_reads_a_folder_of_them(tmp_path):
    pandas = pytest.importorskip('pandas')
    folder = written(tmp_path).parent
    later = dataclasses.replace(ORIGIN, round=4, suite='svamp')
    store.write(folder / 'b.parquet', store.table(ITEMS[:1], *two_questions(), VOCABULARY, True, later))
    frame = pandas.read_parquet(folder)
    assert len(frame) == 6 and frame.groupby(['round', 'sample']).size().tolist() == [2, 2, 1, 1]
    assert frame[frame.kept].text.tolist() == ['ab', 'ab'] and frame.suite.notna().sum() == 2


def test_datasets_reads_them(tmp_path):
    datasets = pytest.importorskip('datasets')
    rows = datasets.load_dataset('parquet', data_files=str(written(tmp_path)), split='train', cache_dir=str(tmp_path))
    assert rows.num_rows == 4 and [row['text'] for row in rows if row['kept']] == ['ab']


def test_files_that_are_none(tmp_path):
    (tmp_path / 'torn.parquet').write_bytes(b'PAR1')
    pyarrow.parquet.write_table(pyarrow.table({'text': ['a']}), tmp_path / 'other.parquet')
    with pytest.raises(ValueError, match='is no Parquet file'):
        store.about(tmp_path / 'torn.parquet')
    with pytest.raises(ValueError, match='is no file of a sample store'):
        store.read(tmp_path / 'other.parquet')


def test_lines():
    first, second = store.lines(ITEMS, *two_questions(), VOCABULARY, labels=True)
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
    found = store.lines(ITEMS, *two_questions(), VOCABULARY, labels=False)
    assert [one['gold'] for one in found] == [None, None]
    assert 'two' not in json.dumps(found)  # nor the rationale
