"""What the benchmarks of the sampler reckon with, and how their arms take turns."""

import dataclasses
import importlib
import os
import pathlib

import pytest

from tests.benchmarks import sampling_gpu, sampling_growth, turns
from tests.benchmarks.sampling_workloads import SHARED, SPREAD, Sizes, Workload

SMALL = Sizes(width=2, layers=3, heads=4, kv_heads=2, head_size=5, feed_forward=7, vocabulary=11)
FEW = Workload('few', prefix=3, questions=2, question=2, samples=2, room=4, least=1)

ARM = """
import sys, tests.benchmarks.turns as turns
class Ready:
    facts = {'name': sys.argv[2]}
    turn = 0
    def __call__(self):
        print('noise of a package')
        self.turn += 1
        if sys.argv[2] == 'fails' and self.turn == 2:
            sys.exit(3)
        return {'turn': self.turn}
def make():
    if sys.argv[2] == 'missing':
        raise turns.LeftOut('a package is not installed')
    return Ready()
turns.work(make)
"""


@pytest.mark.parametrize('path', sorted(pathlib.Path(turns.__file__).parent.glob('*.py')), ids=lambda path: path.stem)
def test_every_benchmark_finds_what_it_imports(path):
    importlib.import_module(f'tests.benchmarks.{path.stem}')


def test_workloads():
    assert SHARED.generated == 8192 and SPREAD.generated == 9077
    assert SPREAD.lengths.min() >= 16 and SPREAD.lengths.max() <= 256
    rows, (prefix, questions) = SHARED.rows_of(32_000), SHARED.prompts(32_000)
    assert rows.shape == (64, 832) and (rows[:, :768] == prefix).all() and (rows[16:32, 768:] == questions[1]).all()
    assert Sizes().matrix_parameters == 41_549_824


def test_operations_are_those_of_every_token_by_itself():
    layer = 2 * (2 * 4 * 5 + 2 * 2 * 5) + 3 * 2 * 7  # parameters: queries and output, keys and values, feed-forward
    total = 0
    read = [*range(FEW.prefix), *[FEW.prefix + place for _ in range(2) for place in range(2)]]  # positions
    read += [FEW.prefix + FEW.question + place for length in FEW.lengths for place in range(length - 1)]
    for position in read:
        total += 2 * 3 * layer + 3 * 4 * (position + 1) * 4 * 5  # scores and mixing, 2 operations a number each
    drawn_from = FEW.questions + sum(length - 1 for length in FEW.lengths)
    assert FEW.flops(SMALL) == total + 2 * drawn_from * 2 * 11


def test_bytes_of_keys_and_values():
    found = sampling_growth.kept_bytes(FEW, SMALL)
    each = 2 * 3 * 2 * 5 * 4
    assert found == {'kept': (3 + 2 * 2 + 4 * 4) * each, 'copied': 4 * (3 + 2 + 4) * each}


@pytest.mark.parametrize('bandwidth', [1.0, 1e9])
def test_limit_is_the_longer_of_bytes_and_operations(bandwidth: float):
    even = dataclasses.replace(FEW, room=2, least=0)  # one step
    found = sampling_gpu.limit_seconds(even, SMALL, {'bandwidth': bandwidth, 'matrix rate': 10.0})
    numbers = SMALL.matrix_parameters + 2 * 3 * 2 * 5 * (3 + 2 * 2 + 4)
    done = 2 * 4 * SMALL.matrix_parameters + 3 * 4 * 4 * (5 + 1) * 4 * 5
    assert found['stepping'] == pytest.approx(2 * numbers if bandwidth == 1.0 else done / 10)
    assert found['call'] == found['reading'] + found['stepping']
    assert found['reading'] == dataclasses.replace(FEW, room=1, least=0, samples=1).flops(SMALL) / 10


def test_arms_take_turns(tmp_path: pathlib.Path):
    (tmp_path / 'an_arm.py').write_text(ARM)
    environment = {'PYTHONPATH': os.pathsep.join([str(tmp_path), os.getcwd()])}
    arms = [turns.Arm(name, 'an_arm', environment=environment) for name in ('runs', 'missing', 'fails')]
    cores = sorted(os.sched_getaffinity(0))[:1]
    found = turns.take_turns(arms, cores, 2)
    assert [repeat['turn'] for repeat in found['runs']['repeats']] == [1, 2] and found['runs']['name'] == 'runs'
    assert found['missing'] == {'left out': 'a package is not installed'}
    assert 'status 3' in found['fails']['left out']
    assert turns.middle({'repeats': [{'x': 3.0}, {'x': 1.0}, {'x': 2.0}]}, 'x') == 2.0
    assert all(repeat['peak_memory'] > 2**20 for repeat in found['runs']['repeats'])
