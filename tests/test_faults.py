"""Faults of faults.py that need no process of their own: the run goes on, says why, and loses nothing. Those of kills,
of a full disk, of a loss that is no number and of lost hosts are in test_resume, test_full_disk, test_train and
test_many_processes."""

import shutil

import pytest

from tests import faults, tiny_run
from tests.faults import FAULTS, Lab, bytes_lost
from tests.tiny_run import Outcome, events, finished, pretrained, steps


@pytest.fixture
def lab(tmp_path) -> Lab:
    (tmp_path / 'whole').symlink_to(finished().directory)
    undisturbed = faults.Started(0, '', '', [])
    return Lab(tmp_path, pretrained().directory, tiny_run.improve_arguments, {}, undisturbed)


def test_a_checkpoint_that_changed_is_left_for_the_one_before(lab, tmp_path):
    (outcome,) = FAULTS['corrupt shard'](lab, tmp_path / 'run')
    assert outcome.code == 0 and 'checkpoints/2 is damaged: ' in outcome.out, outcome.err
    assert f'It is set aside as {tmp_path}/run/damaged/2; the run goes on from the one before' in outcome.out
    assert 'resumed after round 1 of 2' in outcome.out
    assert bytes_lost(tmp_path / 'run', lab.whole) == 0 and steps(tmp_path / 'run') == [1, 2]


def test_a_bank_that_is_cut_off_in_the_middle_of_a_run(lab, tmp_path):
    first, again = FAULTS['unreadable bank'](lab, tmp_path / 'run')
    assert (first.code, again.code) == (2, 0), again.err
    assert 'resumed after round 1 of 2' in again.out and bytes_lost(tmp_path / 'run', lab.whole) == 0


def test_no_checkpoint_that_can_be_read(tmp_path):
    """Nothing is begun anew without being asked to."""
    shutil.copytree(finished().directory, tmp_path / 'run')
    for step in (1, 2):
        (tmp_path / 'run' / 'checkpoints' / str(step) / 'described' / 'metadata').write_text('{')
    outcome = tiny_run.run(tiny_run.improve_arguments(tmp_path / 'run', pretrained().directory))
    assert outcome.code == 2 and 'and there is no other to go on from. Put a copy of it back, or remove' in outcome.err
    assert steps(tmp_path / 'run') == [1] and (tmp_path / 'run' / 'damaged' / '2').is_dir()


def test_what_is_lost_is_counted(tmp_path):
    """The report is able to say that something was not survived."""
    whole = finished().directory
    shutil.copytree(whole, tmp_path / 'run')
    assert bytes_lost(tmp_path / 'run', whole) == 0
    (tmp_path / 'run' / 'samples' / 'round_0002.parquet').unlink()
    size = (whole / 'samples' / 'round_0002.parquet').stat().st_size
    assert bytes_lost(tmp_path / 'run', whole) == size
    text = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines(keepends=True)
    kept = [line for line in text if '"kind": "round", ' not in line]
    (tmp_path / 'run' / 'metrics.jsonl').write_text(''.join(kept))
    told = sum(len(line) for line in text) - sum(map(len, kept))
    assert size < bytes_lost(tmp_path / 'run', whole) <= size + told and len(events(whole, 'round')) == 2
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '2')
    assert bytes_lost(tmp_path / 'run', whole) > size + told


def test_the_report(tmp_path, monkeypatch, capsys):
    lab = Lab(tmp_path, tmp_path, tiny_run.improve_arguments, {}, faults.Started(0, '', '', []))
    outcomes = [Outcome(2, '', 'OSError: full'), Outcome(0, '', '')]
    monkeypatch.setattr(faults, 'bytes_lost', lambda directory, whole: 5 * (directory.name == 'bad'))
    for name in ('good', 'bad'):
        monkeypatch.setitem(FAULTS, name, lambda lab, directory: outcomes)
    monkeypatch.setitem(FAULTS, 'dead', lambda lab, directory: outcomes[:1])
    assert faults.report(lab, ['good', 'bad', 'dead']) == 2
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[1] == ['good', '2', '2', '0', '0', 'OSError:', 'full'] and said[2][:5] == ['bad', '2', '2', '0', '5']
    assert said[3][:4] == ['dead', '1', '2', 'inf']
    assert ' '.join(said[4]) == '3 faults injected, 1 survived, 0 left out'
