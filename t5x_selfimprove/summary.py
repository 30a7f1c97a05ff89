"""The summary of a run, made from what it wrote: summary.json and the table at its end."""

from pathlib import Path
from typing import Any

from t5x_selfimprove import files, metrics
from t5x_selfimprove.display import percent
from t5x_selfimprove.estimators import forgetting

OF_EVALUATION = (
    'greedy_accuracy',
    'majority_accuracy',
    'weighted_accuracy',
    'standard_accuracy',
    'maj_at_k',
    'pass_at_k',
    'pass_at_n',
    'answered',
    'truncated',
    'mean_vote_share',
    'calibration_error',
    'reliability',
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
    of_rounds: dict[int, dict[str, Any]] = {event['round']: event for event in events if event['kind'] == 'round'}
    suites: dict[str, dict[int, dict[str, Any]]] = {}  # the held-out questions first, as they are measured
    for event in events:
        if event['kind'] == 'evaluation':
            suites.setdefault(event['suite'], {})[event['round']] = event
    held_out = next(iter(suites.values()), {})
    rounds = []
    for number in sorted(held_out | of_rounds):
        evaluation, trained = held_out.get(number, {}), of_rounds.get(number, {})
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
    last, measured = runs[-1], {name: _of_suite(of_one) for name, of_one in suites.items()}
    elsewhere = [suite['transfer'] for suite in list(measured.values())[1:]]
    summary = {
        'name': last['name'],
        'seed': last['seed'],
        'rounds': rounds,
        'suites': measured,
        'backward_transfer': sum(elsewhere) / len(elsewhere) if elsewhere else None,
        'evaluation_questions': max((event['questions'] for event in held_out.values()), default=0),
        'labels_read': sum(event.get('labels_read', 0) for event in of_rounds.values()),
        'replay_examples': max((event.get('replay_examples', 0) for event in of_rounds.values()), default=0),
        'wall_seconds': sum(event['seconds'] for event in events if event['kind'] == 'session'),
        'compile_seconds': sum(event['seconds'] for event in events if event['kind'] == 'compile'),
        'sessions': len(runs),
        'parameters': last['parameters'],
        'devices': last['devices'],
        'versions': last['versions'],
    }
    files.write_json(directory / 'summary.json', summary)
    return summary


def _of_suite(measured: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Accuracy on a suite after every round that was measured, and what became of it.

    `transfer` is the last greedy accuracy less the first, what the rounds did to a suite. Its mean over the suites out
    of domain is the backward transfer of Lopez-Paz and Ranzato (2017, arXiv:1706.08840), with the model before the
    rounds in the place of one that has just learnt the suite. `forgetting` is the best one before the last less the
    last.
    """
    numbers = sorted(measured)
    greedy = [measured[number]['greedy_accuracy']['value'] for number in numbers]
    names = ('greedy_accuracy', 'majority_accuracy', 'maj_at_k', 'pass_at_k')
    return {
        'questions': measured[numbers[-1]]['questions'],
        'rounds': [{'round': number, **{name: measured[number][name] for name in names}} for number in numbers],
        'transfer': greedy[-1] - greedy[0],
        'forgetting': forgetting(greedy),
    }


def suites_table(summary: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows of the table of suites: greedy accuracy, per cent, after every round."""
    suites = summary['suites']
    numbers = sorted({row['round'] for suite in suites.values() for row in suite['rounds']})
    rows = []
    for name, suite in suites.items():
        held = {row['round']: percent(row['greedy_accuracy']['value']) for row in suite['rounds']}
        change = [f'{100 * suite["transfer"]:+.1f}', percent(suite['forgetting'])]
        rows.append([name, f'{suite["questions"]:,}', *(held.get(number, '-') for number in numbers), *change])
    title = 'greedy accuracy on every suite after every round, per cent'
    return title, ['suite', 'questions', *(f'round {number}' for number in numbers), 'change', 'forgetting'], rows


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
