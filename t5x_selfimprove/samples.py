"""The command `samples`: prints, or greps through, the paths that a run has sampled and stored."""

import argparse
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t5x_selfimprove.data import store
from t5x_selfimprove.display import percent

FILE = re.compile(r'(round|evaluation)_(?:\w+_)?(\d+)\.parquet')


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which paths are to be printed. Texts are regular expressions; case does not matter.

    Raises:
      ValueError: a text is no regular expression.
    """

    question: str | None = None  # in the question, or its id
    text: str | None = None  # in the path
    answer: str | None = None  # the canonical answer
    round: int | None = None
    evaluation: bool = False  # paths of evaluations, not of training
    suite: str | None = None
    kept: bool = False
    wrong: bool = False  # where there is a label, and the path has another answer

    def __post_init__(self):
        for field in ('question', 'text'):
            try:
                re.compile(vars(self)[field] or '')
            except re.error as error:
                raise ValueError(f'--{field} {vars(self)[field]!r} is no regular expression: {error}') from error

    def files(self, directory: Path) -> list[Path]:
        """The files to look into, by round.

        Raises:
          FileNotFoundError: the run has stored no such samples.
        """
        kind = 'evaluation' if self.evaluation or self.suite else 'round'
        there = {path: FILE.fullmatch(path.name) for path in (directory / 'samples').glob('*.parquet')}
        numbers = {path: int(name[2]) for path, name in there.items() if name and name[1] == kind}
        found = [path for path, number in numbers.items() if self.round in (None, number)]
        if not found:
            rounds = ', '.join(map(str, sorted(set(numbers.values())))) or 'none'
            raise FileNotFoundError(f'{directory} holds no such samples; of this kind there are rounds: {rounds}')
        return sorted(found, key=lambda path: (numbers[path], path.name))

    def of_question(self, row: dict[str, Any]) -> bool:
        """Whether a path's question is asked for."""
        named = self.question is None or self.question == row['question_id']
        return (named or re.search(self.question, row['question'], re.IGNORECASE) is not None) and (
            self.suite is None or self.suite == row['suite']
        )

    def of_path(self, row: dict[str, Any]) -> bool:
        """Whether a path of such a question is asked for."""
        return (
            (self.text is None or re.search(self.text, row['text'], re.IGNORECASE) is not None)
            and (self.answer is None or self.answer == row['answer'])
            and (row['kept'] or not self.kept)
            and (not self.wrong or (row['gold'] is not None and row['gold'] != row['answer']))
        )

    def find(self, directory: Path) -> Iterator[list[dict[str, Any]]]:
        """The paths that are asked for, a list of rows a question."""
        for path in self.files(directory):
            last: list[dict[str, Any]] = []
            for row in store.read(path).to_pylist():
                if last and (row['question_id'] != last[-1]['question_id'] or row['sample'] <= last[-1]['sample']):
                    yield last
                    last = []
                if self.of_question(row) and self.of_path(row):
                    last.append(row)
            if last:
                yield last


def describe(rows: Sequence[dict[str, Any]]) -> str:
    """A question and some of its paths as text."""
    first = rows[0]
    of = f'round {first["round"]}' if first['suite'] is None else f'{first["suite"]}, after round {first["round"]}'
    label = '' if first['gold'] is None else f', label {first["gold"]}'
    chosen = f'vote {first["chosen"] or "-"} ({percent(first["vote_share"], 0)} % of {first["votes"]:g})'
    told = [f'{first["question_id"]}  {of}: {chosen}{label}', f'  {first["question"].strip()}']
    for row in rows:
        marks = [f'answer {row["answer"]}' if row['found'] else 'no answer', f'{row["log_prob"]:.2f} nats']
        marks += ['kept: ' + ', '.join(row['formats'])] * (row['kept'] and bool(row['formats']))
        marks += ['truncated'] * (not row['ended'])
        told.append(f'  {row["sample"]:3d}  [{"; ".join(marks)}]  {row["text"].strip()}')
    return '\n'.join(told)


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = argparse.ArgumentParser(
        prog='python -m t5x_selfimprove samples',
        description='Prints the paths that a run has sampled: of the training questions, or of an evaluation.',
    )
    made.add_argument('directory', type=Path, help='of the run')
    made.add_argument('--question', metavar='TEXT', help='text in the question (a regular expression), or its id')
    made.add_argument('--text', metavar='TEXT', help='text in the path (a regular expression)')
    made.add_argument('--answer', help='canonical answer of the path')
    made.add_argument('--round', type=int)
    made.add_argument('--evaluation', action='store_true', help='paths of the evaluations, not of training')
    made.add_argument('--suite', help='of the evaluation')
    made.add_argument('--kept', action='store_true', help='only paths that were trained on')
    made.add_argument('--wrong', action='store_true', help='only paths with another answer than the label')
    made.add_argument('--limit', type=int, default=20, help='questions printed at most (default 20)')
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0, or 1 where nothing was found.

    Raises:
      ValueError, OSError: there are no such samples, or a text is no regular expression.
    """
    asked = vars(parser().parse_args(argv))
    directory, limit = asked.pop('directory'), asked.pop('limit')
    questions = paths = 0
    for rows in Wanted(**asked).find(directory):
        questions, paths = questions + 1, paths + len(rows)
        if questions <= limit:
            print(describe(rows))
    more = f'; the first {limit} are shown' if questions > limit else ''
    print(f'{paths:,} paths of {questions:,} questions{more}')
    return 0 if paths else 1
