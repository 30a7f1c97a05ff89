"""Slots that are refilled while paths end at different times, beside slots that are never idle.

    python -m tests.benchmarks.sampling_slots OUT.json [--cores 0] [--repeats=3]

Run it from the project's folder, on a machine that does nothing else. The model of `sampling`, no common prefix, 4
questions of 64 tokens, 64 slots; all programs take turns, repeat by repeat:

    full slots        256 paths of 256 tokens each, four for every slot: no slot is ever idle
    refilled          256 paths, lengths spread evenly over 16 .. 256
    no moving         the same, but that the last paths do not move together into smaller steps (`tail = ()`)
    no refills        64 paths of such lengths in 64 slots, which do not move either: what a batch of `generate` is

`slot use`: tokens drawn by the steps of all slots, idle or not. `of full`: tokens a second by those of full slots.
"""

import argparse
import dataclasses
import os
import statistics
from typing import Any

from tests.benchmarks.sampling_workloads import SPREAD, Sizes

SLOTS = SPREAD.rows
MANY = dataclasses.replace(SPREAD, samples=4 * SPREAD.samples)
ROWS = {
    'full slots': (dataclasses.replace(MANY, least=0), {'slots': SLOTS}),
    'refilled': (MANY, {'slots': SLOTS}),
    'no moving': (MANY, {'slots': SLOTS, 'tail': ()}),
    'no refills': (SPREAD, {'tail': ()}),
}
COLUMNS = ('paths', 'tokens/s', 'range', 's', 'slot use %', 'of full %')


def facts_of(name: str, drawing: Any, slot_steps: float, seconds: list[float]) -> dict[str, Any]:
    """What one row is."""
    tokens = drawing.workload.generated
    rates = [tokens / each for each in seconds]
    found = {'name': name, 'tokens': tokens, 'seconds': seconds, 'median': statistics.median(seconds)}
    found |= {'tokens_per_second': statistics.median(rates), 'range': [min(rates), max(rates)]}
    return found | {'slot_use': tokens / slot_steps}


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.sampling_slots', usage=__doc__)
    parser.add_argument('out')
    parser.add_argument('--cores', type=int, nargs='+', default=[0])
    parser.add_argument('--repeats', type=int, default=3)
    asked = parser.parse_args()
    os.sched_setaffinity(0, asked.cores)
    os.environ['JAX_PLATFORMS'] = 'cpu'
    from t5x_selfimprove.main import settle_environment

    settle_environment()
    import jax

    from t5x_selfimprove.session import versions
    from tests.benchmarks.sampling_ours import compiled, config_of
    from tests.benchmarks.timing import in_turn, show, write

    sizes = Sizes()
    model = config_of(sizes).create(sizes.vocabulary, jax.random.key(0))
    drawings = {name: compiled(model, workload, sizes.vocabulary, **own) for name, (workload, own) in ROWS.items()}
    steps = {name: float(drawing().slot_steps) for name, drawing in drawings.items()}
    taken = in_turn(drawings, asked.repeats)
    found = [
        facts_of(name, drawing, steps[name], [seconds for seconds, _ in taken[name]])
        for name, drawing in drawings.items()
    ]
    rows = []
    for one in found:
        one['of_full'] = one['tokens_per_second'] / found[0]['tokens_per_second']
        low, high = one['range']
        cells = [f'{one["tokens_per_second"]:,.0f}', f'{low:,.0f} .. {high:,.0f}', f'{one["median"]:.2f}']
        rows.append([one['name'], *cells, *(f'{100 * one[share]:.1f}' for share in ('slot_use', 'of_full'))])
    show(f'{SLOTS} slots, cores {asked.cores}, {asked.repeats} repeats', COLUMNS, rows)
    write(asked.out, {'cores': asked.cores, 'versions': versions(), 'rows': found})


if __name__ == '__main__':
    main()
