"""The command line as a user meets it: exit codes, and which of its mistakes is told how."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from t5x_selfimprove import config, main
from tests import tiny_run
from tests.made_run import made_run
from tests.tiny_run import improve_arguments, pretrain_arguments, run

QUICKSTART = '--gin_file=gin/runs/quickstart.gin'


def test_help():
    for arguments in (['--help'], ['-h'], ['improve', '--help']):
        outcome = run(arguments)
        assert outcome.code == 0 and outcome.err == ''
        assert config.USAGE in outcome.out
        told = re.findall(r'^  (\w+)   +\w', outcome.out, re.MULTILINE)
        assert sorted(told) == sorted([*config.ROOTS, 'report', 'samples'])  # every command


# What is wrong, and what is said of it; a mistake exits with 2.
MISTAKES = {
    'no command': ([], r'which command\?\n    one of vocabulary, pretrain, improve, .*, report, samples\n'),
    'unknown command': (['imporve'], r'there is no command imporve\n    did you mean improve\?'),
    'unknown flag': (
        ['improve', '--rounds=3'],
        r'there is no flag --rounds\n.*\n *did you mean --gin\.rounds=\.\.\.\?',
    ),
    'no file': (['improve'], r'(?s)9 problems.*train\.Improve\.rounds \(int\) must be bound\n'),
    'file that is not there': (
        ['improve', '--gin_file=gin/runs/nowhere.gin'],
        r'there is no file gin/runs/nowhere\.gin',
    ),
    'unknown binding': (
        ['improve', QUICKSTART, '--gin.train.Improve.round=3'],
        r'(?s)command line.*train\.Improve\.round\b.*did you mean .*rounds',
    ),
    'unknown part': (
        ['improve', QUICKSTART, '--gin.trian.Improve.rounds=3'],
        r'(?s)no part trian\.Improve.*did you mean train\.',
    ),
    'unknown macro': (['improve', QUICKSTART, '--gin.SEDE=3'], r'(?s)SEDE.*did you mean .*SEED'),
    'value of another type': (
        ['improve', QUICKSTART, '--gin.train.Improve.rounds=many'],
        r"rounds wants int, not 'many'",
    ),
    'value out of range': (['improve', QUICKSTART, '--gin.train.Improve.rounds=0'], r'rounds = 0 must be a positive'),
    'two mistakes': (
        ['improve', QUICKSTART, '--gin.SEDE=3', '--gin.train.Improve.round=3'],
        r'(?s)2 problems in the configuration\..*Improve has no field round\n.*SEDE',
    ),
    'report of nothing': (
        ['report'],
        r'report needs a run directory: python -m t5x_selfimprove report runs/quickstart',
    ),
    'report of no run': (['report', 'gin'], r'gin holds no metrics\.jsonl: name the directory that'),
    'report of no directory': (
        ['report', 'runs/nowhere/at/all'],
        r'runs/nowhere/at/all is not there: name the directory',
    ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes(name: str):
    arguments, message = MISTAKES[name]
    outcome = run(arguments)
    assert outcome.code == 2 and re.search(message, outcome.err), outcome.err
    assert outcome.out == '' and 'Traceback' not in outcome.err


def test_a_process_of_its_own_ends_with_the_code(tmp_path):
    """`python -m t5x_selfimprove`, with what the caller's environment sets kept."""
    found = subprocess.run(
        [sys.executable, '-m', 't5x_selfimprove', 'imporve'],
        env=tiny_run.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2 and 'did you mean improve?' in found.stderr and found.stdout == ''


def test_reports(tmp_path):
    runs = [made_run(tmp_path / name, rounds=1, questions=4, paths=2) for name in ('one', 'two')]
    outcome = run(['report', *map(str, runs)])
    assert outcome.code == 0
    assert outcome.out.splitlines() == [f'report: {directory / "report.html"}' for directory in runs]


def failing(error: BaseException):
    def run(self, text):
        raise error

    return run


@pytest.mark.parametrize('error', [ValueError('a bad value'), OSError(2, 'No file'), RuntimeError('no platform')])
def test_what_a_user_can_mend_is_said_in_a_line(monkeypatch, error):
    arguments = pretrain_arguments('never')
    monkeypatch.setattr(config.TABLE['pretrain.Pretrain'], 'run', failing(error))
    outcome = run(arguments)
    assert outcome.code == 2
    assert outcome.err == f'{type(error).__name__}: {error}\n(T5X_SELFIMPROVE_TRACEBACK=1 shows where)\n'
    monkeypatch.setenv('T5X_SELFIMPROVE_TRACEBACK', '1')
    with pytest.raises(type(error)):
        run(arguments)


def test_a_mistake_of_ours_shows_where(monkeypatch):
    monkeypatch.setattr(config.TABLE['pretrain.Pretrain'], 'run', failing(KeyError('ours')))
    with pytest.raises(KeyError):
        run(pretrain_arguments('never'))


def test_interrupted(monkeypatch):
    monkeypatch.setattr(config.TABLE['pretrain.Pretrain'], 'run', failing(KeyboardInterrupt()))
    outcome = run(pretrain_arguments('never'))
    assert outcome.code == 130 and outcome.err == 'interrupted; the same command goes on from the last checkpoint\n'


def test_bindings_that_a_command_does_not_read_are_told(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(config.TABLE['train.Improve'], 'run', lambda self, text: given.append((self, text)))
    outcome = run(improve_arguments(tmp_path, 'initial', SEED=7))
    assert outcome.code == 0 and re.fullmatch(
        r'\d+ bindings of the files are of parts .*: .*ask\.Evaluate.*\n', outcome.out
    )
    ((value, text),) = given
    assert value.place.seed == 7 and value.place.directory == str(tmp_path)
    file = tmp_path / 'config.gin'
    file.write_text(text)
    assert config.build('train.Improve', [str(file)]).value == value  # what is saved is what runs


@pytest.mark.parametrize(
    ('set_before', 'flags'),
    [
        (None, main.CPU_FLAG),
        ('--xla_dump_to=there', f'--xla_dump_to=there {main.CPU_FLAG}'),
        (f'{main.CPU_FLAG}1', f'{main.CPU_FLAG}1'),
    ],
)
def test_what_the_user_set_in_the_environment_stays(monkeypatch, set_before, flags):
    monkeypatch.setattr(main.importlib.metadata, 'version', lambda _: '0.10.2')
    for name, value in (('XLA_FLAGS', set_before), ('TF_CPP_MIN_LOG_LEVEL', '0')):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    main.settle_environment()
    assert os.environ['XLA_FLAGS'] == flags and os.environ['TF_CPP_MIN_LOG_LEVEL'] == '0'
    main.settle_environment()
    assert os.environ['XLA_FLAGS'] == flags


def test_another_jax_needs_no_flag(monkeypatch):
    monkeypatch.setattr(main.importlib.metadata, 'version', lambda _: '0.11.0')
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    main.settle_environment()
    assert 'XLA_FLAGS' not in os.environ


def test_gin_files_are_found_from_anywhere(monkeypatch, tmp_path: pathlib.Path):
    """A file of ours and its includes, from another working directory."""
    given = []
    monkeypatch.setattr(config.TABLE['train.Improve'], 'run', lambda self, text: given.append(self))
    monkeypatch.chdir(tmp_path)
    assert run(improve_arguments(tmp_path, 'initial')).code == 0 and given
