"""Stored paths as items, and as a seqio Task that mixes with others."""

import dataclasses
import pathlib

import pytest

from t5x_selfimprove.data.items import Bank, completion_text
from t5x_selfimprove.data.stored_paths import StoredPaths, register_samples
from t5x_selfimprove.vocabulary import ByteVocabulary
from tests.stored import write_stored


def question(text: str, share: float, *paths: tuple[str, float, bool]) -> dict:
    drawn = [
        {'text': said, 'answer': said[-2:-1], 'found': True, 'ended': ended, 'tokens': 3, 'kept': kept}
        for said, kept, ended in paths
    ]
    return {'id': text, 'question': text, 'chosen': '1', 'share': share, 'votes': 2.0, 'paths': drawn}


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
    """Two rounds and an evaluation."""
    first = [
        question('a?', 0.6, (' a1 The answer is 1.', 1.0, True), (' a2 The answer is 2.', 0.0, True)),
        question('b?', 1.0, (' b1 The answer is 1.', 0.5, True), (' b1 The answer is 1.', 0.5, True)),
    ]
    second = [question('a?', 1.0, (' a1 The answer is 1.', 1.0, True), (' a3 The answer is 1.', 1.0, False))]
    write_stored(tmp_path / 'samples/round_0001.parquet', first, 1)
    write_stored(tmp_path / 'samples/round_0002.parquet', second, 2)
    held_out = [question('z?', 1.0, (' z The answer is 1.', 1.0, True))]
    write_stored(tmp_path / 'samples/evaluation_0002.parquet', held_out, 2)
    write_stored(tmp_path / 'samples/evaluation_round_0002.parquet', held_out, 2)
    return tmp_path


def texts(bank: StoredPaths) -> list[str]:
    return [completion_text(item) for item in bank.take(0, bank.size)]


def test_kept_paths_are_items(run):
    bank = StoredPaths(str(run))
    bank.check()
    assert isinstance(bank, Bank) and bank.size == 2
    assert [item.question for item in bank.take(0, 3)] == ['a?', 'b?', 'a?']  # round and round
    # What a model learns after the question is the path to the letter, and nothing of the evaluation.
    assert texts(bank) == [' a1 The answer is 1.', ' b1 The answer is 1.']


def test_which_paths(run):
    kept = StoredPaths(str(run))
    answer = ' The answer is '
    assert texts(dataclasses.replace(kept, kept=False)) == [f' a1{answer}1.', f' a2{answer}2.', f' b1{answer}1.']
    assert texts(dataclasses.replace(kept, distinct=False)) == [f' {one}{answer}1.' for one in ('a1', 'b1', 'b1', 'a1')]
    assert texts(dataclasses.replace(kept, rounds=(2,))) == [f' a1{answer}1.']
    assert dataclasses.replace(kept, min_share=0.6).size == 2 and dataclasses.replace(kept, min_share=0.61).size == 2
    assert texts(dataclasses.replace(kept, min_share=0.61, rounds=(1,))) == [f' b1{answer}1.']
    shuffled = dataclasses.replace(kept, shuffle_seed=1, kept=False)
    assert sorted(item.id for item in shuffled.take(0, 3)) == sorted(item.id for item in shuffled.take(3, 3))


def test_what_is_written_later_is_read(run):
    bank = StoredPaths(str(run))
    assert bank.size == 2
    write_stored(run / 'samples/round_0003.parquet', [question('c?', 1.0, (' c The answer is 1.', 1.0, True))], 3)
    assert bank.size == 3


def test_errors_name_what_is_missing(run, tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no samples of a round, not any'):
        StoredPaths(str(tmp_path / 'nowhere')).check()
    with pytest.raises(FileNotFoundError, match='not those of round 7'):
        StoredPaths(str(run), rounds=(1, 7)).check()
    with pytest.raises(ValueError, match='is as asked for'):
        write_stored(run / 'samples/round_0009.parquet', [question('c?', 1.0, (' c', 0.0, True))], 9)
        StoredPaths(str(run), rounds=(9,)).check()
    with pytest.raises(ValueError, match=r'min_share must be in 0\.\.1; it is 60'):
        StoredPaths(str(run), min_share=60)
    (run / 'samples/round_0001.parquet').write_bytes(b'PAR1')
    with pytest.raises(ValueError, match=r'round_0001\.parquet is no Parquet file'):
        StoredPaths(str(run)).check()


def test_a_seqio_task_that_mixes(run):
    seqio = pytest.importorskip('seqio')
    bank = StoredPaths(str(run))
    name = register_samples(bank, 'test_stored_paths')
    assert register_samples(bank, 'test_stored_paths') == name
    with pytest.raises(ValueError, match='exists already and is different'):
        register_samples(dataclasses.replace(bank, kept=False), name)
    other = register_samples(dataclasses.replace(bank, kept=False), 'test_stored_paths_all')
    dataset = seqio.get_mixture_or_task(name).get_dataset(None, 'train', shuffle=False)
    found = list(dataset.as_numpy_iterator())
    assert [example['targets_pretokenized'].decode() for example in found] == texts(bank)
    spelled = ByteVocabulary()
    assert found[0]['inputs'].tolist() == spelled.encode('a?')
    assert found[0]['targets'].tolist() == [*spelled.encode(' a1 The answer is 1.'), spelled.eos_id]
    seqio.MixtureRegistry.add('test_stored_mixture', [(name, 1.0), (other, 3.0)])
    mixed = seqio.get_mixture_or_task('test_stored_mixture').get_dataset(None, 'train', shuffle=False, num_epochs=1)
    assert 2 <= len(list(mixed.as_numpy_iterator())) <= 5
