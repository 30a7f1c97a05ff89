"""The sample store: every sampled path of a run, one row a path, in Parquet files that pandas and `datasets` read.

    samples/round_0001.parquet               the training questions of a round
    samples/evaluation_0001.parquet          the held-out questions after it
    samples/evaluation_svamp_0001.parquet    those of a suite out of domain

    import pandas
    paths = pandas.read_parquet('runs/quickstart/samples')

A file is there whole or not at all, and a round that is done again writes the same file again. Rows are in the order of
the questions and, of a question, of its paths. Where one question stands for all its paths its columns repeat; Parquet
stores them once.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_selfimprove import files
from t5x_selfimprove.data.items import Item
from t5x_selfimprove.records import Samples, Verdict
from t5x_selfimprove.vocabulary import Vocabulary

# What `datasets` and pandas find, and of what type.
COLUMNS = {
    'question_id': 'string',  # 16 hex digits
    'question': 'string',
    'gold': 'string',  # the label; null where it was dropped or not known
    'suite': 'string',  # of the evaluation; null of a round of training
    'round': 'int32',
    'sample': 'int32',  # number of the path, 0 .. N - 1; one that was given up undrawn has no row
    'tokens': 'list<int32>',  # end of text included
    'length': 'int32',  # tokens
    'text': 'string',
    'log_prob': 'float32',  # of the whole path under the untempered model, in nats
    'ended': 'bool',  # false: cut off at the length limit
    'answer': 'string',  # canonical; '' where none was found
    'found': 'bool',
    'voted': 'bool',  # its answer counted
    'reward': 'float32',
    'kept': 'bool',  # trained on; of an evaluation: would be
    'weight': 'float32',  # ... with this weight
    'formats': 'list<string>',  # ... in these formats
    'chosen': 'string',  # the consolidated answer of the question; '' where there is none
    'vote_share': 'float32',
    'votes': 'float32',
    'model': 'string',  # fingerprint of the parameters that drew the path
    'seed': 'int64',  # of the run
}
SHOWN = tuple(name for name in COLUMNS if name not in ('suite', 'tokens', 'formats', 'model', 'seed'))
ABOUT = b't5x_selfimprove'  # key of what a file says of itself


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where samples come from: what all rows of a file share."""

    round: int
    seed: int
    model: str  # fingerprint of the parameters
    suite: str | None = None  # of an evaluation; None: a round of training
    formats: tuple[str, ...] = ()  # that kept paths were trained in


def schema() -> Any:
    """The columns as pyarrow has them."""
    import pyarrow

    types = {'list<int32>': pyarrow.list_(pyarrow.int32()), 'list<string>': pyarrow.list_(pyarrow.string())}
    kind = lambda name: types.get(name) or pyarrow.type_for_alias(name)  # noqa: E731
    return pyarrow.schema([(column, kind(name)) for column, name in COLUMNS.items()])


def table(
    items: Sequence[Item],
    samples: Samples,
    verdict: Verdict,
    vocabulary: Vocabulary,
    labels: bool,
    origin: Origin,
) -> Any:
    """The paths of some questions as a pyarrow table.

    Args:
      items: the questions, in the order of the samples; what is behind them is left out.
      samples: S = Q * N samples as NumPy arrays.
      verdict: their verdict.
      vocabulary: spells the tokens.
      labels: whether the labels of the items are written ('gold'); never for unlabelled questions.
      origin: what all rows share.
    """
    import pyarrow

    told = lines(items, samples, verdict, vocabulary, labels)
    count = samples.ended.shape[0] // verdict.share.shape[0]
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for number, question in enumerate(told):
        rows = drawn_rows(number, count, samples)
        for row, path in zip(rows, question['paths'], strict=True):
            one = {
                'question_id': question['id'],
                'question': question['question'],
                'gold': question['gold'],
                'suite': origin.suite,
                'round': origin.round,
                'sample': row - number * count,
                'tokens': samples.tokens[row][samples.mask[row]],
                'length': path['tokens'],
                'text': path['text'],
                'log_prob': float(samples.log_probs[row].sum()),
                'ended': path['ended'],
                'answer': path['answer'],
                'found': path['found'],
                'voted': bool(verdict.voted[row]),
                'reward': float(verdict.reward[row]),
                'kept': bool(verdict.keep[row] > 0),
                'weight': float(verdict.keep[row]),
                'formats': list(origin.formats) if verdict.keep[row] > 0 else [],
                'chosen': question['chosen'],
                'vote_share': float(verdict.share[number]),
                'votes': float(verdict.votes[number]),
                'model': origin.model,
                'seed': origin.seed,
            }
            for name, value in one.items():
                columns[name].append(value)
    about = {'questions': len(told), 'text_bytes': sum(len(text.encode()) for text in columns['text'])}
    return pyarrow.table(columns, schema().with_metadata({ABOUT: json.dumps(about).encode()}))


def write(path: Path, paths: Any) -> None:
    """Writes a table as a Parquet file, whole or not at all. Raises OSError where it cannot be written."""
    import pyarrow.parquet

    with files.written(path) as file:
        pyarrow.parquet.write_table(paths, file, compression='zstd')


def about(path: Path) -> dict[str, int]:
    """What a file of samples says of itself: `questions`, and `text_bytes` of all its paths.

    Raises:
      ValueError: it is no file of samples.
      OSError: it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        said = (pyarrow.parquet.read_schema(path).metadata or {}).get(ABOUT)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f'{path} is no Parquet file: {error}') from error
    if said is None:
        raise ValueError(f'{path} is no file of a sample store; those are written by runs of self-improvement')
    return json.loads(said)


def read(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A file of samples as a pyarrow table, or some columns of it. Raises as `about` does."""
    import pyarrow.parquet

    about(path)
    return pyarrow.parquet.ParquetFile(path).read(columns=None if columns is None else list(columns))


def questions(paths: Any, wanted: set[int] | None = None) -> Iterator[dict[str, Any]]:
    """The questions of a table with their paths, as `lines` gives them.

    Args:
      paths: a table of `read`, of the columns `SHOWN` at least.
      wanted: numbers of questions, counted from 0; None = all.
    """
    numbers = paths.column('sample').to_numpy()
    ids = paths.column('question_id').to_numpy(zero_copy_only=False)
    opens = np.ones(len(ids), bool)
    opens[1:] = (ids[1:] != ids[:-1]) | (numbers[1:] <= numbers[:-1])
    ends = itertools.pairwise([*np.flatnonzero(opens).tolist(), len(ids)])
    for number, (start, stop) in enumerate(ends):
        if wanted is None or number in wanted:
            yield _question(paths.slice(start, stop - start).to_pylist())


def _question(rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    return {
        'id': first['question_id'],
        'question': first['question'],
        'gold': first['gold'],
        'chosen': first['chosen'],
        'share': round(first['vote_share'], 4),
        'votes': round(first['votes'], 4),
        'kept_paths': sum(row['kept'] for row in rows),
        'paths': [
            {
                'text': row['text'],
                'answer': row['answer'],
                'found': row['found'],
                'ended': row['ended'],
                'tokens': row['length'],
                'log_prob': round(row['log_prob'], 4),
                'reward': round(row['reward'], 4),
                'kept': round(row['weight'], 4),
            }
            for row in rows
        ],
    }


def lines(
    items: Sequence[Item], samples: Samples, verdict: Verdict, vocabulary: Vocabulary, labels: bool
) -> list[dict[str, Any]]:
    """Questions with their paths as dictionaries; arguments as of `table`."""
    count = samples.ended.shape[0] // verdict.share.shape[0]
    found = []
    for number, item in enumerate(items):
        own = drawn_rows(number, count, samples)
        found.append(
            {
                'id': item.id,
                'question': item.question,
                'gold': item.answer if labels else None,
                'chosen': spelled(verdict.chosen[number]),
                'share': round(float(verdict.share[number]), 4),
                'votes': round(float(verdict.votes[number]), 4),
                'kept_paths': int((verdict.keep[own] > 0).sum()),
                'paths': [path(row, samples, verdict, vocabulary) for row in own],
            }
        )
    return found


def drawn_rows(number: int, count: int, samples: Samples) -> list[int]:
    """The rows of the paths of question `number`, without those that were given up before they were drawn."""
    rows = range(number * count, (number + 1) * count)
    return [row for row in rows if samples.drawn is None or samples.drawn[row]]


def path(row: int, samples: Samples, verdict: Verdict, vocabulary: Vocabulary) -> dict[str, Any]:
    """One sampled path as a dictionary."""
    tokens = samples.tokens[row][samples.mask[row]]
    return {
        'text': vocabulary.decode(tokens),
        'answer': spelled(verdict.answer[row]),
        'found': bool(verdict.found[row]),
        'ended': bool(samples.ended[row]),
        'tokens': len(tokens),
        'log_prob': round(float(samples.log_probs[row].sum()), 4),
        'reward': round(float(verdict.reward[row]), 4),
        'kept': round(float(verdict.keep[row]), 4),
    }


def spelled(answer: np.ndarray) -> str:
    """Canonical bytes as text."""
    return bytes(answer[answer > 0]).decode('utf-8', errors='replace')
