"""Questions from files on disk: JSON lines, CSV, Parquet, JSON, with any field names.

A bank is where the file is and what is read of it; it holds nothing. Positions are exact: position p is the same item
in every process and after every restart, and reading it does not read what comes before.
"""

import dataclasses
import functools
import re
from typing import Any, Protocol

import numpy as np

from t5x_selfimprove.data.fields import Fields
from t5x_selfimprove.data.items import Item, check_choice, check_integer, epoch_indices
from t5x_selfimprove.data.lines import file_version, window
from t5x_selfimprove.data.record_files import ArrayAt, Records, array_of, open_records

_SCANNED = 4096  # records read at a time when the whole file is looked through
_REASONS_KEPT = 10


class Reader(Protocol):
    """What makes an item of a record; hashable, so that what was found with it can be kept."""

    @property
    def filters(self) -> bool:
        """Whether some of the records are none of its own."""
        ...

    def parse(self, record: Any) -> Item | None:
        """The item; None for a record that is none of its own. Raises ValueError that says what is wrong."""
        ...


@dataclasses.dataclass(frozen=True)
class FileBank:
    """Bank of the records of a file; what they are is said by the classes made of this one.

    Attributes:
      path: of the file, from the working directory or absolute.
      on_error: 'refuse' = a bad record is an error; 'skip' = bad ones are left out and counted in `skipped`.
      shuffle_seed: every epoch in an order of its own; None = the order of the file.
      start: records to leave out at the beginning (of the good ones).
      count: records to use after `start`; None = all that are left.
    """

    path: str
    on_error: str = dataclasses.field(default='refuse', kw_only=True)
    shuffle_seed: int | None = dataclasses.field(default=None, kw_only=True)
    start: int = dataclasses.field(default=0, kw_only=True)
    count: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        owner = type(self).__name__
        check_choice(f'{owner}.on_error', self.on_error, ('refuse', 'skip'))
        check_integer(f'{owner}.start', self.start, 0)
        if self.count is not None:
            check_integer(f'{owner}.count', self.count, 1)
        if self.shuffle_seed is not None:
            check_integer(f'{owner}.shuffle_seed', self.shuffle_seed, 0, 2**63 - 1)

    def reader(self) -> Reader:
        """What makes items of the records."""
        raise NotImplementedError

    def records(self) -> Records:
        """The records of the file as it is. Raises FileNotFoundError; ValueError where it is of another format."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        return len(self._rows())

    @property
    def skipped(self) -> int:
        """Bad records left out; 0 unless on_error is 'skip'. Looks through the whole file the first time."""
        return self._scan().skipped if self.on_error == 'skip' else 0

    @property
    def skipped_reasons(self) -> tuple[str, ...]:
        """What was wrong with the first few records left out."""
        return self._scan().reasons if self.on_error == 'skip' else ()

    def take(self, position: int, count: int) -> list[Item]:
        """Items position .. position + count - 1, going round.

        Raises:
          ValueError: a bad record (with on_error='refuse'); names file and line.
          FileNotFoundError: there is no such file.
        """
        rows = self._rows()
        return _parse(self.records(), rows[epoch_indices(position, count, len(rows), self.shuffle_seed)], self.reader())

    def check(self) -> list[str]:
        """Looks through all records in use, a few seconds a million, and raises on the first bad one.

        Returns:
          with on_error='skip' how many bad records of the file are left out, and the first; nothing where there are
          none.
        """
        rows = self._rows()
        if self.on_error == 'refuse':
            _check(self.records(), rows, self.reader())
        lines = f'{self.skipped} bad lines' if self.skipped > 1 else 'one bad line'
        return [f'{lines}: {self.skipped_reasons[0]}' + ' ...' * (self.skipped > 1)] if self.skipped else []

    def _scan(self) -> '_Scan':
        return _scan(self.records(), self.reader(), self.on_error == 'skip')

    def _rows(self) -> '_Rows':
        """Numbers of the records in use."""
        remark, good = '', None
        if self.on_error == 'skip' or self.reader().filters:
            scan = self._scan()
            good = scan.good
            remark = f' ({scan.skipped} bad lines were skipped, the first: {scan.reasons[0]})' if scan.skipped else ''
        total = len(self.records()) if good is None else len(good)
        return _Rows(good, *window(type(self).__name__, self.path, total, self.start, self.count, remark))


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """Elements start .. stop - 1 of an array of row numbers, int64[m], or of 0, 1, 2, ... where there is none."""

    among: np.ndarray | None
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, which: np.ndarray) -> np.ndarray:
        return which + self.start if self.among is None else self.among[which + self.start]


@dataclasses.dataclass(frozen=True)
class MappedFile(FileBank):
    """Bank of the records of a file, with a mapping of fields.

    A field is given by its name, or by a path to a nested one: 'question.stem', 'answers.0'.

    Attributes:
      question: field that holds the question, or a text with fields in braces: '{passage}\\n{question}'.
      answer: field that holds the label; None = there are no labels.
      rationale: field that holds the steps to the answer; None = there are none, or they are cut from `answer`.
      choices: field that holds the choices: texts, or objects with label and text. They are put behind the question
        as lettered options, and the answer is the letter of its label. None = there are none.
      answer_after: the answer field holds rationale and label, parted by the last such string ('####' in GSM8K).
      drop_pattern: regular expression; what it matches is cut from rationale and answer (r'<<.*?>>' in GSM8K).
    """

    question: str = 'question'
    answer: str | None = 'answer'
    rationale: str | None = None
    choices: str | None = None
    answer_after: str | None = None
    drop_pattern: str | None = None

    def __post_init__(self):
        super().__post_init__()
        owner = type(self).__name__
        for name in ('question', 'answer', 'rationale', 'choices', 'answer_after'):
            value = self.__dict__[name]
            if not (isinstance(value, str) and value) and (name == 'question' or value is not None):
                raise ValueError(f'{owner}.{name} must be a word; it is {value!r}')
        if self.answer_after is not None and (self.answer is None or self.rationale is not None):
            raise ValueError(
                f'{owner}.answer_after cuts rationale and label out of the answer field: it needs answer to be set '
                f'and rationale to be None; they are {self.answer!r} and {self.rationale!r}'
            )
        if self.drop_pattern is not None:
            try:
                re.compile(self.drop_pattern)
            except (re.error, TypeError) as error:
                raise ValueError(
                    f'{owner}.drop_pattern {self.drop_pattern!r} is no regular expression: {error}'
                ) from error

    def reader(self) -> Fields:
        """The mapping."""
        return Fields(self.question, self.answer, self.rationale, self.choices, self.answer_after, self.drop_pattern)


@dataclasses.dataclass(frozen=True)
class JsonLines(MappedFile):
    """Bank of the objects in a JSON-lines file. Blank lines do not count; only line offsets stay in memory."""

    def records(self) -> Records:
        return open_records(file_version(self.path, 'JsonLines'), '.jsonl')


@dataclasses.dataclass(frozen=True)
class Csv(MappedFile):
    """Bank of the records of a CSV file (RFC 4180), whose first line names the fields.

    Attributes:
      tabs: fields are parted by tabs and nothing is quoted, as in the files of GLUE.
    """

    tabs: bool = False

    def records(self) -> Records:
        return open_records(file_version(self.path, 'Csv'), '.tsv' if self.tabs else '.csv')


@dataclasses.dataclass(frozen=True)
class Parquet(MappedFile):
    """Bank of the rows of a Parquet file. In memory are two row groups at most, of the columns that are read.

    Items in a shuffled order come from all row groups: write them small (pyarrow's row_group_size), or shuffle the
    file.
    """

    def records(self) -> Records:
        return open_records(file_version(self.path, 'Parquet'), '.parquet', self.reader().columns())


@dataclasses.dataclass(frozen=True)
class Json(MappedFile):
    """Bank of the elements of an array in one JSON document, all of which stays in memory.

    Attributes:
      array: path to the array in the document ('examples'); None = the document is the array.
    """

    array: str | None = None

    def records(self) -> Records:
        """The elements. Raises as `FileBank.records` does, and ValueError where there is no such array."""
        unfold = array_of if self.array is None else ArrayAt(self.array)
        return open_records(file_version(self.path, 'Json'), '.json', None, unfold)


def _parse(records: Records, rows: np.ndarray, reader: Reader) -> list[Item]:
    items = []
    for row, record in zip(rows.tolist(), records.read(rows), strict=True):
        found = _item(record, reader)
        if isinstance(found, ValueError):
            raise ValueError(
                f'{records.path}, {records.place(row)}: {found}. Mend the line or the field mapping, or set '
                "on_error='skip' to leave such lines out and count them"
            )
        items.append(found)
    return items


def _item(record: Any, reader: Reader) -> Item | ValueError | None:
    if isinstance(record, ValueError):
        return record
    try:
        return reader.parse(record)
    except ValueError as error:
        return error


def _check(records: Records, rows: _Rows, reader: Reader) -> None:
    if rows.among is None:
        _check_range(records, rows.start, rows.stop, reader)
    else:  # few: those of a file that were asked for
        _parse(records, rows[np.arange(len(rows))], reader)


@functools.lru_cache(maxsize=16)
def _check_range(records: Records, start: int, stop: int, reader: Reader) -> None:
    for first in range(start, stop, _SCANNED):
        _parse(records, np.arange(first, min(stop, first + _SCANNED)), reader)


@dataclasses.dataclass(frozen=True, eq=False)
class _Scan:
    """Numbers of the records to use (int64), how many bad ones are left out, what was wrong with the first of these."""

    good: np.ndarray
    skipped: int
    reasons: tuple[str, ...]


@functools.lru_cache(maxsize=8)
def _scan(records: Records, reader: Reader, skip: bool) -> _Scan:
    """Looks at all records: those of others are left out, and bad ones where they are to be skipped."""
    good = np.ones(len(records), bool)
    skipped, reasons = 0, []
    for first in range(0, len(records), _SCANNED):
        rows = np.arange(first, min(len(records), first + _SCANNED))
        for row, record in zip(rows.tolist(), records.read(rows), strict=True):
            found = _item(record, reader)
            bad = isinstance(found, ValueError)
            good[row] = found is not None and not (bad and skip)
            skipped += bad and skip
            if bad and skip and len(reasons) < _REASONS_KEPT:
                reasons.append(f'{records.path}, {records.place(row)}: {found}')
    return _Scan(np.flatnonzero(good), skipped, tuple(reasons))
