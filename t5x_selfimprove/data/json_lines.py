"""Questions from a JSON-lines file: one object a line, any field names."""

import dataclasses
import functools
import json
import math
import re
from typing import Any

import numpy as np

from t5x_selfimprove.data.items import Item, check_choice, check_integer, epoch_indices, make_item
from t5x_selfimprove.data.lines import FileVersion, LineIndex, file_version, line_index, window

_SCANNED = 4096  # lines read at a time when the whole file is looked through
_REASONS_KEPT = 10


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """Bank of the objects in a JSON-lines file. Blank lines do not count; nothing but line offsets stays in memory.

    Attributes:
      path: of the file, from the working directory or absolute.
      question: field that holds the question.
      answer: field that holds the label; None = there are no labels.
      rationale: field that holds the steps to the answer; None = there are none, or they are cut from `answer`.
      answer_after: the answer field holds rationale and label, parted by the last such string ('####' in GSM8K).
      drop_pattern: regular expression; what it matches is cut from rationale and answer (r'<<.*?>>' in GSM8K).
      on_error: 'refuse' = a bad line is an error; 'skip' = bad lines are left out and counted in `skipped`.
      shuffle_seed: every epoch in an order of its own; None = the order of the file.
      start: lines to leave out at the beginning (of the good ones).
      count: lines to use after `start`; None = all that are left.
    """

    path: str
    question: str = 'question'
    answer: str | None = 'answer'
    rationale: str | None = None
    answer_after: str | None = None
    drop_pattern: str | None = None
    on_error: str = 'refuse'
    shuffle_seed: int | None = None
    start: int = 0
    count: int | None = None

    def __post_init__(self):
        check_choice('JsonLines.on_error', self.on_error, ('refuse', 'skip'))
        check_integer('JsonLines.start', self.start, 0)
        if self.count is not None:
            check_integer('JsonLines.count', self.count, 1)
        if self.shuffle_seed is not None:
            check_integer('JsonLines.shuffle_seed', self.shuffle_seed, 0, 2**63 - 1)
        for name in ('question', 'answer', 'rationale', 'answer_after'):
            value = self.__dict__[name]
            if not (isinstance(value, str) and value) and (name == 'question' or value is not None):
                raise ValueError(f'JsonLines.{name} must be a word; it is {value!r}')
        if self.answer_after is not None and (self.answer is None or self.rationale is not None):
            raise ValueError(
                'JsonLines.answer_after cuts rationale and label out of the answer field: it needs answer to be set '
                f'and rationale to be None; they are {self.answer!r} and {self.rationale!r}'
            )
        if self.drop_pattern is not None:
            try:
                re.compile(self.drop_pattern)
            except (re.error, TypeError) as error:
                raise ValueError(
                    f'JsonLines.drop_pattern {self.drop_pattern!r} is no regular expression: {error}'
                ) from error

    @property
    def size(self) -> int:
        return len(self._rows())

    @property
    def skipped(self) -> int:
        """Bad lines left out; 0 unless on_error is 'skip'. Looks through the whole file the first time."""
        return self._scan()[1] if self.on_error == 'skip' else 0

    @property
    def skipped_reasons(self) -> tuple[str, ...]:
        """What was wrong with the first few lines left out."""
        return self._scan()[2] if self.on_error == 'skip' else ()

    def take(self, position: int, count: int) -> list[Item]:
        """Items position .. position + count - 1, going round.

        Raises:
          ValueError: a bad line (with on_error='refuse'); names file and line number.
          FileNotFoundError: there is no such file.
        """
        rows = self._rows()
        rows = rows[epoch_indices(position, count, len(rows), self.shuffle_seed)]
        return _parse_rows(self._index(), rows, self._fields())

    def check(self) -> list[str]:
        """Looks through all lines in use, about 5 microseconds a line, and raises on the first bad one.

        Returns:
          with on_error='skip' how many bad lines of the file are left out, and the first; nothing where there are none.
        """
        rows = self._rows()
        if self.on_error == 'refuse':
            _check_rows(file_version(self.path, 'JsonLines'), int(rows[0]), int(rows[-1]) + 1, self._fields())
        lines = f'{self.skipped} bad lines' if self.skipped > 1 else 'one bad line'
        return [f'{lines}: {self.skipped_reasons[0]}' + ' ...' * (self.skipped > 1)] if self.skipped else []

    def _index(self) -> LineIndex:
        return line_index(file_version(self.path, 'JsonLines'))

    def _scan(self) -> tuple[np.ndarray, int, tuple[str, ...]]:
        return _scan(file_version(self.path, 'JsonLines'), self._fields())

    def _rows(self) -> np.ndarray:
        """Rows of the line index in use, int64[size]."""
        rows, remark = np.arange(len(self._index())), ''
        if self.on_error == 'skip':
            rows, skipped, reasons = self._scan()
            remark = f' ({skipped} bad lines were skipped, the first: {reasons[0]})' if skipped else ''
        start, stop = window('JsonLines', self.path, len(rows), self.start, self.count, remark)
        return rows[start:stop]

    def _fields(self) -> '_Fields':
        return _Fields(self.question, self.answer, self.rationale, self.answer_after, self.drop_pattern)


@dataclasses.dataclass(frozen=True)
class _Fields:
    """What is read from a line: the part of `JsonLines` that a parsed line depends on."""

    question: str
    answer: str | None
    rationale: str | None
    answer_after: str | None
    drop_pattern: str | None

    def parse(self, line: bytes) -> Item:
        """Raises ValueError that says what is wrong with the line."""
        record = _object(line)
        question = _text(record, self.question)
        if not question:
            raise ValueError(f'the field {self.question!r} is empty')
        answer = None if self.answer is None else _text(record, self.answer)
        rationale = None if self.rationale is None else _text(record, self.rationale)
        if self.answer_after is not None:
            rationale, mark, answer = answer.rpartition(self.answer_after)
            if not mark:
                raise ValueError(f'the field {self.answer!r} has no {self.answer_after!r} in it: {answer[-60:]!r}')
        answer, rationale = self._clean(answer), self._clean(rationale)
        if answer == '':
            raise ValueError(f'the field {self.answer!r} holds no answer')
        return make_item(question, rationale or None, answer)

    def _clean(self, text: str | None) -> str | None:
        if text is None or self.drop_pattern is None:
            return text and text.strip()
        return re.sub(self.drop_pattern, '', text).strip()


def _object(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode('utf-8'))
    except UnicodeDecodeError as error:
        raise ValueError(f'not UTF-8 text (byte {error.start + 1} of the line)') from None
    except json.JSONDecodeError as error:
        raise ValueError(f'not JSON: {error.msg} at column {error.colno}: {line[:60]!r}') from None
    except RecursionError:
        raise ValueError('not readable as JSON: nested too deeply') from None
    if not isinstance(record, dict):
        raise ValueError(
            f'a line must hold a JSON object; this one holds a {type(record).__name__}. '
            'Where the file is one JSON array, write one element a line'
        )
    return record


def _text(record: dict[str, Any], field: str) -> str:
    """The field as text, without space round it. 3 -> '3', 2.0 -> '2', 0.5 -> '0.5'."""
    if field not in record:
        there = ', '.join(map(repr, record)) or 'none'
        raise ValueError(f'there is no field {field!r}; the fields there are: {there}')
    value = record[field]
    if isinstance(value, float) and math.isfinite(value):
        value = int(value) if value.is_integer() else value
    elif isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f'the field {field!r} must be text or a number; it is {json.dumps(value)[:60]}')
    return str(value).strip()


def _parse_rows(index: LineIndex, rows: np.ndarray, fields: _Fields) -> list[Item]:
    items = []
    for row, line in zip(rows.tolist(), index.read(rows), strict=True):
        try:
            items.append(fields.parse(line))
        except ValueError as error:
            raise ValueError(
                f'{index.path}, line {index.number[row]}: {error}. '
                "Mend the line or the field mapping, or set on_error='skip' to leave such lines out and count them"
            ) from None
    return items


@functools.lru_cache(maxsize=16)
def _check_rows(version: FileVersion, start: int, stop: int, fields: _Fields) -> None:
    index = line_index(version)
    for first in range(start, stop, _SCANNED):
        _parse_rows(index, np.arange(first, min(stop, first + _SCANNED)), fields)


@functools.lru_cache(maxsize=8)
def _scan(version: FileVersion, fields: _Fields) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Rows of the good lines (int64), the number of bad ones, and what was wrong with the first of these."""
    index = line_index(version)
    good = np.ones(len(index), bool)
    reasons = []
    for first in range(0, len(index), _SCANNED):
        rows = np.arange(first, min(len(index), first + _SCANNED))
        for row, line in zip(rows.tolist(), index.read(rows), strict=True):
            try:
                fields.parse(line)
            except ValueError as error:
                good[row] = False
                if len(reasons) < _REASONS_KEPT:
                    reasons.append(f'{index.path}, line {index.number[row]}: {error}')
    return np.flatnonzero(good), int((~good).sum()), tuple(reasons)
