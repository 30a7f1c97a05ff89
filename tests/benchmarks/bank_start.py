"""How long a bank of a million made-up questions takes to start, how fast it is read, and the memory that it holds.

    python -m tests.benchmarks.bank_start OUT.json [--questions=1000000]

Run it from the project's folder, on Linux. Each format is measured in a process of its own: seconds from nothing to
the first 512 questions, in the order of the file and shuffled; seconds of the look through all questions that every run
begins with; questions a second of the 200 shuffled reads of 512 that follow; and resident memory beyond what the
imports take, after the look (peak) and after the reads (at the end of the first and of the last quarter of them).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

MEGA = 1e6
FORMATS = ('jsonl', 'csv', 'parquet')
READS, PER_READ = 200, 512


def make(folder: pathlib.Path, count: int) -> None:
    """Writes the same questions in every format, 10,000 at a time."""
    import csv

    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([('question', pyarrow.string()), ('answer', pyarrow.string())])
    with (
        open(folder / 'bank.jsonl', 'w', encoding='utf-8') as lines,
        open(folder / 'bank.csv', 'w', encoding='utf-8', newline='') as records,
        pyarrow.parquet.ParquetWriter(folder / 'bank.parquet', schema) as table,
    ):
        writer = csv.DictWriter(records, schema.names)
        writer.writeheader()
        for start in range(0, count, 10_000):
            rows = [
                {
                    'question': f'Hugo has {number} pens and gives {number % 97} of them, one by one, to each of his '
                    f'{number % 13} friends, "as it should be". After that he finds {number % 1009} more behind the '
                    'cupboard. How many pens does Hugo have now?',
                    'answer': f'{number} - {number % 97 * (number % 13)} + {number % 1009} = so many.\n#### {number}',
                }
                for number in range(start, min(count, start + 10_000))
            ]
            lines.write(''.join(json.dumps(row) + '\n' for row in rows))
            writer.writerows(rows)
            table.write_table(pyarrow.Table.from_pylist(rows, schema))


def resident(field: str) -> int:
    """Bytes of this process: VmRSS, VmHWM."""
    status = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


def measure(path: str) -> dict[str, float]:
    """Reads a bank as a run does."""
    import dataclasses

    import pyarrow.parquet  # noqa: F401  (before memory is taken down)

    from t5x_selfimprove.data.question_files import Csv, JsonLines, Parquet

    kind = {'.jsonl': JsonLines, '.csv': Csv, '.parquet': Parquet}[pathlib.Path(path).suffix]
    bank, before = kind(path, answer_after='####'), resident('VmRSS')
    found: dict[str, float] = {'bytes': os.path.getsize(path)}
    start = time.perf_counter()
    bank.take(0, PER_READ)
    found['first'] = time.perf_counter() - start
    shuffled, start = dataclasses.replace(bank, shuffle_seed=0), time.perf_counter()
    shuffled.take(0, PER_READ)
    found['first shuffled'] = time.perf_counter() - start
    start = time.perf_counter()
    shuffled.check()
    found['look'] = time.perf_counter() - start
    found['peak'] = resident('VmHWM') - before
    start = time.perf_counter()
    for number in range(READS):
        shuffled.take(number * PER_READ, PER_READ)
        if number == READS // 4:
            found['quarter'] = resident('VmRSS') - before
    found['questions a second'] = READS * PER_READ / (time.perf_counter() - start)
    found['end'] = resident('VmRSS') - before
    return found


def apart(*words: str) -> str:
    """Runs this file in a process of its own; what it printed last."""
    command = [sys.executable, '-m', 'tests.benchmarks.bank_start', *words]
    done = subprocess.run(command, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, stdout=subprocess.PIPE, text=True,
                          check=True)  # fmt: skip
    return (done.stdout.splitlines() or [''])[-1]


def main() -> None:
    """Makes the banks, measures each, prints the table, writes the file."""
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.bank_start', usage=__doc__)
    parser.add_argument('out')
    parser.add_argument('--questions', type=int, default=1_000_000)
    parser.add_argument('--measure', action='store_true', help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.out)))
        return
    from tests.benchmarks.timing import show, write

    with tempfile.TemporaryDirectory() as name:
        make(pathlib.Path(name), asked.questions)
        found = {one: json.loads(apart(f'{name}/bank.{one}', '--measure')) for one in FORMATS}
    rows = [
        [
            one,
            f'{facts["bytes"] / MEGA:,.0f}',
            *(f'{facts[field]:.2f}' for field in ('first', 'first shuffled', 'look')),
            f'{facts["questions a second"]:,.0f}',
            *(f'{facts[field] / MEGA:,.0f}' for field in ('peak', 'quarter', 'end')),
        ]
        for one, facts in found.items()
    ]
    show(
        f'A bank of {asked.questions:,} questions',
        [
            '', 'file, MB', 'first 512, s', 'shuffled, s', 'look through all, s', 'questions/s, shuffled',
            'peak, MB', 'after 50 reads, MB', 'after 200, MB',
        ],
        rows,
    )  # fmt: skip
    write(asked.out, {'questions': asked.questions, 'formats': found})


if __name__ == '__main__':
    main()
