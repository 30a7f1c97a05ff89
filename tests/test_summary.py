"""summary.json and the final table, from the events of a run."""

import json
import pathlib

import pytest

from t5x_selfimprove.summary import summarise, table
from tests.made_run import made_run, write_lines

# What whoever compares runs may rely on.
OF_RUN = ('name', 'seed', 'rounds', 'wall_seconds', 'devices', 'versions', 'parameters', 'labels_read')
OF_ROUND = (
    'round',
    'greedy_accuracy',
    'majority_accuracy',
    'pass_at_n',
    'answered',
    'mean_vote_share',
    'calibration_error',
    'kept_paths',
    'training_tokens',
    'seconds',
)


def events_of(directory: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (directory / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
    directory = made_run(tmp_path, rounds=2, questions=8, paths=4)
    write_lines(directory / 'metrics.jsonl', [*events_of(directory), {'kind': 'session', 'time': 0, 'seconds': 100.0}])
    return directory


def test_summary(run):
    summary = summarise(run)
    assert json.loads((run / 'summary.json').read_text()) == summary
    assert all(name in summary for name in OF_RUN)
    assert [row['round'] for row in summary['rounds']] == [0, 1, 2]
    for row in summary['rounds']:
        assert all(name in row for name in OF_ROUND)
        assert all(set(row[name]) == {'value', 'low', 'high'} for name in OF_ROUND[1:7])
    first, second, _ = summary['rounds']
    assert (first['kept_paths'], first['training_tokens']) == (0, 0) and set(first['seconds']) == {'evaluate'}
    trained = next(event for event in events_of(run) if event['kind'] == 'round' and event['round'] == 1)
    assert second['kept_paths'] == trained['kept_paths'] > 0
    assert second['training_tokens'] == trained['training_tokens'] > 0
    assert second['seconds'] == {**trained['seconds'], 'evaluate': 3.1}
    assert (summary['labels_read'], summary['wall_seconds'], summary['sessions']) == (0, 100.0, 1)


def test_of_events_written_twice_the_later_counts(run):
    """A run killed after it wrote a round's line and before it saved writes the line again."""
    before, events = summarise(run), events_of(run)
    again = next(event for event in events if event['kind'] == 'round' and event['round'] == 2)
    start = next(event for event in events if event['kind'] == 'run')
    later = {**again, 'kept_paths': 12345.0, 'labels_read': 3}
    write_lines(run / 'metrics.jsonl', [*events, {**start, 'seed': 7}, later, events[-1]])
    after = summarise(run)
    assert [row['kept_paths'] for row in after['rounds'][:2]] == [row['kept_paths'] for row in before['rounds'][:2]]
    assert after['rounds'][2]['kept_paths'] == 12345.0
    assert (after['labels_read'], after['seed']) == (3, 7)  # neither of them the sum of both
    assert (after['sessions'], after['wall_seconds']) == (2, 200.0)  # but time was spent twice


def test_half_a_line_is_left_out(run):
    before = summarise(run)
    with (run / 'metrics.jsonl').open('a') as file:
        file.write('{"kind": "round", "round": 2, "kept_pa')
    assert summarise(run) == before


@pytest.mark.parametrize('text', ['', '{"kind": "round", "round": 1}\n'])
def test_no_run(tmp_path, text: str):
    (tmp_path / 'metrics.jsonl').write_text(text)
    with pytest.raises(ValueError, match='holds no run'):
        summarise(tmp_path)
    assert not (tmp_path / 'summary.json').exists()


def test_a_run_without_evaluation_yet(tmp_path):
    events = events_of(made_run(tmp_path, rounds=1, questions=2, paths=2))
    write_lines(tmp_path / 'metrics.jsonl', [event for event in events if event['kind'] == 'run'])
    summary = summarise(tmp_path)
    assert summary['rounds'] == [] and table(summary)[2] == []


def test_table(run):
    title, columns, rows = table(summarise(run))
    assert 'quickstart' in title and 'seed 0' in title and '8 held-out questions' in title
    assert columns == [
        'round', 'greedy accuracy', 'majority accuracy', 'answered', 'calibration error', 'kept paths', 'seconds',
    ]  # fmt: skip
    assert len(rows) == 3 and all(len(row) == len(columns) for row in rows)
    assert [row[0] for row in rows] == ['0', '1', '2']
    assert all(cell.count('[') == 1 for row in rows for cell in row[1:5])  # each with its interval
    assert rows[0][-2:] == ['0', '0.0'] and rows[1][-1] == '38.0'
