"""What a run shows while it runs: a live line of phase, time and rate on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from t5x_selfimprove import processes


class _ExpectedBar(ProgressColumn):
    """A bar of time elapsed against time expected; it pulses while nothing is known yet."""

    max_refresh = 0.2

    def render(self, task: Task) -> ProgressBar:
        expected = task.fields['expected']
        elapsed = task.elapsed or 0.0
        return ProgressBar(total=expected, completed=min(elapsed, expected or 0), width=24, pulse=expected is None)


class _Times(ProgressColumn):
    """Elapsed time of the phase, and the time left in phase and run by what earlier phases took."""

    max_refresh = 0.2

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        text = f'{elapsed:4.0f} s'
        expected, after = task.fields['expected'], task.fields['after']
        if expected is not None:
            text += f', about {max(0.0, expected - elapsed):.0f} s left'
            if after is not None:
                text += f' (run: {clock(max(0.0, expected - elapsed) + after)})'
        return Text(text)


class Display:
    """Progress of a run. On a terminal the phase in progress is a live line; everything said stays above it."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.seconds: dict[str, float] = {}  # what each kind of phase took the last time
        self._start = time.perf_counter()

    def say(self, text: str) -> None:
        """Prints a line; on a plain output with the time since the start before it."""
        prefix = '' if self.console.is_terminal else f'[{time.perf_counter() - self._start:7.1f} s] '
        self.console.print(prefix + text, markup=False, emoji=False)

    @contextlib.contextmanager
    def phase(self, kind: str, text: str, after: float | None = None) -> Iterator[None]:
        """Shows a phase while it runs and remembers how long it took.

        Args:
          kind: phases of one kind take about the same time.
          text: what is going on.
          after: seconds expected for the rest of the run once this phase is over, where known.
        """
        start = time.perf_counter()
        processes.phase(text)
        if self.console.is_terminal:
            columns = (SpinnerColumn(), TextColumn('{task.description}', markup=False), _ExpectedBar(), _Times())
            with Progress(*columns, console=self.console, transient=True) as progress:
                progress.add_task(text, total=None, expected=self.seconds.get(kind), after=after)
                yield
        else:
            yield
        self.seconds[kind] = time.perf_counter() - start
        processes.after(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table, first column to the left, numbers to the right. All of it is plain text, no markup."""
        table = Table(title=Text(title, style='bold'), title_justify='left')
        for number, column in enumerate(columns):
            table.add_column(Text(column), justify='left' if number == 0 else 'right', overflow='fold')
        for row in rows:
            table.add_row(*map(Text, row))
        wide = (
            Console(width=140, highlight=False, file=self.console.file)
            if not self.console.is_terminal
            else self.console
        )
        wide.print(table)

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Prints names and values, one a line, aligned."""
        width = max(map(len, facts))
        for name, value in facts.items():
            self.console.print(f'  {name:{width}}  {value}', markup=False, emoji=False)


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours and minutes."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes:02d} min' if hours else f'{minutes}:{rest:02d} min' if minutes else f'{rest} s'


def percent(value: dict[str, float] | float | None, digits: int = 1) -> str:
    """A fraction, or one with its interval, in per cent."""
    if value is None:
        return '-'
    if isinstance(value, dict):
        return f'{100 * value["value"]:.{digits}f} [{100 * value["low"]:.{digits}f}, {100 * value["high"]:.{digits}f}]'
    return f'{100 * value:.{digits}f}'


def number_of_bytes(count: int) -> str:
    """Bytes in the largest binary unit that leaves at least one."""
    size, units = float(count), ['B', 'KiB', 'MiB', 'GiB', 'TiB']
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f'{size:.0f} {units[0]}' if units[0] == 'B' else f'{size:.1f} {units[0]}'
