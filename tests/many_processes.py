"""The tiny run in several processes of this machine, each with its share of eight CPU devices, beside one process.

python -m tests.many_processes --processes=4                 equal to the run in one process?
python -m tests.many_processes --processes=4 --fault=kill    what the others do when the last process is killed
                                             --fault=stop    ... is stopped, as a host that hangs
                                             --fault=term    ... gets SIGTERM; and the run that goes on
                                             --fault=absent  ... never comes
"""

import argparse
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from tests import tiny_run
from tests.stored import stored
from tests.tiny_run import arrays, steps

DEVICES = 8
SECONDS = 600.0  # for a run
SETTINGS = {'session__Place__tensorboard': False}  # its package is slow to import
# Errors are to come while somebody looks on.
PATIENCE = {'session__Place__patience': '@processes.Patience()', 'processes__Patience__silence': 20.0}
FAULTS = {'kill': signal.SIGKILL, 'stop': signal.SIGSTOP, 'term': signal.SIGTERM, 'absent': None}


def start(
    directory: pathlib.Path,
    initial: pathlib.Path,
    count: int,
    first: dict[str, str] | None = None,
    each: dict[str, str] | None = None,
    come: int | None = None,
    make: Callable[..., list[str]] = tiny_run.improve_arguments,
    module: str = 't5x_selfimprove',
    **settings: object,
) -> list[subprocess.Popen]:
    """Starts the processes of a run; their outputs go to files beside the directory.

    Args:
      directory: of the run.
      initial: the model's.
      count: of processes.
      first: more of the environment of process 0.
      each: more of the environment of all.
      come: how many of them are started.
      make: command line of the run, from its directory, the initial one, and bindings.
      module: that is run.
      **settings: bindings.
    """
    with socket.create_server(('127.0.0.1', 0)) as server:
        coordinator = f'127.0.0.1:{server.getsockname()[1]}'
    bindings = {**SETTINGS, 'session__Place__cpu_devices': DEVICES // count, **settings}
    arguments = make(directory, initial, **bindings)
    several = [f'--coordinator={coordinator}', f'--processes={count}'] if count > 1 else []
    processes = []
    for number in range(count if come is None else come):
        own = [f'--process={number}'] if count > 1 else []
        with output(directory, number).open('w') as file:
            processes.append(
                subprocess.Popen(
                    [sys.executable, '-m', module, *arguments, *several, *own],
                    env=tiny_run.environment() | (each or {}) | ((first or {}) if number == 0 else {}),
                    cwd=tiny_run.ROOT,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def ends(processes: list[subprocess.Popen], seconds: float = SECONDS) -> list[int]:
    """The exit codes; kills what has not ended by then."""
    last = time.monotonic() + seconds
    try:
        return [process.wait(max(0.0, last - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()


def output(directory: pathlib.Path, number: int) -> pathlib.Path:
    """What a process printed."""
    return directory.with_name(f'{directory.name}.process_{number}.out')


def paths(directory: pathlib.Path, file: str) -> list[tuple[str, list[str]]]:
    """The questions of a file of samples, each with the texts of its paths."""
    found = stored(directory / 'samples' / file)
    return [(question['question'], [path['text'] for path in question['paths']]) for question in found]


def largest_difference(one: pathlib.Path, other: pathlib.Path, step: int) -> float:
    """Of any number in the checkpoints of two runs."""
    here, there = arrays(one, step), arrays(other, step)
    assert set(here) == set(there)
    return max(float(np.max(np.abs(np.float64(here[name]) - np.float64(there[name])))) for name in here)


def compare(one: pathlib.Path, other: pathlib.Path) -> None:
    """Prints how far two runs are equal."""
    for step in steps(one):
        print(f'checkpoint {step}: largest difference {largest_difference(one, other, step):.2g}')
    for file in sorted(path.name for path in (one / 'samples').iterdir()):
        print(f'{file}: {"the same samples" if paths(one, file) == paths(other, file) else "OTHER SAMPLES"}')


def main() -> None:
    """Runs what the arguments ask for, in a folder that is thrown away."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--fault', choices=FAULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='processes_') as folder:
        place = pathlib.Path(folder)
        initial, one, several = place / 'initial', place / 'one', place / 'several'
        tiny_run.done(tiny_run.pretrain_arguments(initial, **SETTINGS))
        if arguments.fault:
            meet(several, initial, arguments.processes, arguments.fault)
            return
        for directory, count in ((one, 1), (several, arguments.processes)):
            began = time.monotonic()
            codes = ends(start(directory, initial, count))
            print(f'{count} processes: exit codes {codes}, {time.monotonic() - began:.0f} s')
        compare(one, several)


def meet(directory: pathlib.Path, initial: pathlib.Path, count: int, fault: str) -> None:
    """Shows what a fault of the last process does, once the first evaluation is written."""
    come = count - (fault == 'absent')
    patience = PATIENCE | ({'processes__Patience__start': 30.0} if fault == 'absent' else {})
    processes = start(directory, initial, count, come=come, train__Improve__rounds=20, **patience)
    while fault != 'absent' and not (directory / 'samples' / 'evaluation_0001.parquet').exists():
        time.sleep(0.05)
    began = time.monotonic()
    if fault != 'absent':
        processes[-1].send_signal(FAULTS[fault])
    others = ends(processes[: come - (fault in ('kill', 'stop'))])
    print(f'{fault}: exit codes {others} after {time.monotonic() - began:.1f} s, checkpoints {steps(directory)}')
    for process in processes:
        process.kill()
    for number in range(come):
        print(f'--- process {number}: {output(directory, number).read_text().splitlines()[-3:]}')
    if fault == 'term':
        last = steps(directory)[-1]
        again = start(directory, initial, count, train__Improve__rounds=last + 1, **patience)
        print(f'again: exit codes {ends(again)}, checkpoints {steps(directory)}')


if __name__ == '__main__':
    main()
