"""Killed with SIGKILL wherever it happens to be and started again, a run ends in the bits of one that went through."""

import functools
import json
import pathlib
import random
import re
import signal
import tempfile

from tests.faults import SETTINGS, Started, start, without_times
from tests.tiny_run import arrays, events, improve_arguments, pretrain_arguments, same_bits, steps

SEED = 0  # of the moments

# A run is killed once in each of these parts: at a change of its files that matches, or up to so many seconds later.
PRETRAIN_PARTS = {
    r'config\.gin': 0.5,  # compiling, or in the first chunk
    r'checkpoints/2\.': 0.03,
}
ROUNDS = 3
IMPROVE_PARTS = {
    r'evaluation_0000|checkpoints/0\.': 0.03,
    r'evaluation_0001': 0.0,  # the first round was told of and is not saved
    r'checkpoints/1\.': 0.03,
    r'(rmtree|rmdir) checkpoints/0$': 0.03,
    r'(summary|report)': 0.0,
}


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix='resume_')


@functools.cache
def pretrained() -> tuple[pathlib.Path, Started]:
    """A pre-training that nobody stopped."""
    directory = pathlib.Path(folder().name) / 'pretrain'
    return directory, start(directory, pretrain_arguments(directory, **SETTINGS))


def kill_and_start_again(
    directory: pathlib.Path, arguments: list[str], parts: dict[str, float], changes: list[str]
) -> Started:
    """Kills a run once in each part, at one of the changes that the uninterrupted run made there; then lets it end."""
    draw = random.Random(SEED)
    for part, latest in parts.items():
        kill_at = draw.choice([change for change in changes if re.search(part, change)])
        kill_after = draw.choice((0.0, draw.uniform(0, latest)))
        before = whole(directory)
        killed = start(directory, arguments, kill_at, kill_after)
        print(f'killed {1000 * kill_after:.0f} ms after {kill_at}, {len(killed.changes)} changes from its start')
        assert killed.code == -signal.SIGKILL, killed.out + killed.err
        assert kill_at in killed.changes  # not always last: threads that save write by themselves
        assert whole(directory) >= before  # what was saved is not lost
    last = start(directory, arguments)
    assert last.code == 0, last.out + last.err
    return last


def whole(directory: pathlib.Path) -> int:
    """The last whole checkpoint, -1 where there is none; a killed run may leave a partial one beside it."""
    folder = directory / 'checkpoints'
    return max((int(path.name) for path in folder.glob('*') if path.name.isdigit()), default=-1)


def check_equal(directory: pathlib.Path, other: pathlib.Path) -> None:
    """The same files, the same bits of every checkpoint; the same events, but for times."""
    assert files(directory) == files(other)
    assert steps(directory) == steps(other)
    for step in steps(other):
        assert same_bits(arrays(directory, step), arrays(other, step))
    for kind in ('pretrain', 'round', 'evaluation'):
        assert without_times(events(directory, kind)) == without_times(events(other, kind))


def files(directory: pathlib.Path) -> set[str]:
    return {
        str(path.relative_to(directory))
        for path in directory.rglob('*')
        if not re.search(r'checkpoints/\d+/arrays/(d|ocdbt.*)/', str(path))
    }


def test_pretraining(tmp_path):
    through, started = pretrained()
    assert started.code == 0, started.err
    directory = tmp_path / 'run'
    last = kill_and_start_again(directory, pretrain_arguments(directory, **SETTINGS), PRETRAIN_PARTS, started.changes)
    assert 'resumed after chunk' in last.out
    check_equal(directory, through)


def test_self_improvement(tmp_path):
    initial, _ = pretrained()
    through, directory = tmp_path / 'through', tmp_path / 'run'
    one, other = (
        improve_arguments(place, initial, **SETTINGS, train__Improve__rounds=ROUNDS) for place in (through, directory)
    )
    started = start(through, one)
    assert started.code == 0, started.err
    last = kill_and_start_again(directory, other, IMPROVE_PARTS, started.changes)
    assert f'resumed after round {ROUNDS} of {ROUNDS}' in last.out
    check_equal(directory, through)
    for name in files(through):
        if name.startswith('samples/'):
            assert (directory / name).read_bytes() == (through / name).read_bytes()
    one, other = (json.loads((place / 'summary.json').read_text()) for place in (directory, through))
    assert without_times(one['rounds']) == without_times(other['rounds']) and len(one['rounds']) == ROUNDS + 1
    assert (one['sessions'], other['sessions']) == (len(IMPROVE_PARTS) + 1, 1)
