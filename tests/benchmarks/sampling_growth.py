"""How our sampler's time and memory grow, as one figure and JSON; and its compile time for 8 and for 32 layers.

    python -m tests.benchmarks.sampling_growth OUT.json OUT.png [--cores 0] [--repeats=3] [--room=64]

Run it from the project's folder, on a machine that does nothing else. The model and workload S of `sampling`, but for
one number at a time: paths a question (1 .. 64), tokens of the common prefix (0 .. 4,096), questions (1 .. 16), with
`room` tokens a path. All programs take turns, repeat by repeat. The memory is what `memory_analysis` of the compiled
program calls temporary. Beside it stands what keys and values alone take: as they are kept, prefix + Q P + S C
tokens, and as they would be with a copy of the prompt for every path, S (prefix + P + C) tokens.
"""

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

from tests.benchmarks.sampling_workloads import SHARED, Sizes, Workload

AXES = {
    'samples': (1, 2, 4, 8, 16, 32, 64),
    'prefix': (0, 256, 512, 1024, 2048, 4096),
    'questions': (1, 2, 4, 8, 16),
}
LABELS = {'samples': 'paths a question, N', 'prefix': 'tokens of the common prefix', 'questions': 'questions, Q'}
DEPTHS = (8, 32)  # layers
NUMBER = 4  # bytes of a float32


def kept_bytes(workload: Workload, sizes: Sizes) -> dict[str, int]:
    """Bytes of keys and values: as they are kept, and with a copy of the prompt for every path."""
    questions = workload.questions * workload.question
    kept = workload.prefix + questions + workload.rows * workload.room
    copied = workload.rows * (workload.prefix + workload.question + workload.room)
    return {'kept': kept * sizes.kv_numbers * NUMBER, 'copied': copied * sizes.kv_numbers * NUMBER}


def measure(base: Workload, sizes: Sizes, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Every axis, from its least to its largest value; all programs in turn."""
    import jax

    from tests.benchmarks.sampling_ours import compiled, config_of
    from tests.benchmarks.timing import in_turn

    model = config_of(sizes).create(sizes.vocabulary, jax.random.key(0))
    found: dict[str, list[dict[str, Any]]] = {axis: [] for axis in AXES}
    programs: dict[Workload, Any] = {}
    for axis, values in AXES.items():
        for value in values:
            workload = dataclasses.replace(base, **{axis: value})
            if workload not in programs:
                programs[workload] = compiled(model, workload, sizes.vocabulary)
                programs[workload]()
            program = programs[workload]
            facts = {axis: value, 'temporary_bytes': program.temporary_bytes, 'tokens': workload.generated}
            facts |= {'compile_seconds': program.compile_seconds, **kept_bytes(workload, sizes)}
            found[axis].append(facts | {'seconds': [], 'cpu_seconds': [], 'workload': workload})
            print(f'compiled: {axis} = {value}, {program.compile_seconds:.1f} s', flush=True)
    taken = in_turn(programs, repeats)
    for facts in (facts for axis in found.values() for facts in axis):
        facts['seconds'], facts['cpu_seconds'] = map(list, zip(*taken[facts.pop('workload')], strict=True))
    return found


def compile_times(workload: Workload, sizes: Sizes) -> list[dict[str, Any]]:
    """Seconds to compile the sampler of S for each depth, and what it would take; nothing of it is run."""
    import jax

    from tests.benchmarks.sampling_ours import compiled, config_of

    found = []
    for layers in DEPTHS:
        deep = dataclasses.replace(sizes, layers=layers)
        make = lambda deep=deep: config_of(deep).create(deep.vocabulary, jax.random.key(0))  # noqa: E731
        cpu = time.process_time()
        program = compiled(jax.eval_shape(make), workload, deep.vocabulary)
        facts = {'layers': layers, 'seconds': program.compile_seconds, 'cpu_seconds': time.process_time() - cpu}
        found.append(facts | {'temporary_bytes': program.temporary_bytes})
    return found


def slopes(points: Sequence[dict[str, Any]], axis: str) -> dict[str, float]:
    """What one more of an axis takes, from its least to its largest value, in bytes."""
    first, last = points[0], points[-1]
    names = ('temporary_bytes', 'kept', 'copied')
    return {name: (last[name] - first[name]) / (last[axis] - first[axis]) for name in names}


def draw(found: dict[str, list[dict[str, Any]]], path: str) -> None:
    """The figure: a column for each axis, time above and memory below."""
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(found), figsize=(4 * len(found), 6), squeeze=False, layout='constrained')
    for (axis, points), (above, below) in zip(found.items(), panels.T, strict=True):
        values = [point[axis] for point in points]
        middle = [statistics.median(point['seconds']) for point in points]
        ends = [[value - min(point['seconds']) for value, point in zip(middle, points, strict=True)]]
        ends += [[max(point['seconds']) - value for value, point in zip(middle, points, strict=True)]]
        above.errorbar(values, middle, ends, marker='o', capsize=3)
        above.set(ylabel='seconds, whole call', ylim=(0, None))
        names = {'temporary_bytes': 'temporary, all', 'kept': 'keys and values, kept once'}
        names['copied'] = 'keys and values, copied for every path'
        for name, label in names.items():
            style = {'marker': 'o'} if name == 'temporary_bytes' else {'linestyle': '--'}
            below.plot(values, [point[name] / 1e6 for point in points], label=label, **style)
        below.set(xlabel=LABELS[axis], ylabel='MB', yscale='log')
        below.legend(fontsize='small')
    figure.savefig(path, dpi=120)
    print(f'written: {path}')


def main() -> None:
    """Measures, draws, prints, writes."""
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.sampling_growth', usage=__doc__)
    parser.add_argument('out')
    parser.add_argument('figure')
    parser.add_argument('--cores', type=int, nargs='+', default=[0])
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--room', type=int, default=64)
    asked = parser.parse_args()
    os.sched_setaffinity(0, asked.cores)
    os.environ['JAX_PLATFORMS'] = 'cpu'
    from t5x_selfimprove.main import settle_environment

    settle_environment()
    from tests.benchmarks.timing import show, write

    sizes, base = Sizes(), dataclasses.replace(SHARED, room=asked.room)
    compiling = compile_times(SHARED, sizes)
    found = measure(base, sizes, asked.repeats)
    rows = []
    for axis, points in found.items():
        for point in points:
            seconds, memory = point['seconds'], [point[name] for name in ('temporary_bytes', 'kept', 'copied')]
            middle = statistics.median(seconds)
            cells = [f'{middle:.2f}', f'{min(seconds):.2f} .. {max(seconds):.2f}', f'{point["tokens"] / middle:,.0f}']
            rows.append([f'{axis} = {point[axis]}', *cells, *(f'{each / 1e6:,.0f}' for each in memory)])
    columns = ['S, but', 's', 'range', 'tokens/s', 'temporary MB', 'kept once MB', 'copied MB']
    show(f'{asked.room} tokens a path, cores {asked.cores}, {asked.repeats} repeats', columns, rows)
    memory = {axis: slopes(points, axis) for axis, points in found.items()}
    for axis, slope in memory.items():
        print(f'one more of {axis}: ' + ', '.join(f'{name} {value / 1e6:.3f} MB' for name, value in slope.items()))
    for each in compiling:
        print(f'compiling S with {each["layers"]} layers: {each["seconds"]:.1f} s')
    facts = {
        'room': asked.room,
        'cores': asked.cores,
        'compiling': compiling,
        'axes': found,
        'bytes_for_one_more': memory,
    }
    write(asked.out, facts)
    draw(found, asked.figure)


if __name__ == '__main__':
    main()
