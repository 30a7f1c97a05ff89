"""Faults on purpose: a run of self-improvement that was disturbed must end in the bits of one that was not.

python -m tests.faults                   every fault, in the tests' tiny run, and the report
python -m tests.faults --large           ... in the quickstart at its full size, of three rounds
python -m tests.faults --only=corrupt    ... only the faults that have the word in their names

The report counts, for each fault, how often the run was started until it was done, and the bytes of its checkpoint,
samples and events that are not those of the undisturbed run: what was lost. Whoever may not mount a file system is told
that the full disk was left out.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from t5x_selfimprove import train
from t5x_selfimprove.main import settle_environment
from t5x_selfimprove.metrics import Writer
from tests import many_processes, tiny_run
from tests.tiny_run import Outcome, arrays, events, steps

KILLING = pathlib.Path(__file__).parent / 'killing'  # see sitecustomize.py there
ROUNDS = 3
SETTINGS = {'session__Place__tensorboard': False}  # its package is slow to import


@dataclasses.dataclass(frozen=True)
class Started(Outcome):
    """How a process ended, and how it changed the files of its run directory."""

    changes: list[str]


def start(directory: pathlib.Path, arguments: list[str], kill_at: str = '', kill_after: float = 0.0) -> Started:
    """Runs the command line in a process of its own, which is killed at a change of its files, or so long after it."""
    log = directory.with_name(f'{directory.name}.changes')
    log.unlink(missing_ok=True)
    environment = tiny_run.environment()
    environment |= {'PYTHONPATH': f'{KILLING}{os.pathsep}{environment["PYTHONPATH"]}', 'KILLING_IN': f'{directory}/'}
    environment |= {'KILLING_LOG': str(log), 'KILLING_AT': kill_at, 'KILLING_AFTER': str(kill_after)}
    command = [sys.executable, '-m', 't5x_selfimprove', *arguments]
    done = subprocess.run(
        command, env=environment, cwd=tiny_run.ROOT, capture_output=True, text=True, timeout=3600, check=False
    )
    return Started(done.returncode, done.stdout, done.stderr, log.read_text().splitlines())


def without_times(found: list[dict]) -> list[dict]:
    """Events but for what the clock says."""
    times = ('time', 'seconds', 'mfu')
    return [{name: value for name, value in event.items() if name not in times} for event in found]


def bytes_lost(directory: pathlib.Path, whole: pathlib.Path) -> int:
    """Bytes of the checkpoints that both keep, of samples and of events of a run that another does not have so."""
    lost = 0
    for step in set(steps(directory)[-1:]) | set(steps(whole)[-1:]):
        here, there = (arrays(run, step) if step in steps(run) else {} for run in (directory, whole))
        lost += sum(array.nbytes for name, array in there.items() if array.tobytes() != _bits(here.get(name)))
    for file in (whole / 'samples').iterdir():
        other = directory / 'samples' / file.name
        if not other.exists() or other.read_bytes() != file.read_bytes():
            lost += file.stat().st_size
    for kind in ('round', 'evaluation'):
        here, there = (without_times(events(run, kind)) for run in (directory, whole))
        lost += sum(len(json.dumps(event)) for event in there if event not in here)
    return lost


def _bits(array: Any) -> bytes | None:
    return None if array is None else array.tobytes()


@dataclasses.dataclass
class Lab:
    """A run that is disturbed again and again, and its undisturbed twin.

    Attributes:
      folder: for everything that is written.
      initial: run directory of the model to start from.
      make: command line of the run, from its directory, the initial one, and bindings.
      bindings: of every run.
      undisturbed: the run that nobody disturbs, in the folder `whole`; None = it is run when it is first needed.
    """

    folder: pathlib.Path
    initial: pathlib.Path
    make: Callable[..., list[str]]
    bindings: dict[str, Any]
    undisturbed: Started | None = None

    def arguments(self, directory: pathlib.Path, **bindings: Any) -> list[str]:
        """Command line of the run into a directory."""
        return self.make(directory, self.initial, **self.bindings, **bindings)

    @property
    def whole(self) -> pathlib.Path:
        """Directory of the run that nobody disturbs."""
        directory = self.folder / 'whole'
        if self.undisturbed is None:
            self.undisturbed = start(directory, self.arguments(directory))
            assert self.undisturbed.code == 0, self.undisturbed.err
        return directory

    @functools.cached_property
    def pair(self) -> pathlib.Path:
        """Directory of a run in two processes that nobody disturbs."""
        assert many_processes.ends(self.start_pair(self.folder / 'pair'), 3600) == [0, 0]
        return self.folder / 'pair'

    def start_pair(self, directory: pathlib.Path) -> list[subprocess.Popen]:
        """Starts the run in two processes of one device each."""
        settings = self.bindings | {'session__Place__cpu_devices': 1} | many_processes.PATIENCE
        return many_processes.start(directory, self.initial, 2, make=self.make, **settings)

    def seconds(self, number: int) -> float:
        """What round `number` took in the undisturbed run, sampling, vote and training."""
        return events(self.whole, 'round')[number - 1]['seconds']['round']

    def copy(self, directory: pathlib.Path) -> None:
        """A finished run, to be damaged."""
        shutil.copytree(self.whole, directory)


Fault = Callable[[Lab, pathlib.Path], list[Outcome]]
FAULTS: dict[str, Fault] = {}


def fault(name: str) -> Callable[[Fault], Fault]:
    """Enters a function that disturbs the run in a directory, and starts it until it is done; returns how each start
    ended."""

    def enter(function: Fault) -> Fault:
        FAULTS[name] = function
        return function

    return enter


def killed(lab: Lab, directory: pathlib.Path, at: str, after: float = 0.0) -> list[Outcome]:
    """SIGKILL, so many seconds after the first change of the files that matches; then to the end."""
    arguments, _ = lab.arguments(directory), lab.whole
    change = next(change for change in lab.undisturbed.changes if re.search(at, change))
    first = start(directory, arguments, change, after)
    assert first.code == -signal.SIGKILL, (change, first.err)
    return [first, start(directory, arguments)]


# By the clock, from the moment that round 2 is saved and checkpoint 0 is gone: a round is one program, in which
# sampling comes first and training last.
IN_ROUND = r'(rmtree|rmdir) checkpoints/0$'
for what, share in {'sampling': 0.2, 'training': 0.9}.items():
    fault(f'kill -9 while {what}')(
        lambda lab, directory, share=share: killed(lab, directory, IN_ROUND, share * lab.seconds(3))
    )
for what, at in {
    'evaluating': r'open samples/\.?round_0002',
    'writing samples': r'rename samples/\.?round_0002',
    'writing metrics': r'open samples/\.?evaluation_0002',
    'saving': r'rename checkpoints/2\.',
    'making room': IN_ROUND,
    'writing the summary': r'summary',
}.items():
    after = 0.05 if what == 'evaluating' else 0.0
    fault(f'kill -9 while {what}')(lambda lab, directory, at=at, after=after: killed(lab, directory, at, after))


def last_checkpoint(directory: pathlib.Path) -> pathlib.Path:
    """The folder of the last checkpoint."""
    return directory / 'checkpoints' / str(steps(directory)[-1])


def shard(checkpoint: pathlib.Path) -> pathlib.Path:
    """The largest file of a checkpoint."""
    return max(checkpoint.glob('arrays/**/d/*'), key=lambda path: path.stat().st_size)


@fault('corrupt shard')
def corrupt_shard(lab: Lab, directory: pathlib.Path) -> list[Outcome]:
    """One bit of every array file is another."""
    lab.copy(directory)
    for file in last_checkpoint(directory).glob('arrays/**/d/*'):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0x10
        file.write_bytes(data)
    return [tiny_run.run(lab.arguments(directory))]


@fault('half-written checkpoint')
def half_written(lab: Lab, directory: pathlib.Path) -> list[Outcome]:
    """A checkpoint whose files are there, one half of each, as after a loss of power."""
    lab.copy(directory)
    for file in [path for path in last_checkpoint(directory).rglob('*') if path.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return [tiny_run.run(lab.arguments(directory))]


@fault('checkpoint without its arrays')
def without_arrays(lab: Lab, directory: pathlib.Path) -> list[Outcome]:
    """A folder of arrays that is gone."""
    lab.copy(directory)
    shutil.rmtree(last_checkpoint(directory) / 'arrays')
    return [tiny_run.run(lab.arguments(directory))]


@contextlib.contextmanager
def at_event(kind: str, count: int, does: Callable[[], None]) -> Iterator[None]:
    """Does something in this process when a run has written its n-th event of a kind."""
    write, left = Writer.write, [count]

    def told(self: Writer, of: str, **event: Any) -> None:
        write(self, of, **event)
        left[0] -= of == kind
        if of == kind and left[0] == 0:
            does()

    with mock.patch.object(Writer, 'write', told):
        yield


@fault('unreadable bank')
def unreadable_bank(lab: Lab, directory: pathlib.Path) -> list[Outcome]:
    """The bank of questions, here as a file, is cut off in the middle of the run; then it is put back."""
    feed = tiny_run.built(lab.arguments(directory)).value.questions
    rounds = tiny_run.built(lab.arguments(directory)).value.rounds
    lines = [json.dumps({'question': item.question}) for item in feed.bank.take(0, rounds * feed.per_round)]
    bank = directory.with_name(f'{directory.name}.jsonl')
    whole = '\n'.join(lines) + '\n'
    bank.write_text(whole)
    settings = {'data.JsonLines.path': bank, 'data.JsonLines.answer': None}
    settings['unlabelled/feed.Feed.bank'] = '@data.JsonLines()'
    arguments = lab.arguments(directory, **settings)
    with at_event('round', 1, lambda: bank.write_text(whole[: len(whole) // 2])):
        first = tiny_run.run(arguments)
    assert first.code == 2 and bank.name in first.err, first
    bank.write_text(whole)
    return [first, tiny_run.run(arguments)]


@fault('loss that is not a number')
def not_a_number(lab: Lab, directory: pathlib.Path) -> list[Outcome]:
    """The parameters are no numbers in one round, as after a fault of memory: the run stops at the last good round."""
    compile = train._Run.compile

    def poisoned(self: Any, state: Any) -> Any:
        step = compile(self, state)

        def one(state: Any, questions: Any, replay: Any) -> Any:
            if int(state.round) == 1:
                leaves, tree = jax.tree.flatten(state.model)
                bad = [jax.device_put(jnp.full_like(leaf, math.nan), leaf.sharding) for leaf in leaves]
                state = dataclasses.replace(state, model=jax.tree.unflatten(tree, bad))
            return step(state, questions, replay)

        return one

    arguments = lab.arguments(directory)
    with mock.patch.object(train._Run, 'compile', poisoned):
        first = tiny_run.run(arguments)
    assert first.code == 2 and 'the loss of round 2 is nan; the last good state is checkpoint 1' in first.err, first
    return [first, tiny_run.run(arguments)]


@fault('full disk')
def full_disk(lab: Lab, directory: pathlib.Path) -> list[Outcome]:
    """A file system that others fill up while the run is at work, and then make room on again."""
    directory.mkdir()
    size = 2 * sum(path.stat().st_size for path in lab.whole.rglob('*') if path.is_file()) + (80 << 20)
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(directory)], check=False)
    if mounted.returncode:
        raise PermissionError('this user may not mount a file system')
    filler, run = directory / 'filler', directory / 'run'
    fill = lambda: filler.write_bytes(bytes(max(0, shutil.disk_usage(directory).free - 4096)))  # noqa: E731
    try:
        with at_event('evaluation', 2, fill):
            first = tiny_run.run(lab.arguments(run))
        assert first.code == 2 and 'No space left on device' in first.err, first
        filler.unlink()
        outcomes = [first, tiny_run.run(lab.arguments(run))]
        shutil.copytree(run, directory.with_name(f'{directory.name}.copy'))
    finally:
        subprocess.run(['umount', str(directory)], check=True)
    directory.rmdir()
    directory.with_name(f'{directory.name}.copy').rename(directory)
    return outcomes


def of_two(lab: Lab, directory: pathlib.Path, number: signal.Signals) -> list[Outcome]:
    """The last of two processes gets a signal in the middle of the run; the other must end by itself and say why."""
    processes = lab.start_pair(directory)
    while not list(directory.glob('samples/evaluation_0001.*')) and processes[0].poll() is None:
        time.sleep(0.05)
    processes[1].send_signal(number)
    (code,) = many_processes.ends(processes[:1], 3600)
    processes[1].kill()
    said = many_processes.output(directory, 0).read_text()
    assert code == 76 and re.search(r'process 1 .* is (gone|silent)', said), (code, said)
    again = lab.start_pair(directory)
    code_again = max(many_processes.ends(again, 3600))
    return [Outcome(code, '', said), Outcome(code_again, many_processes.output(directory, 0).read_text(), '')]


TWO = {'lost host': signal.SIGKILL, 'stuck host': signal.SIGSTOP}
for what, number in TWO.items():
    fault(what)(lambda lab, directory, number=number: of_two(lab, directory, number))


def report(lab: Lab, names: list[str]) -> int:
    """Injects faults and prints what became of each; how many were not survived."""
    print(f'{"fault":32} {"starts":>6} {"exit codes":>12} {"bytes lost":>10}   what was said', flush=True)
    bad = left_out = 0
    for name in names:
        directory = lab.folder / re.sub(r'\W', '_', name)
        try:
            outcomes = FAULTS[name](lab, directory)
        except PermissionError as error:
            print(f'{name:32} left out: {error}', flush=True)
            left_out += 1
            continue
        except AssertionError as error:
            print(f'{name:32} NOT SURVIVED: {error}', flush=True)
            bad += 1
            continue
        codes = [outcome.code for outcome in outcomes]
        lost = bytes_lost(directory, lab.pair if name in TWO else lab.whole) if codes[-1] == 0 else math.inf
        bad += lost > 0
        print(f'{name:32} {len(codes):6} {" ".join(map(str, codes)):>12} {lost:>10}   {told(outcomes)}', flush=True)
    injected = len(names) - left_out
    print(f'{injected} faults injected, {injected - bad} survived, {left_out} left out')
    return bad


def told(outcomes: list[Outcome]) -> str:
    """The line in which a user reads of the fault."""
    lines = [line for outcome in outcomes for line in (outcome.err + '\n' + outcome.out).splitlines()]
    found = [line for line in lines if re.search('is damaged|the run ends', line)]
    found += [line for line in reversed(lines) if 'Error: ' in line]  # the last is for the user
    return re.sub(r'^\[.*?\] ', '', found[0])[:160] if found else '(nothing: killed)'


def large(directory: pathlib.Path, initial: pathlib.Path, **bindings: Any) -> list[str]:
    """The quickstart at its full size."""
    places = {'RUN_DIR': directory, 'INITIAL': initial}
    settings = places | {name.replace('__', '.'): value for name, value in bindings.items()}
    lines = [f'--gin.{name}={value}' for name, value in settings.items()]
    return ['improve', '--gin_file=gin/runs/quickstart.gin', *lines]


def main() -> int:
    """Does what the arguments ask for, in a folder that is thrown away."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--large', action='store_true')
    parser.add_argument('--only', default='')
    asked = parser.parse_args()
    jax.config.update('jax_platforms', 'cpu')
    settle_environment()  # as in the processes that are started
    logging.getLogger('absl').setLevel(logging.CRITICAL)  # what Orbax thinks of a full disk is pages long
    with tempfile.TemporaryDirectory(prefix='faults_') as folder:
        initial = pathlib.Path(folder) / 'initial'
        command = ['pretrain', '--gin_file=gin/runs/quickstart_pretrain.gin', f'--gin.RUN_DIR={initial}']
        started = start(initial, command if asked.large else tiny_run.pretrain_arguments(initial, **SETTINGS))
        assert started.code == 0, started.err
        devices = {} if asked.large else {'session__Place__cpu_devices': 1}
        bindings = SETTINGS | {'train__Improve__rounds': ROUNDS} | devices
        lab = Lab(pathlib.Path(folder), initial, large if asked.large else tiny_run.improve_arguments, bindings)
        # As many devices here as the runs have, before anything else sets jax to work.
        tiny_run.built(lab.arguments(lab.folder / 'whole')).value.place.devices()
        return min(1, report(lab, [name for name in FAULTS if asked.only in name]))


if __name__ == '__main__':
    sys.exit(main())
