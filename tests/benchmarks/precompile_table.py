"""The runs of gin/runs/pods compiled for their pods, in one table: does it fit, and what does a round take at least.

    python -m tests.benchmarks.precompile_table table.json                  all of them, one after the other
    python -m tests.benchmarks.precompile_table table.json llama3_1_8b      those whose file's name begins so

Writes what was found of each run into the file (what is there of others is kept) and prints the table of all in
markdown. Nothing but libtpu is needed; each takes some minutes of one core.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

GIB, ROOT = 1 << 30, pathlib.Path(__file__).resolve().parents[2]
RUNS = (
    'llama3_1_8b_v5e_64',
    'llama3_1_8b_v6e_64',
    'llama3_1_70b_v5p_128',
    'ul2_20b_v4_128',
    'palm_540b_v5p_1024',
)
COLUMNS = (
    'run',
    'chips',
    'mesh',
    'verdict',
    'GiB a device',
    'of them state + temporary',
    'sampling',
    'learning',
    'a round at least',
    'chip-hours',
    'bound by',
    'compiled in',
)


def compiled(name: str) -> dict[str, Any]:
    """What `precompile` finds out about a run, in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, '-m', 't5x_selfimprove', 'precompile', f'--gin_file=gin/runs/pods/{name}.gin']
        command += [f'--gin.precompile.Precompile.output={directory}']
        subprocess.run(command, cwd=ROOT, check=True)
        found = json.loads((pathlib.Path(directory) / 'precompile.json').read_text(encoding='utf-8'))
    return {key: value for key, value in found.items() if key != 'config'}


def row(found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    mesh = ' x '.join(f'{axis} {size}' for axis, size in found['mesh'].items() if size > 1)
    start = [found['name'], f'{found["topology"]}, {found["chips"]:,}', mesh]
    hbm = found['hbm_bytes'] / GIB
    if not found['fits']:
        needed = '?' if found['needed_bytes'] is None else f'{found["needed_bytes"] / GIB:.1f}'
        other = [each['change'] for each in found['tried'] if each['fits']]
        verdict = 'does not fit' + (f'; does with {other[0]}' if other else '')
        return [*start, verdict, f'{needed} of {hbm:.1f}', *['-'] * (len(COLUMNS) - 5)]
    memory, phases = found['memory'], found['phases']
    state = sum(memory[kind] for kind in ('parameters', 'optimizer', 'base')) / GIB
    seconds = {name: phase['roofline_seconds'] for name, phase in phases.items()}
    sampling, learning = seconds['prefill'] + seconds['decoding'], seconds['learning']
    bound = ', '.join(f'{name}: {phases[name]["bound_by"]}' for name in ('decoding', 'learning'))
    return [
        *start,
        'fits',
        f'{found["needed_bytes"] / GIB:.1f} of {hbm:.1f}',
        f'{state:.1f} + {memory["temporaries"] / GIB:.1f}',
        f'{sampling:,.0f} s',
        f'{learning:,.0f} s',
        f'{found["seconds_per_round"]:,.0f} s',
        f'{found["chip_hours_per_round"]:,.1f}',
        bound,
        f'{found["compile_seconds"]:,.0f} s',
    ]


def table(found: list[dict[str, Any]]) -> str:
    """All lines, in markdown."""
    lines = [COLUMNS, ['---'] * len(COLUMNS), *map(row, found)]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def main(path: str, start: str = '') -> None:
    """Compiles the runs whose names begin with `start`, and prints the table of all that are in the file."""
    file = pathlib.Path(path)
    found = json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}
    for name in RUNS:
        if name.startswith(start):
            found[name] = compiled(name)
            file.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    print(table([found[name] for name in RUNS if name in found]))


if __name__ == '__main__':
    main(*sys.argv[1:])
