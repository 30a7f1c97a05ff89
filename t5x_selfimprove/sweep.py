"""A sweep: one command at several settings and seeds, several processes at a time, with a table and a figure.

    runs/sweeps/paths/start-0/      what every point of seed 0 starts from
    runs/sweeps/paths/16-0/         the run of point '16', seed 0
    runs/sweeps/paths/16-0.log      what it printed
    runs/sweeps/paths/sweep.json    every point with its measures, or why it failed
    runs/sweeps/paths/sweep.png     the figure

Given again, the sweep makes what is missing: finished points are kept, killed and failed ones go on where they were.
"""

import concurrent.futures
import dataclasses
import json
import math
import os
import queue
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5x_selfimprove import files
from t5x_selfimprove.display import Display

SHOWN = 12  # last lines of a failed point's output
ONE_THREAD = '--xla_cpu_multi_thread_eigen=false'


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One command at several points, each with several seeds.

    A point is a label and what is set there: 'part.Class.field=value', as on the command line, or the path of a gin
    file. SEED, RUN_DIR and, where something comes first, INITIAL are set by the sweep.

    Raises:
      ValueError: no points or seeds, a label that comes twice or is no file name.
    """

    directory: str
    title: str
    axis: str  # what the points are
    files: tuple[str, ...]  # gin files of every point
    points: tuple[tuple[str, tuple[str, ...]], ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    first: tuple[str, ...] = ()  # gin files of a pre-training that the points of a seed start from; () = none
    bindings: tuple[str, ...] = ()  # of every point and of what comes first
    measures: tuple[str, ...] = ('greedy_accuracy', 'majority_accuracy')
    processes: int | None = None  # at a time; None = one a core

    def __post_init__(self):
        labels = [label for label, _ in self.points]
        if not labels or not self.seeds or not self.measures:
            raise ValueError('a sweep needs points, seeds and measures')
        if len(set(labels)) < len(labels) or not all(re.fullmatch(r'[\w.+-]+', label) for label in labels):
            raise ValueError(f'labels of points must differ, and be of letters, digits and . + - _; they are {labels}')
        if self.processes is not None and self.processes < 1:
            raise ValueError(f'processes must be at least 1; it is {self.processes}')

    def run(self, config: str) -> dict[str, Any]:
        """Makes what is missing; prints the table and draws the figure.

        Raises:
          ConfigError, ValueError, OSError: a point that cannot be built, before anything starts.
          RuntimeError: points failed; all others are there.
        """
        display, directory = Display(), Path(self.directory)
        self.check()
        files.write_text(directory / 'config.gin', config)
        starts = [('start', seed, self.start_words(seed)) for seed in self.seeds if self.first]
        self.make(starts, display)
        points = [(label, seed, self.words(label, seed)) for label, _ in self.points for seed in self.seeds]
        failed = self.make(points, display)
        found = self.gather()
        files.write_json(directory / 'sweep.json', found)
        display.table(*self.table(found))
        try:
            display.say(f'figure: {self.draw(found)}')
        except ImportError:
            display.say('no figure: pip install matplotlib, and give the command again')
        if failed:
            raise RuntimeError(
                f'{len(failed)} of {len(points)} points failed ({", ".join(failed)}); the others are in the table. The '
                'same command tries them again'
            )
        return found

    def check(self) -> None:
        """Builds every point, and starts none. Raises ConfigError, ValueError or OSError as the command would."""
        from t5x_selfimprove import config

        seed = self.seeds[0]
        commands = [self.words(label, seed) for label, _ in self.points]
        if self.first:
            commands.append(self.start_words(seed))
        for words in commands:
            asked = config.parse_arguments(words)
            config.build(config.ROOTS[asked.command], asked.files, asked.bindings)

    def place(self, label: str, seed: int) -> Path:
        """The run directory of a point."""
        return Path(self.directory, f'{label}-{seed}')

    def start_words(self, seed: int) -> list[str]:
        """The command of what comes first."""
        return ['pretrain', *settings((*self.first, *self.bindings)), *self.common('start', seed)]

    def words(self, label: str, seed: int) -> list[str]:
        """The command of a point."""
        said = settings((*self.files, *self.bindings, *dict(self.points)[label]))
        initial = [f'--gin.INITIAL={self.place("start", seed)}'] if self.first else []
        return ['improve', *said, *self.common(label, seed), *initial]

    def common(self, label: str, seed: int) -> list[str]:
        """What the sweep sets in every command."""
        return [f'--gin.SEED={seed}', f'--gin.RUN_DIR={self.place(label, seed)}']

    def make(self, runs: Sequence[tuple[str, int, list[str]]], display: Display) -> list[str]:
        """Runs commands side by side, those that are done already left out; returns the names of those that failed."""
        cores: queue.SimpleQueue[int] = queue.SimpleQueue()
        there = (
            sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else list(range(os.cpu_count() or 1))
        )
        count = self.processes or len(there)
        for number in range(count):
            cores.put(there[number % len(there)])
        failed = []
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            waiting = {pool.submit(make_run, self.place(label, seed), words, cores): f'{label}-{seed}'
                       for label, seed, words in runs}  # fmt: skip
            for number, done in enumerate(concurrent.futures.as_completed(waiting), 1):
                name, how = waiting[done], done.result()
                display.say(f'{number} of {len(runs)}: {name} {how["status"]}, {how["seconds"]:.0f} s')
                if how['status'] == 'failed':
                    failed.append(name)
                    display.say('\n'.join(f'    {line}' for line in how['said']))
        return sorted(failed)

    def gather(self) -> dict[str, Any]:
        """All measures, before the first round and after the last, of every point and seed; None of failed ones."""
        points = {}
        for label, _ in self.points:
            seeds = {}
            for seed in self.seeds:
                place = self.place(label, seed)
                state = json.loads(place.with_name(f'{place.name}.json').read_text())
                done = state['status'] == 'done' and state['words'] == self.words(label, seed)
                rounds = json.loads((place / 'summary.json').read_text())['rounds'] if done else []
                measured = {name: ends(rounds, name) for name in self.measures} if done else None
                seeds[str(seed)] = {'status': 'done' if done else 'failed', 'measures': measured}
            points[label] = seeds
        return {'title': self.title, 'axis': self.axis, 'points': points}

    def estimates(self, found: dict[str, Any], label: str, measure: str, when: int) -> tuple[float, float] | None:
        """(mean, half of the 95 % interval) over the seeds of a point that are there, before (0) or after (1)."""
        seeds = found['points'][label].values()
        return mean_of([one['measures'][measure][when] for one in seeds if one['measures'] is not None])

    def table(self, found: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
        """Title, columns and rows: a point a row; per cent, mean over seeds ± half of the 95 % interval."""
        columns, rows = [self.axis, 'seeds'], []
        for measure in self.measures:
            columns += [f'{measure.replace("_", " ")}, before', 'after']
        for label, seeds in found['points'].items():
            there = sum(one['measures'] is not None for one in seeds.values())
            row = [label, f'{there}' if there == len(seeds) else f'{there} ({len(seeds) - there} failed)']
            for measure in self.measures:
                for when in (0, 1):
                    made = self.estimates(found, label, measure, when)
                    row.append('-' if made is None else f'{100 * made[0]:.1f} ± {100 * made[1]:.1f}')
            rows.append(row)
        return f'{self.title}, per cent, mean over seeds ± 95 % interval', columns, rows

    def draw(self, found: dict[str, Any]) -> Path:
        """Draws every measure, before and after, against the points. Raises ImportError without matplotlib."""
        import matplotlib

        matplotlib.use('Agg')
        from matplotlib import pyplot

        labels = list(found['points'])
        numeric = all(re.fullmatch(r'\d+(\.\d+)?', label) for label in labels)
        xs = [float(label) for label in labels] if numeric else list(range(len(labels)))
        figure, panes = pyplot.subplots(1, len(self.measures), figsize=(5.2 * len(self.measures), 4), squeeze=False)
        for pane, measure in zip(panes[0], self.measures, strict=True):
            for when, name, style in ((0, 'before', '--'), (1, 'after', '-')):
                made = [(x, self.estimates(found, label, measure, when)) for x, label in zip(xs, labels, strict=True)]
                made = [(x, 100 * value[0], 100 * value[1]) for x, value in made if value is not None]
                if made:
                    x, mean, half = zip(*made, strict=True)
                    pane.errorbar(x, mean, yerr=half, fmt='o' + style, capsize=3, label=name)
            if not numeric:
                pane.set_xticks(xs, labels, rotation=20, ha='right')
            pane.set(xlabel=self.axis, ylabel=f'{measure.replace("_", " ")}, per cent')
            pane.legend()
            pane.grid(alpha=0.3)
        figure.suptitle(f'{self.title} ({len(self.seeds)} seeds, 95 % intervals)')
        figure.tight_layout()
        path = Path(self.directory, 'sweep.png')
        with files.written(path) as file:
            figure.savefig(file, format='png', dpi=150)
        pyplot.close(figure)
        return path


def settings(said: Sequence[str]) -> list[str]:
    """Gin files and bindings as flags."""
    return [f'--gin_file={one}' if one.endswith('.gin') and '=' not in one else f'--gin.{one}' for one in said]


def make_run(place: Path, words: list[str], cores: 'queue.SimpleQueue[int]') -> dict[str, Any]:
    """Runs one command in a process of its own, on one core, unless it is done; what became of it is written beside it.

    Returns:
      status ('done', 'kept' where it was done before, or 'failed'), seconds, and the last lines said where it failed.
    """
    state, log = (place.with_name(f'{place.name}.{kind}') for kind in ('json', 'log'))
    before = json.loads(state.read_text()) if state.exists() else {'status': 'new', 'words': words}
    if before['words'] != words and place.exists():
        said = [f'{place} was made by another command; remove it, or give the sweep another directory']
        return {'status': 'failed', 'seconds': 0.0, 'said': said}
    if before['status'] == 'done':
        return {**before, 'status': 'kept'}
    core, start = cores.get(), time.perf_counter()
    try:
        files.write_json(state, {'status': 'started', 'words': words})
        flags = f'{os.environ.get("XLA_FLAGS", "")} {ONE_THREAD}'.strip()
        with log.open('w', encoding='utf-8') as out:
            command = [sys.executable, '-m', 't5x_selfimprove', *words]
            process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, 'XLA_FLAGS': flags})
            if hasattr(os, 'sched_setaffinity'):
                os.sched_setaffinity(process.pid, {core})  # its threads will inherit it
            code = process.wait()
    finally:
        cores.put(core)
    how = {'status': 'failed' if code else 'done', 'words': words, 'code': code, 'seconds': time.perf_counter() - start}
    files.write_json(state, how)
    return how | {'said': log.read_text('utf-8', 'replace').splitlines()[-SHOWN:]}


def ends(rounds: Sequence[dict[str, Any]], measure: str) -> tuple[float, float]:
    """A measure of the first and of the last evaluation; 'maj_at_k/8' is a part of one.

    Raises:
      ValueError: it was not measured.
    """
    name, _, part = measure.partition('/')
    values = [row[name][part] if part else row[name] for row in rounds if row.get(name) is not None]
    if not values:
        there = sorted(name for name, value in rounds[0].items() if isinstance(value, dict))
        raise ValueError(f'{measure} was not measured; there are {", ".join(there)}')
    first, last = (value['value'] if isinstance(value, dict) else value for value in (values[0], values[-1]))
    return first, last


def mean_of(values: Sequence[float]) -> tuple[float, float] | None:
    """(mean, half of the 95 % interval by Student's t); the half is not a number of a single value. None of none."""
    if not values:
        return None
    if len(values) == 1:
        return values[0], math.nan
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(half)
