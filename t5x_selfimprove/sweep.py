"""A sweep: one command at several settings and seeds, several processes at a time, with a table and a figure.

    runs/sweeps/paths/start-0/      what every point of seed 0 starts from
    runs/sweeps/paths/16-0/         the run of point '16', seed 0
    runs/sweeps/paths/16-0.log      what it printed
    runs/sweeps/paths/sweep.json    every point with its measures, or why it failed
    runs/sweeps/paths/sweep.png     the figure

Given again, the sweep makes what is missing: finished points are kept, killed and failed ones go on where they were.
Sweeps may share their runs (`runs`), one sweep at a time: what another made by the same command is not made again.
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

import numpy as np

from t5x_selfimprove import files
from t5x_selfimprove.display import Display

SHOWN = 12  # last lines of a failed point's output
ONE_THREAD = '--xla_cpu_multi_thread_eigen=false'
WHEN = ('before', 'after', 'change')  # the change of each seed is its own: seeds start from different models
Estimate = tuple[float, float]  # mean over seeds, half of its 95 % interval


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One command at several points, each with several seeds.

    A point is a label and what is set there: 'part.Class.field=value', as on the command line, or the path of a gin
    file; '{label}' stands for the run directory of that label and the same seed. SEED, RUN_DIR and, where something
    comes first and the point does not say it, INITIAL are set by the sweep. A measure is a path into what a
    summary tells after each evaluation: 'greedy_accuracy', 'maj_at_k/8', 'reliability/7/accuracy'; with the name of a
    suite before it, of that suite: 'svamp/greedy_accuracy'.

    Measures are drawn against the points. Those of a `curve` are drawn against labels of their own, a line a point.

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
    stages: tuple[tuple[str, str, tuple[str, ...]], ...] = ()  # (label, command, settings) of what points need besides
    bindings: tuple[str, ...] = ()  # of every point and of what comes first
    measures: tuple[str, ...] = ('greedy_accuracy', 'majority_accuracy')
    curve: tuple[tuple[str, str], ...] = ()  # (label, measure), in the place of `measures`
    runs: str | None = None  # directory of the runs; None = `directory`
    processes: int | None = None  # at a time; None = one a core

    def __post_init__(self):
        labels = [label for label, *_ in (*self.points, *self.stages)]
        if not self.points or not self.seeds or not self.asked:
            raise ValueError('a sweep needs points, seeds and measures')
        if len(set(labels)) < len(labels) or not all(re.fullmatch(r'[\w.+-]+', label) for label in labels):
            raise ValueError(f'labels of points must differ, and be of letters, digits and . + - _; they are {labels}')
        if self.processes is not None and self.processes < 1:
            raise ValueError(f'processes must be at least 1; it is {self.processes}')

    @property
    def asked(self) -> tuple[str, ...]:
        """All measures."""
        return tuple(measure for _, measure in self.curve) or self.measures

    def run(self, config: str) -> dict[str, Any]:
        """Makes what is missing; prints the table and draws the figure.

        Raises:
          ConfigError, ValueError, OSError: a point that cannot be built, before anything starts.
          RuntimeError: points failed; all others are there.
        """
        display, directory = Display(), Path(self.directory)
        self.check()
        files.write_text(directory / 'config.gin', config)
        stages = [label for label in self.commands if label not in dict(self.points)]
        for label in stages:
            self.make([(label, seed, self.words(label, seed)) for seed in self.seeds], display)
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
        for label in self.commands:
            asked = config.parse_arguments([word for word in self.words(label, seed) if not self.to_be_made(word)])
            config.build(config.ROOTS[asked.command], asked.files, asked.bindings)

    def to_be_made(self, word: str) -> bool:
        """Whether a word is a gin file that a stage is yet to write."""
        path = Path(word.removeprefix('--gin_file='))
        places = [self.place(label, seed) for label, *_ in self.stages for seed in self.seeds]
        return word.startswith('--gin_file=') and path.parent in places and not path.exists()

    def place(self, label: str, seed: int) -> Path:
        """The run directory of a point."""
        return Path(self.runs or self.directory, f'{label}-{seed}')

    @property
    def commands(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Command and settings of every label."""
        files = {'pretrain': self.first, 'improve': self.files}
        told = []
        if self.first and not all(_starts_elsewhere(said) for _, said in self.points):
            told = [('start', 'pretrain', ())]
        told += [*self.stages, *((label, 'improve', said) for label, said in self.points)]
        return {label: (command, (*files.get(command, ()), *self.bindings, *said)) for label, command, said in told}

    def words(self, label: str, seed: int) -> list[str]:
        """The command of a point, of a stage or of what comes first ('start')."""
        command, said = self.commands[label]
        for other in self.commands:
            said = tuple(one.replace(f'{{{other}}}', str(self.place(other, seed))) for one in said)
        given = [f'SEED={seed}', f'RUN_DIR={self.place(label, seed)}']
        if self.first and command != 'pretrain' and not _starts_elsewhere(said):
            given.append(f'INITIAL={self.place("start", seed)}')
        return [command, *settings((*said, *given))]

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
                summary = json.loads((place / 'summary.json').read_text()) if done else None
                seeds[str(seed)] = {
                    'status': 'done' if done else 'failed',
                    'measures': {name: ends(summary, name) for name in self.asked} if done else None,
                    'training_tokens': sum(row['training_tokens'] for row in summary['rounds']) if done else None,
                }
            points[label] = seeds
        return {'title': self.title, 'axis': self.axis, 'points': points}

    def panes(self, found: dict[str, Any]) -> tuple[list[str], dict[str, dict[str, list[Estimate | None]]]]:
        """What there is to be shown: the labels; by pane and by line, an estimate for each label, None where there is
        nothing to estimate it from."""

        def estimate(label: str, measure: str, when: int) -> Estimate | None:
            there = [one['measures'][measure] for one in found['points'][label].values() if one['measures']]
            there = [pair if None in pair else (*pair, pair[1] - pair[0]) for pair in there]
            return mean_of([values[when] for values in there if len(values) > when and values[when] is not None])

        labels = list(found['points'])
        if not self.curve:
            lines = lambda name: {  # noqa: E731
                when: [estimate(label, name, number) for label in labels] for number, when in enumerate(WHEN)
            }
            return labels, {name.replace('_', ' '): lines(name) for name in self.measures}
        curves = {}
        for label, seeds in found['points'].items():
            there = sum(one['measures'] is not None for one in seeds.values())
            name = f'{label}, ' * (len(labels) > 1) + f'({there} of {len(seeds)} seeds) ' * (there < len(seeds))
            for number, when in enumerate(WHEN):
                curves[name + when] = [estimate(label, measure, number) for _, measure in self.curve]
        return [label for label, _ in self.curve], {'accuracy': curves}

    def table(self, found: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
        """Title, columns and rows: a label a row; per cent, mean over seeds ± half of the 95 % interval."""
        labels, panes = self.panes(found)
        columns, rows = [self.axis], [[label] for label in labels]
        if not self.curve:
            columns += ['seeds', 'training tokens']
            for row, seeds in zip(rows, found['points'].values(), strict=True):
                tokens = [one['training_tokens'] for one in seeds.values() if one['training_tokens'] is not None]
                failed = len(seeds) - len(tokens)
                row += [f'{len(tokens)}' + f' ({failed} failed)' * bool(failed)]
                row += [f'{statistics.mean(tokens):,.0f}' if tokens else '-']
        for pane, lines in panes.items():
            for line, estimates in lines.items():
                columns.append(f'{pane}, {line}')
                for row, made in zip(rows, estimates, strict=True):
                    sign = '+' * line.endswith(WHEN[2])
                    row.append('-' if made is None else f'{100 * made[0]:{sign}.1f} ± {100 * made[1]:.1f}')
        return f'{self.title}, per cent, mean over seeds ± 95 % interval', columns, rows

    def draw(self, found: dict[str, Any]) -> Path:
        """Draws every pane. Raises ImportError without matplotlib."""
        import matplotlib

        matplotlib.use('Agg')
        from matplotlib import pyplot

        labels, panes = self.panes(found)
        numeric = all(re.fullmatch(r'\d+(\.\d+)?', label) for label in labels)
        places = [float(label) for label in labels] if numeric else list(range(len(labels)))
        figure, axes = pyplot.subplots(1, len(panes), figsize=(5.2 * len(panes), 4), squeeze=False)
        for pane, (name, lines) in zip(axes[0], panes.items(), strict=True):
            for line, estimates in lines.items():
                made = [(x, *one) for x, one in zip(places, estimates, strict=True) if one is not None]
                if made and not line.endswith(WHEN[2]):
                    x, mean, half = np.array(made).T
                    style = '--' if line.endswith(WHEN[0]) else '-'
                    pane.errorbar(x, 100 * mean, yerr=100 * half, fmt='o' + style, capsize=3, label=line)
                    pane.legend()
            if not numeric:
                pane.set_xticks(places, labels, rotation=20, ha='right')
            pane.set(xlabel=self.axis, ylabel=f'{name}, per cent')
            bottom, top = pane.get_ylim()
            pane.set_ylim(max(bottom, -3), min(top, 103))  # intervals may go beyond what an accuracy can be
            pane.grid(alpha=0.3)
        figure.suptitle(f'{self.title} ({len(self.seeds)} seeds, 95 % intervals)')
        figure.tight_layout()
        path = Path(self.directory, 'sweep.png')
        with files.written(path) as file:
            figure.savefig(file, format='png', dpi=150)
        pyplot.close(figure)
        return path


def _starts_elsewhere(said: Sequence[str]) -> bool:
    return any(one.startswith('INITIAL=') for one in said)


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
        # Seeds share their compiled programs.
        environment = {'JAX_COMPILATION_CACHE_DIR': str(place.parent.resolve() / 'compiled'), **os.environ}
        environment['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {ONE_THREAD}'.strip()
        with log.open('w', encoding='utf-8') as out:
            command = [sys.executable, '-m', 't5x_selfimprove', *words]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
            if hasattr(os, 'sched_setaffinity'):
                os.sched_setaffinity(process.pid, {core})  # its threads will inherit it
            code = process.wait()
    finally:
        cores.put(core)
    how = {'status': 'failed' if code else 'done', 'words': words, 'code': code, 'seconds': time.perf_counter() - start}
    files.write_json(state, how)
    return how | {'said': log.read_text('utf-8', 'replace').splitlines()[-SHOWN:]}


def ends(summary: dict[str, Any], measure: str) -> tuple[float | None, float | None]:
    """A measure of the first and of the last evaluation that a summary tells of.

    Raises:
      ValueError: it was not measured.
    """
    first, *rest = measure.split('/')
    suite = summary['suites'].get(first) if rest else None
    rows, parts = (suite['rounds'], rest) if suite else (summary['rounds'], [first, *rest])
    measured = [row for row in rows if row.get(parts[0]) is not None]
    if not measured:
        there = sorted(name for name, value in rows[0].items() if isinstance(value, dict | list))
        raise ValueError(f'{measure} was not measured; there are {", ".join(there)}')
    return value_of(measured[0], parts), value_of(measured[-1], parts)


def value_of(row: Any, parts: Sequence[str]) -> float | None:
    """The number at a path. Raises ValueError where there is none."""
    for part in parts:
        try:
            row = row[int(part)] if isinstance(row, list) else row[part]
        except (KeyError, IndexError, ValueError) as error:
            there = range(len(row)) if isinstance(row, list) else row
            raise ValueError(
                f'there is no {part} of {"/".join(parts)}; there are {", ".join(map(str, there))}'
            ) from error
    return row['value'] if isinstance(row, dict) else row


def mean_of(values: Sequence[float]) -> tuple[float, float] | None:
    """(mean, half of the 95 % interval by Student's t); the half is not a number of a single value. None of none."""
    if not values:
        return None
    if len(values) == 1:
        return values[0], math.nan
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(half)
