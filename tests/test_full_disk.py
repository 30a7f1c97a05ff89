"""A disk that is full or fills up: the error says where and what to do, and nothing that was saved is lost."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from t5x_selfimprove import metrics, session, train
from t5x_selfimprove.checkpoints import Checkpoints
from t5x_selfimprove.data import store
from tests import tiny_run
from tests.tiny_run import (
    arrays,
    events,
    finished,
    improve_arguments,
    nothing_ran,
    pretrain_arguments,
    pretrained,
    same_bits,
)


def test_full_disk(tmp_path, monkeypatch):
    initial = pretrained().directory
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    for arguments in (
        improve_arguments(tmp_path / 'run', initial),
        tiny_run.pretrain_arguments(tmp_path / 'run'),
    ):
        outcome = tiny_run.run(arguments)
        assert outcome.code == 2 and re.search(
            r'run has 976\.6 KiB free and the run needs about 64\.\d MiB for 3 more checkpoints; free some', outcome.err
        )
        assert nothing_ran(tmp_path / 'run')


@pytest.fixture
def small_disk(tmp_path) -> Iterator[pathlib.Path]:
    """A file system of four MiB."""
    place = tmp_path / 'disk'
    place.mkdir()
    mounted = shutil.which('mount') and subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(place)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip('this user may not mount a file system')
    yield place
    subprocess.run(['umount', str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    outcome = tiny_run.run(improve_arguments(small_disk / 'run', pretrained().directory))
    assert outcome.code == 2 and re.search(r'free and the run needs about 64\.\d MiB', outcome.err), outcome.err
    assert nothing_ran(small_disk / 'run')
    with contextlib.suppress(OSError), (small_disk / 'filler').open('wb') as file:
        file.write(b'x' * (5 << 20))
    outcome = tiny_run.run(improve_arguments(small_disk / 'other', pretrained().directory))
    assert outcome.code == 2 and 'No space left on device. Choose another one.' in outcome.err, outcome.err


def said(directory: pathlib.Path, last: int) -> str:
    """What a user reads."""
    return (
        f'OSError: {re.escape(str(directory))}: No space left on device \\([\\d.]+ \\w+ free there\\). Make room and '
        f'run the same command again; it goes on from checkpoint {last}\n'
    )


@pytest.mark.parametrize('left', [0, 20_000])  # too little for a file, and for the arrays that other code writes
def test_a_disk_that_fills_up(small_disk, monkeypatch, left: int):
    run, filler, save = small_disk / 'run', small_disk / 'filler', Checkpoints.save

    def filling(self, step, state, described):
        if step == 2:
            self.finish()  # or the step before may be what the disk fills up under
            filler.write_bytes(b'x' * (shutil.disk_usage(small_disk).free - left))
        save(self, step, state, described)

    monkeypatch.setattr(session, 'SPARE_BYTES', 0)
    monkeypatch.setattr(Checkpoints, 'save', filling)
    outcome = tiny_run.run(pretrain_arguments(run))
    assert outcome.code == 2 and re.search(said(run, 1), outcome.err), outcome.err
    assert Checkpoints(run).latest == 1 and arrays(run, 1)['round'] == 1
    monkeypatch.setattr(Checkpoints, 'save', save)
    filler.unlink()
    assert 'resumed after chunk 1' in tiny_run.done(pretrain_arguments(run)).out
    assert same_bits(arrays(run), arrays(pretrained().directory))
    assert [event['step'] for event in events(run, 'pretrain')] == [40, 80, 120]


def when(function: Any, matches: Any) -> Any:
    """A function that finds the disk full where its arguments match."""

    def failing(*arguments, **named):
        if matches(*arguments, **named):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*arguments, **named)

    return failing


# Where one start after the other finds the disk full, and the last checkpoint then: owner, function, arguments.
FULL_AT = [
    (Checkpoints, 'save', lambda self, step, *_: step == 1, 0),
    (metrics.Writer, 'write', lambda self, kind, **event: kind == 'evaluation' and event['round'] == 1, 0),
    (store, 'write', lambda path, _: path.name == 'round_0002.parquet', 1),
    (train, 'write_report', lambda _: True, 2),
]


def test_whatever_finds_the_disk_full_a_later_start_ends_in_the_same_bits(tmp_path, monkeypatch):
    arguments = improve_arguments(tmp_path, pretrained().directory)
    for owner, name, matches, last in FULL_AT:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, when(vars(owner)[name], matches))
            outcome = tiny_run.run(arguments)
        assert outcome.code == 2 and re.search(said(tmp_path, last), outcome.err), (name, outcome.err)
        assert Checkpoints(tmp_path).latest == last and int(arrays(tmp_path, last)['round']) == last
    tiny_run.done(arguments)
    assert same_bits(arrays(tmp_path), arrays(finished().directory))
    one, other = (json.loads((run / 'summary.json').read_text()) for run in (tmp_path, finished().directory))
    accuracies = [[row['majority_accuracy'] for row in summary['rounds']] for summary in (one, other)]
    assert accuracies[0] == accuracies[1] and one['sessions'] == len(FULL_AT) + 1
    assert [event['round'] for event in events(tmp_path, 'evaluation')] == [0, 1, 2]
