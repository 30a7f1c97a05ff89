"""A run in two processes, each of which reads its share, stopped by a signal to one of them, gone on with in one: the
run of one process."""

import os
import pathlib

from t5x_selfimprove.data.possessions import Possessions
from tests import counted_reads, tiny_run
from tests.many_processes import ends, largest_difference, output, paths, start
from tests.tiny_run import BATCH, QUESTIONS, ROUNDS, events, finished, improve_arguments, pretrained, steps

KILLING = pathlib.Path(__file__).parent / 'killing'  # see sitecustomize.py there


def check_reads(log: pathlib.Path) -> None:
    """Each of two processes has read, and encoded, half of each batch, and nothing of the other half."""
    of_split = {'unlabelled': ROUNDS * QUESTIONS, 'held_out': QUESTIONS}
    texts = {split: [item.question for item in Possessions(split, 0, 2, 2, 6, 12).take(0, count)]
             for split, count in of_split.items()}  # fmt: skip
    for number in range(2):
        read, encoded = counted_reads.told(log, number)
        for split, count in of_split.items():
            own = {place for place in range(count) if place % BATCH // (BATCH // 2) == number}
            assert read[split] == own, (number, split)
            assert {place for place, text in enumerate(texts[split]) if text in encoded} == own, (number, split)


def test_two_processes_then_one(tmp_path):
    directory = tmp_path / 'run'
    signalled = {
        'PYTHONPATH': f'{KILLING}{os.pathsep}{tiny_run.ROOT}',
        'KILLING_IN': f'{directory}/',
        'KILLING_LOG': str(tmp_path / 'changes'),
        'KILLING_AT': 'open samples/.round_0001.parquet.partial',
        'KILLING_SIGNAL': 'SIGTERM',
    }
    logged = {'READS_LOG': str(tmp_path / 'reads')}
    settings = {'session__Place__cpu_devices': 1, 'module': 'tests.counted_reads'}
    codes = ends(start(directory, pretrained().directory, 2, signalled, logged, **settings))
    said = [output(directory, number).read_text() for number in range(2)]
    assert codes == [75, 75], said
    check_reads(tmp_path / 'reads')
    # Both stop at one boundary, though one alone was asked to; one alone tells of the run.
    assert all('stopped as SIGTERM asked, after round 1 of 2; all of it is saved' in text for text in said)
    assert '2 x cpu (cpu) in 2 processes' in said[0] and 'after round 1: greedy' in said[0]
    assert 'round 1:' not in said[1]
    assert steps(directory) == [0, 1] and len(events(directory, 'round')) == 1
    one = finished().directory
    assert paths(directory, 'round_0001.parquet') == paths(one, 'round_0001.parquet')
    assert paths(directory, 'evaluation_0001.parquet') == paths(one, 'evaluation_0001.parquet')
    assert largest_difference(directory, one, 1) < 1e-5
    # Restored on another number of processes and devices.
    outcome = tiny_run.done(improve_arguments(directory, pretrained().directory))
    assert 'resumed after round 1 of 2' in outcome.out
    assert paths(directory, 'round_0002.parquet') == paths(one, 'round_0002.parquet')
    assert largest_difference(directory, one, 2) < 1e-5
