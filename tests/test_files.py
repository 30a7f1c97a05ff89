"""A file is there whole or not at all."""

import errno
import json
import os
import pathlib
import stat

import pytest

from t5x_selfimprove import files


def test_text(tmp_path):
    file = tmp_path / 'deep' / 'config.gin'
    files.write_text(file, 'what was there before, and longer than what comes')
    files.write_text(file, 'Größe \u2028\n')
    assert file.read_bytes().decode('utf-8') == 'Größe \u2028\n'
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask  # as readable as any other file of the run


def test_json(tmp_path):
    file = tmp_path / 'summary.json'
    files.write_json(file, {'rounds': [{'round': 0, 'loss': None}]})
    assert json.loads(file.read_text()) == {'rounds': [{'round': 0, 'loss': None}]}
    assert file.read_text().endswith('}\n') and len(file.read_text().splitlines()) > 1  # for people, too


def test_json_lines(tmp_path):
    file = tmp_path / 'questions.jsonl'
    questions = [{'question': 'Größe \u2028 "zwei"\n', 'paths': []}, {'question': '[b]', 'paths': []}]
    files.write_json_lines(file, questions)
    text = file.read_bytes().decode('utf-8')
    assert text.endswith('\n') and [json.loads(line) for line in text.rstrip('\n').split('\n')] == questions
    assert 'Größe' in text
    files.write_json_lines(file, iter(()))
    assert file.read_bytes() == b''


def test_bytes(tmp_path):
    file = tmp_path / 'samples' / 'round_0001.parquet'
    with files.written(file) as stream:
        stream.write(b'one')
        assert not file.exists()
        stream.write(b' two')
    assert file.read_bytes() == b'one two'
    with pytest.raises(ZeroDivisionError), files.written(file) as stream:
        stream.write(bytes(1 // 0))
    assert file.read_bytes() == b'one two' and [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_cannot_be_said_in_json_leaves_the_file(tmp_path):
    file = tmp_path / 'summary.json'
    files.write_text(file, 'before')
    with pytest.raises(TypeError):
        files.write_json(file, [{'question': 'after'}, {'question': object()}])
    assert file.read_text() == 'before' and [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_write_that_fails_leaves_the_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / 'summary.json'
    files.write_text(file, 'before')
    for name in ('fsync', 'replace'):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match='No space left'):
                files.write_text(file, 'after')
        assert file.read_text() == 'before' and [path.name for path in tmp_path.iterdir()] == [file.name]


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_half_a_file_that_a_killed_run_left_is_written_over(tmp_path, monkeypatch):
    file = tmp_path / 'summary.json'
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', full)
        patch.setattr(pathlib.Path, 'unlink', lambda *_, **__: None)  # the process is gone
        with pytest.raises(OSError):
            files.write_text(file, 'longer than what comes after it')
    assert not file.exists() and len(list(tmp_path.iterdir())) == 1
    files.write_text(file, 'after')
    assert file.read_text() == 'after' and [path.name for path in tmp_path.iterdir()] == [file.name]
