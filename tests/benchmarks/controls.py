"""The quickstart and its controls over several seeds: the table of results in the README.

    python tests/benchmarks/controls.py --seeds 0 1 2 3 4 --directory runs/controls

Every arm starts from the same pre-trained model of its seed and makes the same number of updates. Runs that are
finished are not made again; killed ones go on where they were. About an hour and a half on two CPU cores. Prints one
table and writes JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ARMS = {
    'vote': 'gin/runs/quickstart.gin',
    'labelled examples only': 'gin/runs/controls/labelled_only.gin',
    'unvoted paths': 'gin/runs/controls/unvoted.gin',
    'majority without threshold': 'gin/runs/controls/no_threshold.gin',
    'true labels (not label-free)': 'gin/runs/controls/true_labels.gin',
}


def run(*words: str) -> None:
    """Runs one command of the project, its output passed through."""
    subprocess.run([sys.executable, '-m', 't5x_selfimprove', *words], check=True)


def arm(name: str, seed: int, directory: Path) -> dict[str, Any]:
    """The summary of one arm, run where it is not there yet. Raises CalledProcessError where the run fails."""
    base, place = directory / f'pretrain-{seed}', directory / f'{Path(ARMS[name]).stem}-{seed}'
    if not (place / 'report.html').exists():
        run('pretrain', '--gin_file=gin/runs/quickstart_pretrain.gin', f'--gin.SEED={seed}', f'--gin.RUN_DIR={base}')
        where = (f'--gin.SEED={seed}', f'--gin.RUN_DIR={place}', f'--gin.INITIAL={base}')
        run('improve', f'--gin_file={ARMS[name]}', *where)
    return json.loads((place / 'summary.json').read_text())


def ends(summary: dict[str, Any], name: str) -> tuple[float, float]:
    """A measure before the first round and after the last, per cent."""
    values = [row[name]['value'] for row in summary['rounds'] if row[name]]
    return 100 * values[0], 100 * values[-1]


def row(name: str, summaries: list[dict[str, Any]]) -> str:
    """One arm as a row of the table: greedy before and after for every seed, then the means."""
    greedy = [ends(summary, 'greedy_accuracy') for summary in summaries]
    majority = [ends(summary, 'majority_accuracy') for summary in summaries]
    tokens = statistics.mean(sum(each['training_tokens'] for each in summary['rounds']) for summary in summaries)
    labels = sum(summary['labels_read'] for summary in summaries)
    cells = [f'{before:.1f} -> {after:.1f}' for before, after in greedy]
    for pairs in (greedy, majority):
        before, after = (statistics.mean(side) for side in zip(*pairs, strict=True))
        cells.append(f'{before:.1f} -> {after:.1f} ({after - before:+.1f})')
    return f'| {name} | {" | ".join(cells)} | {tokens / 1e6:.2f} M | {labels:,} |'


def main() -> None:
    """Runs what is missing, prints the table, writes controls.json beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    parser.add_argument('--directory', type=Path, default=Path('runs/controls'))
    parser.add_argument('--arms', nargs='+', choices=list(ARMS), default=list(ARMS))
    arguments = parser.parse_args()
    found = {name: [arm(name, seed, arguments.directory) for seed in arguments.seeds] for name in arguments.arms}
    seeds = ' | '.join(f'seed {seed}' for seed in arguments.seeds)
    print(f'| trained on | {seeds} | greedy, mean | majority, mean | training tokens | labels read |')
    print('|' + '---|' * (len(arguments.seeds) + 5))
    for name, summaries in found.items():
        print(row(name, summaries))
    (arguments.directory / 'controls.json').write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
