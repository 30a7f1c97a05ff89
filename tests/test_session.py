"""What a run does around its work: devices, disk, the record of the run, and the errors of each."""

import errno
import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import session
from t5x_selfimprove.checkpoints import Described
from t5x_selfimprove.partitioning import MeshShape
from t5x_selfimprove.session import Place, Session, check_writable, disk_failure
from t5x_selfimprove.vocabulary import ByteVocabulary
from tests.tiny_run import events

VOCABULARY = ByteVocabulary()
STATE = {'weight': jnp.ones((4, 8))}


def opened(directory: pathlib.Path, **settings: Any) -> Session:
    return Session(Place(str(directory), tensorboard=False, **settings), '# the configuration\n')


def save(open_session: Session, step: int, kind: str = 'improve') -> None:
    described = Described(10 * step, kind, 0, VOCABULARY.fingerprint(), '', {'seed': open_session.place.seed})
    open_session.checkpoints.save(step, STATE, described)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'seed': -1}, 'seed must be in 0..2'),
        ({'seed': 2**32}, r'seed must be in 0\.\.2\*\*32-1; it is 4294967296'),
        ({'keep_checkpoints': 0}, 'keep_checkpoints and keep_every must be at least 1'),
        ({'directory': 'gs://bucket/run'}, "directory = 'gs://bucket/run' is a URL; metrics and samples"),
        ({'checkpoint_directory': 'az://bucket/run'}, 'az://bucket/run: checkpoints go to a folder, to gs:// or to'),
    ],
)
def test_fields_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Place(**{'directory': 'run'} | settings)


def test_devices():
    assert Place('run').devices() == Place('run', platform='cpu', cpu_devices=8).devices() == jax.devices()
    # No silent fall-back: whoever asks for what is not there is told what is, and how to get the other.
    with pytest.raises(
        RuntimeError, match=r"platform 'tpu' was asked for and is not there; jax found \['cpu'\]\. Install"
    ):
        Place('run', platform='tpu').devices()
    with pytest.raises(RuntimeError, match=r'platform .sun. was asked for'):
        Place('run', platform='sun').devices()


def test_cpu_devices_cannot_change_once_jax_is_at_work():
    with pytest.raises(RuntimeError, match='cpu_devices = 3 comes too late: jax is already at work with 8'):
        Place('run', cpu_devices=3).devices()


def test_nothing_is_made_where_platform_or_mesh_are_wrong(tmp_path):
    for settings, error in (({'platform': 'tpu'}, RuntimeError), ({'mesh': MeshShape(data=3)}, ValueError)):
        with pytest.raises(error):
            opened(tmp_path / 'run', **settings)
    assert not (tmp_path / 'run').exists()


def test_a_directory_that_can_be_written(tmp_path):
    check_writable(tmp_path / 'deep' / 'run')
    assert (tmp_path / 'deep' / 'run').is_dir() and not list((tmp_path / 'deep' / 'run').iterdir())


@pytest.mark.parametrize('place', ['file/run', '/proc/run'])
def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch, place: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    for make in (lambda: check_writable(pathlib.Path(place)), lambda: opened(pathlib.Path(place))):
        with pytest.raises(OSError, match=rf'cannot write to the directory {place}: .*\. Choose another one\.'):
            make()


def test_the_record_of_a_run(tmp_path, capsys):
    with opened(tmp_path, name='a name', seed=3) as run:
        run.save_config()
        run.writer.write('round', round=1)
        assert run.resume_point('improve', VOCABULARY) is None
        save(run, 1)
    assert (tmp_path / 'config.gin').read_text() == '# the configuration\n'
    assert not events(tmp_path, 'round')  # no checkpoint knew of it: the round is done again
    with opened(tmp_path, seed=3) as run:
        run.writer.write('round', round=1)
        run.writer.write('round', round=2)
        assert run.resume_point('improve', VOCABULARY) == 1
    assert [event['round'] for event in events(tmp_path, 'round')] == [1]


def test_pre_training_counts_updates(tmp_path):
    with opened(tmp_path) as run:
        save(run, 2, 'pretrain')
        for step in (10, 20, 30):
            run.writer.write('pretrain', step=step)
        assert run.resume_point('pretrain', VOCABULARY) == 2
    assert [event['step'] for event in events(tmp_path, 'pretrain')] == [10, 20]


def test_another_run_is_refused_and_stays_as_it_is(tmp_path):
    with opened(tmp_path) as run:
        save(run, 1)
        run.writer.write('round', round=2)
    with (
        opened(tmp_path, seed=1) as run,
        pytest.raises(ValueError, match=r"its kind is improve, this one's pretrain; its seed is 0, this one's 1\. Go"),
    ):
        run.resume_point('pretrain', VOCABULARY)
    assert events(tmp_path, 'round')


def test_room_for_the_checkpoints_to_come(tmp_path, monkeypatch):
    """One more is written than is kept; those that are there need no more room."""
    free = [0]
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10**9, 10**9 - free[0], free[0]))
    monkeypatch.setattr(session, 'SPARE_BYTES', 1000)
    with opened(tmp_path, keep_checkpoints=2) as run:
        for step, missing in ((1, 3), (2, 2), (3, 1), (4, 1)):
            needed = missing * STATE['weight'].nbytes + 1000
            free[0] = needed - 1
            with pytest.raises(
                OSError, match=rf'{tmp_path} has .* free and the run needs about .* for {missing} more check'
            ):
                run.check_room(STATE)
            free[0] = needed
            run.check_room(STATE)
            save(run, step)


def test_what_is_on_every_device(tmp_path):
    with opened(tmp_path) as run:
        whole = run.replicate(np.arange(6))
        assert whole.sharding.is_fully_replicated and len(whole.devices()) == 8


FULL, IN_TEXT = OSError(errno.ENOSPC, 'No space'), ValueError("RESOURCE_EXHAUSTED: ... [os_error_code='28']")


@pytest.mark.parametrize(
    ('error', 'said'),
    [
        (FULL, 'No space left on device'),
        (IN_TEXT, 'No space left on device'),
        (OSError(errno.EDQUOT, ''), os.strerror(errno.EDQUOT)),
        (OSError(errno.ENOENT, 'no file'), None),
        (ValueError('28'), None),
        (KeyboardInterrupt(), None),
        (None, None),
    ],
)
def test_what_the_disk_had_against_it(error, said):
    assert disk_failure(error) == said


def fail(error: BaseException) -> Callable[..., None]:
    def failing(*_):
        raise error

    return failing


@pytest.mark.parametrize('place', ['in the run', 'in the writer', 'in both'])
def test_a_disk_that_fills_up(tmp_path, monkeypatch, place: str):
    message = rf'^{re.escape(str(tmp_path))}: No space left .* free there\)\. Make room and run the same command again'
    for last in ('$', '; it goes on from checkpoint 1$'):
        closed = []
        run = opened(tmp_path)
        if place != 'in the run':
            monkeypatch.setattr(run.writer, 'close', fail(FULL))
        monkeypatch.setattr(run.checkpoints, 'close', lambda closed=closed: closed.append('checkpoints'))
        with pytest.raises(OSError, match=message + last) as caught, run:
            if place != 'in the writer':
                raise IN_TEXT if place == 'in the run' else FULL
        assert isinstance(caught.value.__cause__, (OSError, ValueError)) and closed == ['checkpoints']
        with opened(tmp_path) as run:
            save(run, 1)


@pytest.mark.parametrize('error', [KeyboardInterrupt(), ValueError('of the user'), OSError(errno.ENOENT, 'no file')])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, opened(tmp_path):
        raise error
    assert caught.value is error
    run = opened(tmp_path)
    run.writer.close = fail(error)
    with pytest.raises(type(error)) as caught, run:
        pass
    assert caught.value is error


def test_versions():
    found = session.versions()
    assert found['jax'] == jax.__version__ and set(session.PACKAGES) | {'python'} == set(found)
