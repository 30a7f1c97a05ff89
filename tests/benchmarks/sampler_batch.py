"""Tokens a second of the sampler by questions at a time, with XLA's YNNPACK fusions of sums alone and of all it can.

    python -m tests.benchmarks.sampler_batch OUT.json [--repeats=3] [--questions=128] [--gin.NAME=value]

Run it from the project's folder, on a machine that does nothing else; `taskset -c 0` shows one core. Every row draws
the same paths of the same questions of the quickstart, in batches of another size, from a new model of its size (which
hardly ever ends by itself). The two columns run in processes of their own, because XLA reads its flags once:
`sums` has the flag that the command line sets for jaxlib 0.10 (main.CPU_FLAG), `all` is XLA as it comes.
"""

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
from typing import Any

from t5x_selfimprove.main import CPU_FLAG

PER_BATCH = (4, 8, 16, 32, 128)
SETTINGS = {'sums': True, 'all': False}  # whether the flag is set
GIN_FILE = 'gin/runs/quickstart.gin'


def measure_here(questions: int, repeats: int, bindings: list[str]) -> dict[str, Any]:
    """Measures in this process. Imports wait until XLA_FLAGS is settled."""
    import jax

    from t5x_selfimprove import config
    from t5x_selfimprove.session import versions
    from tests.benchmarks.round_phases import sample
    from tests.benchmarks.timing import Program, measure

    given = config.parse_arguments(
        ['improve', f'--gin_file={GIN_FILE}', '--gin.session.Place.cpu_devices=None', *bindings]
    )
    settings = config.build(config.ROOTS['improve'], given.files, given.bindings).value
    model = settings.model.create(settings.vocabulary.size, jax.random.key(0))
    draw = functools.partial(sample, recipe=settings.recipe)
    programs = []
    for size in PER_BATCH:
        feed = dataclasses.replace(settings.questions, per_batch=size, per_round=questions)
        _, batches = feed.take(0, settings.vocabulary, None, False)
        arguments = (model, jax.device_put(batches), jax.random.key(0))
        programs.append(Program(str(size), draw, arguments, tokens=lambda samples: float(samples.mask.sum())))
    timed = [one.facts() for one in measure(programs, repeats)]
    return {'programs': timed, 'samples': settings.recipe.sampler.samples, 'versions': versions()}


def measure_apart(flagged: bool, arguments: list[str]) -> dict[str, Any]:
    """Measures in a new process with or without the flag."""
    flags = [flag for flag in os.environ.get('XLA_FLAGS', '').split() if not flag.startswith(CPU_FLAG)]
    environment = {
        **os.environ,
        'XLA_FLAGS': ' '.join([*flags, CPU_FLAG] if flagged else flags),
        'JAX_PLATFORMS': 'cpu',
    }
    command = [sys.executable, '-m', 'tests.benchmarks.sampler_batch', '--here', *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures both settings, prints the table, writes the file."""
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.sampler_batch', usage=__doc__)
    parser.add_argument('out')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--questions', type=int, default=128)
    parser.add_argument('--here', action='store_true', help=argparse.SUPPRESS)
    asked, bindings = parser.parse_known_args()
    if asked.here:
        print(json.dumps(measure_here(asked.questions, asked.repeats, bindings)))
        return
    from tests.benchmarks.timing import show, write

    given = [asked.out, f'--repeats={asked.repeats}', f'--questions={asked.questions}', *bindings]
    found = {name: measure_apart(flagged, given) for name, flagged in SETTINGS.items()}
    rows = []
    for pair in zip(*(setting['programs'] for setting in found.values()), strict=True):
        cells = [f'{one["tokens_per_second"]:,.0f}' for one in pair]
        cells += [f'{one["tokens"] / one["cpu_median"]:,.0f}' for one in pair]
        rows.append([pair[0]['name'], *cells, f'{pair[1]["median"] / pair[0]["median"]:.2f}'])
    columns = ['questions at a time']
    columns += [f'{unit}, {name}' for unit in ('tokens/s', 'tokens per CPU s') for name in found]
    samples = found['sums']['samples']
    show(
        f'{asked.questions} questions x {samples} paths, median of {asked.repeats}',
        [*columns, 'times as long with all'],
        rows,
    )
    write(asked.out, {'questions': asked.questions, 'bindings': bindings, 'settings': found})


if __name__ == '__main__':
    main()
