"""The sample store read by pyarrow alone, and written as runs write it: for tests of what reads and writes it."""

import json
import pathlib
from typing import Any

import pyarrow
import pyarrow.parquet


def stored(file: pathlib.Path) -> list[dict[str, Any]]:
    """The questions of a file of samples, each with its paths (rows) under 'paths'."""
    found: list[dict[str, Any]] = []
    for row in pyarrow.parquet.ParquetFile(file).read().to_pylist():
        if row['sample'] == 0:
            found.append({**row, 'kept_paths': 0, 'paths': []})
        found[-1]['paths'].append(row)
        found[-1]['kept_paths'] += row['kept']
    return found


def write_stored(file: pathlib.Path, questions: list[dict[str, Any]], number: int = 0) -> None:
    """Writes questions, given as the report's browser has them, as a file of samples."""
    rows = []
    for question in questions:
        for sample, path in enumerate(question['paths']):
            rows.append({
                'question_id': question['id'], 'question': question['question'], 'gold': question.get('gold'),
                'suite': None, 'round': number, 'sample': sample, 'tokens': [0] * path['tokens'],
                'length': path['tokens'], 'text': path['text'], 'log_prob': path.get('log_prob', -1.0),
                'ended': path['ended'], 'answer': path['answer'], 'found': path['found'], 'voted': path['found'],
                'reward': path.get('reward', 0.0), 'kept': path['kept'] > 0, 'weight': path['kept'],
                'formats': ['path'] * bool(path['kept']), 'chosen': question['chosen'],
                'vote_share': question['share'], 'votes': question['votes'], 'model': '0' * 16, 'seed': 0,
            })  # fmt: skip
    said = {'questions': len(questions), 'text_bytes': sum(len(row['text'].encode()) for row in rows)}
    table = pyarrow.Table.from_pylist(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({'t5x_selfimprove': json.dumps(said)}), file, compression='zstd'
    )
