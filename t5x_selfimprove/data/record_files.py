"""The records of a file in any format: how many there are, where each is, and any of them without the others.

.jsonl   JSON lines: one object a line           only offsets stay in memory, 24 bytes a record
.csv     RFC 4180, the names in the first record  ... the same
.tsv     fields parted by tabs, without quoting   ... the same
.parquet                                          ... two row groups, of the columns that are asked for
.json    one JSON document, an array              the whole of it stays in memory
"""

import csv
import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from t5x_selfimprove.data.fields import value_at
from t5x_selfimprove.data.lines import FileVersion, LineIndex, line_index

FORMATS = ('.jsonl', '.csv', '.tsv', '.parquet', '.json')
Unfold = Callable[[Any], list[Any]]


class Records(Protocol):
    """The records of one file; equal only to itself, so that it may be a key of what is cached about it."""

    path: str

    def __len__(self) -> int: ...

    def place(self, row: int) -> str:
        """Where record `row` (from 0) is, for people: 'line 7'."""
        ...

    def read(self, rows: np.ndarray) -> list[Any]:
        """These records, int64[m], in the order asked for; a ValueError stands for one that cannot be read."""
        ...


def array_of(document: Any) -> list[Any]:
    """The records of a JSON document that is an array of them. Raises ValueError for another document."""
    if not isinstance(document, list):
        raise ValueError(f'the document must be an array of records; it is a {type(document).__name__}')
    return document


@dataclasses.dataclass(frozen=True)
class ArrayAt:
    """Finds the array of records inside a JSON document: 'examples', 'data.questions'."""

    path: str

    def __call__(self, document: Any) -> list[Any]:
        return array_of(value_at(document, self.path))


@functools.lru_cache(maxsize=16)
def open_records(
    version: FileVersion, form: str, columns: frozenset[str] | None = None, unfold: Unfold = array_of
) -> Records:
    """Looks through a file for its records.

    Args:
      version: the file.
      form: one of `FORMATS`.
      columns: the names that are read of a Parquet file where all of them are there; None = all.
      unfold: makes the list of records of a JSON document.

    Raises:
      ValueError: the file as a whole is not of the format.
    """
    if form == '.jsonl':
        return JsonLineRecords(version.path, line_index(version))
    if form in ('.csv', '.tsv'):
        return delimited(version, quoted=form == '.csv')
    if form == '.parquet':
        return parquet(version, columns)
    return document(version, unfold)


def form_of(path: str, owner: str) -> str:
    """The format that the name of a file tells. Raises ValueError where it tells none."""
    suffix = pathlib.PurePath(path).suffix.lower()
    suffix = {'.ndjson': '.jsonl', '.pq': '.parquet', '.txt': '.tsv'}.get(suffix, suffix)
    if suffix not in FORMATS:
        raise ValueError(f'{owner}: the name of {path!r} must end in one of {", ".join(FORMATS)}')
    return suffix


@dataclasses.dataclass(frozen=True, eq=False)
class JsonLineRecords:
    """One JSON value a line; blank lines do not count."""

    path: str
    index: LineIndex

    def __len__(self) -> int:
        return len(self.index)

    def place(self, row: int) -> str:
        return f'line {self.index.number[row]}'

    def read(self, rows: np.ndarray) -> list[Any]:
        return [_json(line) for line in self.index.read(rows)]


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode('utf-8'))
    except UnicodeDecodeError as error:
        return ValueError(f'not UTF-8 text (byte {error.start + 1} of the line)')
    except json.JSONDecodeError as error:
        return ValueError(f'not JSON: {error.msg} at column {error.colno}: {line[:60]!r}')
    except RecursionError:
        return ValueError('not readable as JSON: nested too deeply')


@dataclasses.dataclass(frozen=True, eq=False)
class DelimitedRecords:
    """Lines of texts parted by commas or tabs; the first of them holds the names."""

    path: str
    index: LineIndex
    names: tuple[str, ...]
    quoted: bool

    def __len__(self) -> int:
        return len(self.index) - 1

    def place(self, row: int) -> str:
        return f'line {self.index.number[row + 1]}'

    def read(self, rows: np.ndarray) -> list[Any]:
        return [self._record(line) for line in self.index.read(rows + 1)]

    def _record(self, line: bytes) -> Any:
        values = _values(line, self.quoted)
        if isinstance(values, ValueError):
            return values
        if len(values) != len(self.names):
            return ValueError(f'there are {len(values)} fields; the first line names {len(self.names)}: {line[:60]!r}')
        return dict(zip(self.names, values, strict=True))


def delimited(version: FileVersion, quoted: bool) -> DelimitedRecords:
    """The records of a CSV file (quoted), or of one whose fields are parted by tabs. Raises ValueError."""
    index = line_index(version, quoted)
    if not len(index):
        raise ValueError(f'{version.path!r} has no first line with the names of the fields')
    names = _values(index.read(np.array([0]))[0], quoted)
    if isinstance(names, ValueError) or len(set(names)) < len(names):
        what = names if isinstance(names, ValueError) else 'it names a field twice'
        raise ValueError(f'{version.path}, line {index.number[0]}: {what}: the first line must name the fields')
    return DelimitedRecords(version.path, index, tuple(names), quoted)


def _values(line: bytes, quoted: bool) -> Any:
    try:
        text = line.decode('utf-8')
        return next(csv.reader(io.StringIO(text, newline=''), strict=True)) if quoted else text.split('\t')
    except UnicodeDecodeError as error:
        return ValueError(f'not UTF-8 text (byte {error.start + 1} of the line)')
    except csv.Error as error:
        return ValueError(f'not CSV: {error}: {line[:60]!r}')


@dataclasses.dataclass(frozen=True, eq=False)
class ParquetRecords:
    """Rows of a Parquet file. Rows asked for in any order cost a reading of every row group that they are in."""

    version: FileVersion
    first: np.ndarray  # int64[groups + 1]: the first row of each row group, and the number of rows
    columns: tuple[str, ...] | None

    @property
    def path(self) -> str:
        return self.version.path

    def __len__(self) -> int:
        return int(self.first[-1])

    def place(self, row: int) -> str:
        return f'row {row + 1}'

    def read(self, rows: np.ndarray) -> list[Any]:
        """These rows, int64[m], in the order asked for; each row group is read once."""
        found: list[Any] = [None] * len(rows)
        groups = np.searchsorted(self.first, rows, side='right') - 1
        for group in np.unique(groups).tolist():
            where = np.flatnonzero(groups == group)
            table = _row_group(self.version, group, self.columns)
            for place, record in zip(where, table.take(rows[where] - self.first[group]).to_pylist(), strict=True):
                found[place] = record
        return found


def parquet(version: FileVersion, columns: frozenset[str] | None) -> ParquetRecords:
    """The rows of a Parquet file. Raises ValueError where it is none."""
    file = _parquet_file(version)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    there = set(file.schema_arrow.names)
    # A field that is not there is told beside all that are.
    chosen = columns and columns & there
    complete = columns is not None and all(name in there or name.split('.')[0] in there for name in columns)
    return ParquetRecords(version, np.cumsum([0, *sizes]), tuple(sorted(chosen)) if complete else None)


def _parquet_file(version: FileVersion) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(version.path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f'{version.path!r} is no Parquet file: {error}') from None


@functools.lru_cache(maxsize=2)
def _row_group(version: FileVersion, group: int, columns: tuple[str, ...] | None) -> Any:
    return _parquet_file(version).read_row_group(group, None if columns is None else list(columns))


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentRecords:
    """The elements of one JSON document."""

    path: str
    elements: list[Any]

    def __len__(self) -> int:
        return len(self.elements)

    def place(self, row: int) -> str:
        return f'element {row + 1}'

    def read(self, rows: np.ndarray) -> list[Any]:
        return [self.elements[row] for row in rows.tolist()]


def document(version: FileVersion, unfold: Unfold) -> DocumentRecords:
    """The records in a JSON document. Raises ValueError that names the line where it is none."""
    try:
        held = json.loads(pathlib.Path(version.path).read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f', line {error.lineno}' if isinstance(error, json.JSONDecodeError) else ''
        hint = '. Where each line holds an object, it is JSON lines' if 'Extra data' in str(error) else ''
        raise ValueError(f'{version.path}{where}: not JSON: {error}{hint}') from None
    try:
        return DocumentRecords(version.path, unfold(held))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{version.path}: {error}') from None
