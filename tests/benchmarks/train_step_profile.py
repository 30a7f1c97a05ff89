"""Where the time of one optimizer update goes: our bfloat16 update beside PyTorch's bfloat16 autocast.

    python -m tests.benchmarks.train_step_profile [OUT.json] [--peers-python=PYTHON] [--cores 0] [--arms ...]

The update of `train_step`, once under the profiler of each. Products are told by what they are summed over: the
gradient of a weight sums over all tokens of the batch, the product with a weight and the gradient of its input over a
width. Of attention ours shows the products alone, PyTorch's is one operation. What is seen is wall time; its shares are
printed, and the same shares of the update's CPU seconds, which other work on the cores changes little. GFLOP/s count
multiplications and additions, by CPU seconds.
"""

import argparse
import collections
import dataclasses
import functools
import math
import pathlib
import re
import sys
import tempfile
import time
from typing import Any

from tests.benchmarks import train_step
from tests.benchmarks.turns import take_turns, work

MODULE = 'tests.benchmarks.train_step_profile'
WITH, GRADIENT, ATTENTION, REST = 'products with weights', "weights' gradients", 'attention', 'everything else'
GROUPS = (WITH, GRADIENT, ATTENTION)
OURS = 'bfloat16 products by YNNPACK, layers but their products recomputed'
ARMS = (OURS, 'PyTorch bfloat16 autocast')
TOKENS = train_step.ROWS * train_step.LENGTH

SHAPED = re.compile(r'^ *(?:ROOT )?%(\S+) = \w+\[([\d,]*)\]')
DOT = re.compile(r' dot\(%(\S+), %\S+\).*?lhs_contracting_dims=\{([\d,]*)\}')
CALLS = re.compile(r'^ *(?:ROOT )?%(\S+) = .* fusion\(.*calls=%([\w.-]+)')

Found = tuple[str, float, float]  # group, seconds of wall time, floating-point operations


def numbers(text: str) -> list[int]:
    """'8,256' -> [8, 256]."""
    return [int(number) for number in text.split(',') if number]


def products_of(text: str) -> dict[str, tuple[str, float]]:
    """The instructions of compiled HLO that are a product or hold one: name -> group and operations."""
    lines = text.split('\n')
    shapes = {match[1]: numbers(match[2]) for match in map(SHAPED.match, lines) if match}
    found: dict[str, tuple[str, float]] = {}
    computation = ''
    for line in lines:
        if line and line[0] in '%E':
            computation = line.removeprefix('ENTRY ').lstrip('%').split(' ')[0]
        dot, shaped, called = DOT.search(line), SHAPED.match(line), CALLS.match(line)
        if dot:
            over = math.prod(shapes[dot[1]][axis] for axis in numbers(dot[2]))
            group = ATTENTION if 'lhs_batch_dims' in line else GRADIENT if over == TOKENS else WITH
            found[shaped[1]] = found[computation] = (group, 2.0 * math.prod(shapes[shaped[1]]) * over)
        elif called and called[2] in found:  # computations stand before those that call them
            found[called[1]] = found[called[2]]
    return found


def timed(update: train_step.Update) -> tuple[float, float]:
    """Makes an update; its seconds, and its CPU seconds."""
    cpu, start = time.process_time(), time.perf_counter()
    update()
    return time.perf_counter() - start, time.process_time() - cpu


def our_profile(update: train_step.Update) -> tuple[float, float, list[Found]]:
    """Seconds, CPU seconds and products of one update, by the trace of the runtime."""
    import jax

    products, found = products_of(update.compiled.as_text()), []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            seconds = timed(update)
        file = next(pathlib.Path(folder).rglob('*.xplane.pb'))
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for event in (event for line in plane.lines for event in line.events):
                if event.name in products:
                    group, operations = products[event.name]
                    found.append((group, event.duration_ns / 1e9, operations))
    return *seconds, found


def torch_profile(update: train_step.Update) -> tuple[float, float, list[Found]]:
    """The same by PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    found = []
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        seconds = timed(update)
    for event in profiler.key_averages(group_by_input_shape=True):
        own = event.self_cpu_time_total / 1e6
        if event.key == 'aten::mm':
            (rows, over), (_, columns) = event.input_shapes[:2]
            found.append((GRADIENT if over == TOKENS else WITH, own, 2.0 * rows * over * columns * event.count))
        elif event.key == 'aten::bmm' or 'attention' in event.key:
            found.append((ATTENTION, own, 0.0))
    return *seconds, found


class Profiled:
    """An arm: its turn is an update under the profiler."""

    def __init__(self, name: str):
        """Compiles, and makes one update without the profiler."""
        self.update = train_step.make(name)
        self.profile = our_profile if name in train_step.OURS else torch_profile
        self.facts = self.update.facts

    def __call__(self) -> dict[str, Any]:
        """Seconds of the update; wall seconds and operations of each group of it."""
        seconds, cpu_seconds, found = self.profile(self.update)
        wall, operations = collections.Counter(), collections.Counter()
        for group, each, count in found:
            wall[group] += each
            operations[group] += count
        whole = {'update_seconds': seconds, 'update_cpu_seconds': cpu_seconds}
        return {**whole, 'group_seconds': dict(wall), 'operations': dict(operations)}


def rows_of(name: str, facts: dict[str, Any]) -> list[list[str]]:
    """The lines of one arm in the table."""
    turn = facts['repeats'][-1]
    cpu = turn['update_cpu_seconds']
    shares = {group: turn['group_seconds'].get(group, 0.0) / turn['update_seconds'] for group in GROUPS}
    shares[REST] = 1 - sum(shares.values())
    lines = []
    for group, share in shares.items():
        operations = turn['operations'].get(group, 0.0)
        rate = f'{operations / (share * cpu) / 1e9:,.0f}' if operations else '-'
        lines.append(['', group, f'{100 * share:.0f} %', f'{share * cpu:.2f}', f'{operations / 1e12:.2f}', rate])
    return [[name, 'all', '100 %', f'{cpu:.2f}', f'{sum(turn["operations"].values()) / 1e12:.2f}', '-'], *lines]


def main() -> None:
    """Profiles the arms in turn; prints a table, and writes JSON if a file is named."""
    parser = argparse.ArgumentParser(prog=f'python -m {MODULE}', usage=__doc__)
    parser.add_argument('out', nargs='?')
    parser.add_argument('--cores', type=int, nargs='+', default=[0])
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=ARMS)
    parser.add_argument('--peers-python', default=sys.executable)
    parser.add_argument('--work', choices=ARMS)
    asked = parser.parse_args()
    if asked.work:
        return work(functools.partial(Profiled, asked.work))
    from tests.benchmarks.timing import show, write

    arms = [dataclasses.replace(train_step.arm(name, asked.peers_python), module=MODULE) for name in asked.arms]
    found = take_turns(arms, asked.cores, 1)
    rows = [row for name, facts in found.items() if 'left out' not in facts for row in rows_of(name, facts)]
    columns = ['update', 'part', 'share', 'CPU s', 'T operations', 'GFLOP/s']
    show(f'{train_step.ROWS} x {train_step.LENGTH} tokens, cores {asked.cores}', columns, rows)
    if asked.out:
        write(asked.out, {'cores': asked.cores, 'arms': found})


if __name__ == '__main__':
    main()
