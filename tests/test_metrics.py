"""Metrics are summed everywhere and divided once; their file survives a kill."""

import errno
import json
import os
import pathlib
import struct
import threading

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from t5x_selfimprove import metrics
from t5x_selfimprove.metrics import Mean, Sum, Writer


def test_a_mean_of_unequal_parts_is_divided_once():
    parts = {'loss': Mean(jnp.array([2.0, 30.0]), jnp.array([1.0, 3.0])), 'count': Sum(jnp.array([2.0, 5.0]))}
    assert metrics.values(metrics.summed(parts)) == {'loss': 8.0, 'count': 7.0}
    assert metrics.values(parts)['loss'] == 8.0  # parts that were not summed yet are summed now


def test_a_mean_of_nothing_is_none():
    assert Mean(jnp.zeros(()), jnp.zeros(())).value is None


def test_histograms_stay_lists():
    assert metrics.values({'bins': Sum(jnp.array([1.0, 2.0]))}) == {'bins': [1.0, 2.0]}
    assert metrics.values(metrics.summed({'bins': Sum(jnp.ones((3, 2)))})) == {'bins': [3.0, 3.0]}


def test_metrics_are_pytrees_that_a_scan_stacks():
    def step(carry, x):
        return carry, {'loss': Mean(x, jnp.ones(())), 'seen': Sum(jnp.ones(()))}

    _, stacked = jax.lax.scan(step, None, jnp.array([1.0, 2.0, 6.0]))
    assert metrics.values(metrics.summed(stacked)) == {'loss': 3.0, 'seen': 3.0}


def test_events_are_read_as_they_were_written(tmp_path):
    writer = Writer(tmp_path / 'deep' / 'run', tensorboard=False)
    writer.write('round', round=1, loss=0.5, note='two\nlines \u2028 é', share_histogram=[1.0, 2.0])
    lines = (tmp_path / 'deep' / 'run' / 'metrics.jsonl').read_text().splitlines()  # flushed before it is closed
    writer.close()
    assert len(lines) == 1
    (event,) = metrics.read(tmp_path / 'deep' / 'run' / 'metrics.jsonl')
    assert event.pop('time') == pytest.approx(json.loads(lines[0])['time'])
    assert event == {
        'kind': 'round', 'round': 1, 'loss': 0.5, 'note': 'two\nlines \u2028 é', 'share_histogram': [1.0, 2.0],
    }  # fmt: skip


def test_a_resumed_run_appends_after_cutting_off_half_a_line(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"kind": "round", "round": 1}\n{"kind": "rou')
    assert [event['round'] for event in metrics.read(path)] == [1]
    writer = Writer(tmp_path, tensorboard=False)
    writer.write('round', round=2)
    writer.close()
    assert [event['round'] for event in metrics.read(path)] == [1, 2]


@pytest.mark.parametrize('content', ['', '{"kind"', '{"a": 1}\n', '{"a": 1}\n{"b"'])
def test_only_half_lines_are_dropped(tmp_path, content):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(content)
    metrics.drop_half_line(path)
    assert path.read_text() == content[: content.rfind('\n') + 1]
    metrics.drop_half_line(tmp_path / 'none.jsonl')


def test_what_is_done_again_is_forgotten(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    writer = Writer(tmp_path, tensorboard=False)
    writer.write('run', seed=0)
    for number in (1, 2):
        writer.write('round', round=number, loss=0.1)
        writer.write('evaluation', round=number)
    before = path.read_text().splitlines()
    writer.forget(2)
    assert path.read_text().splitlines() == before
    writer.forget(1)
    assert path.read_text().splitlines() == before[:3]
    writer.write('round', round=2)
    writer.close()
    assert [(event['kind'], event.get('round')) for event in metrics.read(path)[3:]] == [('round', 2)]
    writer = Writer(tmp_path, tensorboard=False)
    writer.write('pretrain', step=40)
    writer.forget(-1)
    assert [event['kind'] for event in metrics.read(path)] == ['run']
    writer.close()


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match=r'metrics\.jsonl, line 2: not JSON'):
        metrics.read(path)
    assert metrics.read(tmp_path / 'none.jsonl') == []


def scalars(directory: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """Tag to (step, value) of the event file in a directory, which is records of length, checksum, Event, checksum."""
    (path,) = directory.iterdir()
    content, place, found = path.read_bytes(), 0, {}
    while place < len(content):
        (length,) = struct.unpack_from('<Q', content, place)
        event = Event.FromString(content[place + 12 : place + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        place += length + 16
    return found


def test_numbers_reach_tensorboard_at_their_round(tmp_path):
    writer = Writer(tmp_path)
    accuracy = {'value': 0.5, 'low': 0.4, 'high': 0.6}
    writer.write('evaluation', round=3, suite='held_out', accuracy=accuracy, seconds={'sample': 2})
    writer.write('evaluation', round=4, nothing=None, unbounded=float('nan'), flag=True, bins=[1, 2])
    writer.write('session', seconds=9.0)  # neither step nor round
    writer.write('pretrain', step=100, loss=1.5)
    writer.close()
    assert scalars(tmp_path / 'tensorboard') == {
        'evaluation/round': [(3, 3.0), (4, 4.0)],
        'evaluation/accuracy': [(3, 0.5)],
        'evaluation/seconds/sample': [(3, 2.0)],
        'pretrain/step': [(100, 100.0)],
        'pretrain/loss': [(100, 1.5)],
    }


def test_tensorboard_is_written_at_once(tmp_path, monkeypatch):
    """By this thread, which hears of it when the disk is full; one of its own would die and leave the run waiting."""
    threads = threading.active_count()
    writer = Writer(tmp_path)
    writer.write('round', round=1, loss=0.5)
    assert scalars(tmp_path / 'tensorboard') == {'round/round': [(1, 1.0)], 'round/loss': [(1, 0.5)]}
    assert threading.active_count() == threads
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        for number in range(2, 20):
            with pytest.raises(OSError, match='No space left'):
                writer.write('round', round=number, **{f'number {n}': n for n in range(100)})
    writer.close()


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError):
        Writer(tmp_path / 'file' / 'run')
