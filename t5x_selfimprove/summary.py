"""The summary of a run, made from what it wrote: summary.json and the table at its end."""

from pathlib import Path
from typing import Any

from t5x_selfimprove import files, metrics
from t5x_selfimprove.display import percent

OF_EVALUATION = (
    'greedy_accuracy',
    'majority_accuracy',
    'pass_at_n',
    'answered',
    'mean_vote_share',
    'calibration_error',
    'kept_precision',
)


def summarise(directory: Path) -> dict[str, Any]:
    """Gathers metrics.jsonl into summary.json. Of events that a resumed run wrote twice the later one counts.

    Raises:
      ValueError: the directory holds no run.
    """
    events = metrics.read(directory / 'metrics.jsonl')
    runs = [event for event in events if event['kind'] == 'run']
    if not runs:
        raise ValueError(f'{directory} holds no run: there is no "run" event in its metrics.jsonl')
    by_kind: dict[str, dict[int, dict[str, Any]]] = {'round': {}, 'evaluation': {}}
    for event in events:
        if event['kind'] in by_kind:
            by_kind[event['kind']][event['round']] = event
    rounds = []
    for number in sorted(by_kind['evaluation'] | by_kind['round']):
        evaluation, trained = by_kind['evaluation'].get(number, {}), by_kind['round'].get(number, {})
        rounds.append(
            {
                'round': number,
                **{name: evaluation.get(name) for name in OF_EVALUATION},
                'kept_paths': trained.get('kept_paths', 0),
                'kept_questions': trained.get('kept_questions', 0),
                'training_tokens': trained.get('training_tokens', 0),
                'sampled_tokens': trained.get('sampled_tokens', 0),
                'seconds': {**trained.get('seconds', {}), 'evaluate': evaluation.get('seconds', 0.0)},
            }
        )
    last = runs[-1]
    summary = {
        'name': last['name'],
        'seed': last['seed'],
        'rounds': rounds,
        'evaluation_questions': max((event['questions'] for event in by_kind['evaluation'].values()), default=0),
        'labels_read': sum(event.get('labels_read', 0) for event in by_kind['round'].values()),
        'replay_examples': max((event.get('replay_examples', 0) for event in by_kind['round'].values()), default=0),
        'wall_seconds': sum(event['seconds'] for event in events if event['kind'] == 'session'),
        'compile_seconds': sum(event['seconds'] for event in events if event['kind'] == 'compile'),
        'sessions': len(runs),
        'parameters': last['parameters'],
        'devices': last['devices'],
        'versions': last['versions'],
    }
    files.write_json(directory / 'summary.json', summary)
    return summary


def table(summary: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows of the table of rounds; per cent, with 95 % intervals."""
    rows = [
        [
            str(row['round']),
            percent(row['greedy_accuracy']),
            percent(row['majority_accuracy']),
            percent(row['answered']),
            percent(row['calibration_error']),
            f'{row["kept_paths"]:,.0f}',
            f'{row["seconds"].get("round", 0):.1f}',
        ]
        for row in summary['rounds']
    ]
    title = (
        f'{summary["name"]}, seed {summary["seed"]}: {summary["evaluation_questions"]:,} held-out questions, '
        'per cent [95 % interval]'
    )
    columns = [
        'round',
        'greedy accuracy',
        'majority accuracy',
        'answered',
        'calibration error',
        'kept paths',
        'seconds',
    ]
    return title, columns, rows
