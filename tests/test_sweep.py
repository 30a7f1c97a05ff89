"""Sweeps: points side by side, failures marked, what is done kept, and the table and figure of what there is."""

import dataclasses
import json
import math
import pathlib
import re
import sys

import pytest

from t5x_selfimprove import config, sweep
from t5x_selfimprove.sweep import Sweep, ends, mean_of, settings
from tests import tiny_run
from tests.tiny_run import built

# In the place of Python: writes a summary whose accuracies are made of seed and samples; fails where it is told to.
COMMAND = """#!/bin/sh
for word in "$@"; do
  case $word in
    --gin.RUN_DIR=*) place=${word#*=} ;;
    --gin.SEED=*) seed=${word#*=} ;;
    --gin.sampling.Sampler.samples=*) samples=${word#*=} ;;
  esac
done
echo "$3 $place" >> "$(dirname "$place")/calls"
if [ -e "$(dirname "$place")/broken" ] && [ "$samples" = 4 ] && [ "$seed" = 1 ]; then echo "it broke"; exit 3; fi
mkdir -p "$place"
value() { echo "{\\"value\\": 0.$1}"; }
tokens='"training_tokens": 50'
row() { echo "{$tokens, \\"greedy_accuracy\\": $(value $1), \\"maj_at_k\\": {\\"8\\": $(value $2)}}"; }
rows="\\"rounds\\": [$(row 1 2), $(row "$samples$seed" 9)]"
echo "{$rows, \\"suites\\": {}}" > "$place/summary.json"
"""


@pytest.fixture
def made(tmp_path, monkeypatch) -> Sweep:
    """A sweep whose commands are quick."""
    python = tmp_path / 'python'
    python.write_text(COMMAND)
    python.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(python))
    return Sweep(
        directory=str(tmp_path / 'sweep'),
        title='Paths',
        axis='paths',
        files=('gin/runs/quickstart.gin',),
        points=(('2', ('sampling.Sampler.samples=2',)), ('4', ('sampling.Sampler.samples=4',))),
        seeds=(0, 1, 2),
        first=('gin/runs/quickstart_pretrain.gin',),
        bindings=('session.Place.cpu_devices=1',),
        measures=('greedy_accuracy', 'maj_at_k/8'),
        processes=2,
    )


def calls(made: Sweep) -> list[str]:
    lines = pathlib.Path(made.directory, 'calls').read_text().splitlines()
    return sorted(f'{line.split()[0]} {pathlib.Path(line.split()[1]).name}' for line in lines)


def test_all_points_run_and_are_measured(made, capsys):
    found = made.run('')
    starts, points = [f'pretrain start-{seed}' for seed in range(3)], [f'{p}-{seed}' for p in '24' for seed in range(3)]
    assert calls(made) == sorted([*starts, *(f'improve {point}' for point in points)])
    assert found['points']['4']['2'] == {
        'status': 'done', 'training_tokens': 100,
        'measures': {'greedy_accuracy': (0.1, 0.42), 'maj_at_k/8': (0.2, 0.9)},
    }  # fmt: skip
    title, columns, rows = made.table(found)
    assert title.startswith('Paths, per cent')
    assert columns[1:4] == ['seeds', 'training tokens', 'greedy accuracy, before']
    half = 100 * mean_of([0.2, 0.21, 0.22])[1]
    assert rows[0] == ['2', '3', '100', '10.0 ± 0.0', f'21.0 ± {half:.1f}', f'+11.0 ± {half:.1f}',
                       '20.0 ± 0.0', '90.0 ± 0.0', '+70.0 ± 0.0']  # fmt: skip
    assert rows[1][4].startswith('41.0 ±') and 'figure: ' in capsys.readouterr().out
    assert pathlib.Path(made.directory, 'sweep.png').read_bytes().startswith(b'\x89PNG')
    made.run('')
    assert len(calls(made)) == 9  # nothing is done twice


def test_a_point_that_fails_loses_no_other_and_is_tried_again(made, capsys):
    directory = pathlib.Path(made.directory)
    directory.mkdir()
    (directory / 'broken').touch()
    with pytest.raises(RuntimeError, match=r'1 of 6 points failed \(4-1\)'):
        made.run('')
    assert '4-1 failed' in (said := capsys.readouterr().out) and 'it broke' in said
    found = json.loads((directory / 'sweep.json').read_text())
    assert found['points']['4']['1'] == {'status': 'failed', 'measures': None, 'training_tokens': None}
    assert made.table(found)[2][1][1] == '2 (1 failed)' and made.table(found)[2][0][1] == '3'
    (directory / 'broken').unlink()
    made.run('')
    assert [call for call in calls(made) if '4-1' in call] == ['improve 4-1'] * 2 and len(calls(made)) == 10


def test_another_command_does_not_go_on_with_a_run(made, capsys):
    made.run('')
    other = dataclasses.replace(made, points=(made.points[0], ('4', ('sampling.Sampler.samples=5',))))
    with pytest.raises(RuntimeError, match=r'3 of 6 points failed \(4-0, 4-1, 4-2\)'):
        other.run('')
    found = json.loads(pathlib.Path(made.directory, 'sweep.json').read_text())
    assert found['points']['4']['0']['measures'] is None  # not those of the other command
    assert '4-0 was made by another command; remove it' in capsys.readouterr().out and len(calls(made)) == 9
    made.run('')
    assert len(calls(made)) == 9


def test_points_are_built_before_anything_runs(made):
    wrong = dataclasses.replace(made, points=(*made.points, ('8', ('sampling.Sampler.sample=8',))))
    with pytest.raises(config.ConfigError, match='no field sample'):
        wrong.run('')
    assert not pathlib.Path(made.directory).exists()


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'points': ()}, 'needs points, seeds and measures'),
        ({'points': (('a', ()), ('a', ()))}, "must differ, .* they are ['a', 'a']"),
        ({'points': (('a/b', ()),)}, 'be of letters, digits'),
        ({'stages': (('2', 'pretrain', ()),)}, "must differ, .* they are ['2', '4', '2']"),
        ({'processes': 0}, 'processes must be at least 1; it is 0'),
    ],
)
def test_settings_are_checked(made, fields, said):
    with pytest.raises(ValueError, match=re.escape(said).replace(r'\.\*', '.*')):
        dataclasses.replace(made, **fields)


def test_a_curve_of_runs_that_another_sweep_has_made(made):
    made.run('')
    curve = (('1', 'greedy_accuracy'), ('8', 'maj_at_k/8'))
    other = dataclasses.replace(made, directory=f'{made.directory}/curve', runs=made.directory, curve=curve)
    found = other.run('')
    assert len(calls(made)) == 9 and pathlib.Path(other.directory, 'sweep.png').exists()
    _, columns, rows = other.table(found)
    lines = [f'accuracy, {label}, {when}' for label in '24' for when in ('before', 'after', 'change')]
    assert columns == ['paths', *lines] and [row[0] for row in rows] == ['1', '8']
    half = 100 * mean_of([0.4, 0.41, 0.42])[1]
    assert rows[0][4:] == ['10.0 ± 0.0', f'41.0 ± {half:.1f}', f'+31.0 ± {half:.1f}']
    assert rows[1][1:] == ['20.0 ± 0.0', '90.0 ± 0.0', '+70.0 ± 0.0'] * 2
    found['points']['2']['1']['measures'] = None
    assert other.table(found)[1][1] == 'accuracy, 2, (2 of 3 seeds) before'
    one = dataclasses.replace(other, points=made.points[:1])
    assert one.table(one.gather())[1] == ['paths', *(f'accuracy, {when}' for when in ('before', 'after', 'change'))]


def test_what_points_need_is_made_before_them(made):
    stages = (
        ('small', 'pretrain', ('models.TransformerConfig.layers=1',)),
        ('16', 'improve', ('sampling.Sampler.samples=16', 'INITIAL={small}')),
    )
    paths = ('data.StoredPaths.directory={16}', 'train.Improve.replay=@data.StoredPaths()')
    other = dataclasses.replace(made, stages=stages, points=(*made.points, ('taught', paths)), seeds=(1,), processes=1)
    other.run('')
    lines = pathlib.Path(made.directory, 'calls').read_text().splitlines()
    names = [f'{line.split()[0]} {pathlib.Path(line.split()[1]).name}' for line in lines]
    points = [f'improve {label}-1' for label in ('2', '4', 'taught')]
    assert names == ['pretrain start-1', 'pretrain small-1', 'improve 16-1', *points]
    assert 'start' not in dataclasses.replace(other, points=(('taught', ('INITIAL={small}',)),)).commands
    words = other.words('16', 1)
    assert f'--gin.INITIAL={made.directory}/small-1' in words and '--gin_file=gin/runs/quickstart.gin' in words
    assert sum('INITIAL' in word for word in words) == 1 and not any('INITIAL' in w for w in other.words('small', 1))
    assert '--gin.models.TransformerConfig.layers=1' in other.words('small', 1)
    words = other.words('taught', 1)
    assert f'--gin.data.StoredPaths.directory={made.directory}/16-1' in words
    assert words[-1] == f'--gin.INITIAL={made.directory}/start-1'
    dataclasses.replace(other, points=(('told', ('{small}/made.gin',)),)).check()  # a stage is yet to write it
    with pytest.raises(config.ConfigError, match=r'there is no file .*other/made\.gin'):
        dataclasses.replace(other, points=(('told', (f'{made.directory}/other/made.gin',)),)).check()


def test_measures():
    rows = [
        {'greedy_accuracy': {'value': 0.25}, 'brier': 0.5, 'reliability': [{'accuracy': 0.75}, {'accuracy': None}]},
        {'greedy_accuracy': None, 'brier': 0.4, 'reliability': None},
    ]
    longer = [{'maj_at_k': {'8': {'value': value}}} for value in (0.5, 0.625)]
    summary = {'rounds': rows, 'suites': {'longer': {'rounds': longer}}}
    assert ends(summary, 'greedy_accuracy') == (0.25, 0.25) and ends(summary, 'brier') == (0.5, 0.4)
    assert ends(summary, 'longer/maj_at_k/8') == (0.5, 0.625)
    assert ends(summary, 'reliability/0/accuracy') == (0.75, 0.75)
    assert ends(summary, 'reliability/1/accuracy') == (None, None)
    with pytest.raises(ValueError, match='majority_accuracy was not measured; there are greedy_accuracy, reliability'):
        ends(summary, 'majority_accuracy')
    with pytest.raises(ValueError, match='there is no 16 of maj_at_k/16; there are 8'):
        ends(summary, 'longer/maj_at_k/16')
    with pytest.raises(ValueError, match='there is no 2 of reliability/2/accuracy; there are 0, 1'):
        ends(summary, 'reliability/2/accuracy')
    assert mean_of([]) is None and mean_of([0.5])[0] == 0.5 and math.isnan(mean_of([0.5])[1])
    # Student's t of two degrees of freedom, 4.303 (Fisher's table)
    assert mean_of([0.1, 0.2, 0.3]) == pytest.approx((0.2, 4.303 * 0.1 / 3**0.5), rel=1e-3)
    assert settings(('a.gin', 'B.c=d.gin', 'e=1')) == ['--gin_file=a.gin', '--gin.B.c=d.gin', '--gin.e=1']


SWEEPS = sorted(path.name for path in (tiny_run.ROOT / 'gin/sweeps').glob('*.gin') if path.name != 'embedded.gin')


@pytest.mark.parametrize('name', SWEEPS)
def test_the_points_of_the_sweeps_build(name, tmp_path):
    made = built(['sweep', f'--gin_file=gin/sweeps/{name}', f'--gin.sweep.Sweep.directory={tmp_path}']).value
    made.check()
    assert len(made.seeds) >= 3
    assert made.curve or len({tuple(made.words(label, 0)[:-2]) for label, _ in made.points}) > 1
    assert isinstance(made, sweep.Sweep)
