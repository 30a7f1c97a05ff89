"""Arms of a benchmark: processes of their own on the same cores, which take turns, repeat by repeat.

A machine that is busy for a while then slows all of them alike, and no arm's memory, threads or flags reach another's.
This file needs nothing but Python: arms run in interpreters that have other packages.
"""

import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

# Every thread pool of the arms that is not asked for its size in the program itself.
THREADS = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')
YNNPACK_PRODUCTS = ',LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'  # behind main.CPU_FLAG, which leaves XLA's products to Eigen


class LeftOut(Exception):
    """An arm cannot run here; says why."""


class Ready(Protocol):
    """An arm that is ready to be measured."""

    facts: dict[str, Any]  # what is known before the first turn

    def __call__(self) -> dict[str, Any]:
        """One turn: does the work once and says what came of it, JSON types alone."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """A process: an interpreter, a module with `--work NAME`, and what its environment has besides."""

    name: str
    module: str
    python: str = sys.executable
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Sequence[str] = ()

    @property
    def command(self) -> list[str]:
        """What is run."""
        return [self.python, '-m', self.module, '--work', self.name, *self.options]

    def start(self, cores: Sequence[int] | None) -> subprocess.Popen:
        """The process, on the given cores, or on all."""
        environment = {**os.environ, **self.environment}
        if cores is not None:
            environment |= dict.fromkeys(THREADS, str(len(cores)))
        pin = None if cores is None else lambda: os.sched_setaffinity(0, cores)
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
        return subprocess.Popen(self.command, env=environment, text=True, preexec_fn=pin, **pipes)


def peak_memory() -> int:
    """Bytes of the largest resident set of this process so far (that of its children is not counted)."""
    status = pathlib.Path('/proc/self/status')
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM:'))
    return int(line.split()[1]) * 1024


def work(make: Callable[[], Ready], calls: int = 1) -> None:
    """The body of an arm's process: makes it ready, then takes a turn for every line it reads.

    Of the `calls` of a turn the last is measured. The first has to take its memory anew from a machine that may have
    lent it elsewhere while other arms had their turns.
    """
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)  # what packages print is not for the one who reads the answers
    started = time.perf_counter()
    try:
        ready = make()
    except (LeftOut, ImportError) as error:
        print(json.dumps({'left out': f'{type(error).__name__}: {error}'.removeprefix('LeftOut: ')}), file=answers)
        return
    print(json.dumps({**ready.facts, 'ready after seconds': time.perf_counter() - started}), file=answers)
    for _ in sys.stdin:
        for _ in range(calls - 1):
            ready()
        cpu, start = time.process_time(), time.perf_counter()
        found = ready()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        facts = {'seconds': seconds, 'cpu_seconds': cpu_seconds, 'peak_memory': peak_memory(), **found}
        print(json.dumps(facts), file=answers)


def take_turns(arms: Sequence[Arm], cores: Sequence[int] | None, repeats: int) -> dict[str, dict[str, Any]]:
    """Runs the arms in turn.

    Returns:
      For each arm what it knew before its first turn and its `repeats`, or why it is `left out`.
    """
    found, running = {}, {}
    try:
        for arm in arms:  # one after the other, so that no two compile or warm up at once
            process = arm.start(cores)
            found[arm.name] = _answer(arm, process)
            if 'left out' in found[arm.name]:
                _end(process)
                print(f'left out: {arm.name}: {found[arm.name]["left out"]}', file=sys.stderr, flush=True)
                continue
            running[arm.name] = process
            found[arm.name]['repeats'] = []
            print(f'ready: {arm.name}, {found[arm.name]["ready after seconds"]:.0f} s', file=sys.stderr, flush=True)
        for repeat in range(repeats):
            for arm in arms:
                if arm.name not in running:
                    continue
                process = running[arm.name]
                process.stdin.write('\n')
                process.stdin.flush()
                facts = _answer(arm, process)
                if 'left out' in facts:
                    found[arm.name] = facts
                    _end(running.pop(arm.name))
                    continue
                found[arm.name]['repeats'].append(facts)
                print(f'{repeat + 1}: {arm.name}, {facts["seconds"]:.2f} s', file=sys.stderr, flush=True)
    finally:
        for process in running.values():
            _end(process)
    return found


def _answer(arm: Arm, process: subprocess.Popen) -> dict[str, Any]:
    line = process.stdout.readline()
    if not line:
        return {'left out': f'its process ended with status {process.wait()}; see above what it wrote'}
    return json.loads(line)


def _end(process: subprocess.Popen) -> None:
    process.stdin.close()
    process.wait()
    process.stdout.close()


def middle(facts: Mapping[str, Any], field: str) -> float:
    """The median of a field over the repeats of an arm."""
    return statistics.median(repeat[field] for repeat in facts['repeats'])


def spread(facts: Mapping[str, Any], field: str) -> tuple[float, float]:
    """The least and the largest of a field over the repeats of an arm."""
    values = [repeat[field] for repeat in facts['repeats']]
    return min(values), max(values)


def cpu_share(facts: Mapping[str, Any]) -> float:
    """CPU seconds by wall seconds, the median of the repeats; well below the number of cores: the machine was busy."""
    return statistics.median(repeat['cpu_seconds'] / repeat['seconds'] for repeat in facts['repeats'])
