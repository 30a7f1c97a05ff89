"""Timing of compiled programs side by side, and the table and file that a benchmark leaves."""

import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table


@dataclasses.dataclass
class Timed:
    """What the repeats of one program took. CPU seconds count all threads: on a busy machine they vary less."""

    name: str
    compile_seconds: float
    tokens: float = 0.0  # of one repeat
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """For JSON: all repeats, median and range; tokens a second by the median."""
        middle = statistics.median(self.seconds)
        return {
            **dataclasses.asdict(self),
            'median': middle,
            'range': [min(self.seconds), max(self.seconds)],
            'cpu_median': statistics.median(self.cpu_seconds),
            'tokens_per_second': self.tokens / middle,
        }

    def row(self) -> list[str]:
        """For the table of `show`."""
        facts = self.facts()
        low, high = facts['range']
        rate = f'{facts["tokens_per_second"]:,.0f}' if self.tokens else '-'
        tokens = f'{self.tokens:,.0f}' if self.tokens else '-'
        middle, cpu = f'{facts["median"]:.3f}', f'{facts["cpu_median"]:.3f}'
        return [self.name, middle, f'{low:.3f} .. {high:.3f}', cpu, tokens, rate, f'{self.compile_seconds:.1f}']


COLUMNS = ('program', 'median s', 'range s', 'CPU s', 'tokens', 'tokens/s', 'compile s')


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program with what it takes."""

    name: str
    function: Callable
    arguments: tuple
    consumes: bool = False  # whether it takes its first argument's memory; it then gets a copy each time
    tokens: Callable[[Any], float] = lambda result: 0.0  # in a result

    @functools.cached_property
    def compiled(self) -> tuple[Callable, float]:
        """The program, compiled for its arguments, and the seconds that took."""
        start = time.perf_counter()
        donated = 0 if self.consumes else ()
        return jax.jit(self.function, donate_argnums=donated).lower(*self.arguments).compile(), (
            time.perf_counter() - start
        )

    def inputs(self) -> tuple:
        """The arguments of one run, ready on the devices."""
        if not self.consumes:
            return self.arguments
        return (jax.block_until_ready(jax.tree.map(jnp.copy, self.arguments[0])), *self.arguments[1:])

    def __call__(self) -> Any:
        """Runs it once."""
        return jax.block_until_ready(self.compiled[0](*self.inputs()))


def measure(programs: Sequence[Program], repeats: int) -> list[Timed]:
    """Runs each program once to warm up, then all of them in turn, `repeats` times."""
    timed = [Timed(program.name, program.compiled[1], program.tokens(program())) for program in programs]
    for _ in range(repeats):
        for program, found in zip(programs, timed, strict=True):
            run, inputs = program.compiled[0], program.inputs()
            cpu, start = time.process_time(), time.perf_counter()
            jax.block_until_ready(run(*inputs))
            found.seconds.append(time.perf_counter() - start)
            found.cpu_seconds.append(time.process_time() - cpu)
    return timed


def in_turn(calls: Mapping[Any, Callable[[], Any]], repeats: int) -> dict[Any, list[tuple[float, float]]]:
    """Makes all calls in turn, `repeats` times: (seconds, CPU seconds) of each time, by the calls' keys."""
    taken: dict[Any, list[tuple[float, float]]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            cpu, start = time.process_time(), time.perf_counter()
            call()
            taken[key].append((time.perf_counter() - start, time.process_time() - cpu))
    return taken


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table."""
    table = Table(title=title, title_justify='left')
    for number, column in enumerate(columns):
        table.add_column(column, justify='right' if number else 'left', no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=140, highlight=False).print(table)


def write(path: str, facts: dict[str, Any]) -> None:
    """Writes the facts as JSON."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(json.dumps(facts, indent=1) + '\n', encoding='utf-8')
    print(f'written: {path}')
