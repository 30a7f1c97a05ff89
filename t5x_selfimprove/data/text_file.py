"""Plain text to model: the lines or paragraphs of a file, as items without a question."""

import dataclasses
import functools
from typing import BinaryIO

import numpy as np

from t5x_selfimprove.data.items import Item, check_choice, check_integer, epoch_indices, make_item
from t5x_selfimprove.data.lines import FileVersion, LineIndex, file_version, line_index, window

UNITS = ('line', 'paragraph')
_CHECKED = 4096  # items read at a time when the whole file is looked through


@dataclasses.dataclass(frozen=True)
class TextFile:
    """Bank of the lines or paragraphs of a UTF-8 text file; each is the rationale of an item with an empty question.

    Attributes:
      path: of the file, from the working directory or absolute.
      unit: 'line', or 'paragraph' = lines up to a blank one. Blank lines are no items.
      max_bytes: a longer unit is cut, after at most as many bytes, before a space where there is one: the parts, put
        together, are the unit. None = units stay whole.
      shuffle_seed: every epoch in an order of its own; None = the order of the file.
      start: items to leave out at the beginning.
      count: items to use after `start`; None = all that are left.
    """

    path: str
    unit: str = 'line'
    max_bytes: int | None = None
    shuffle_seed: int | None = None
    start: int = 0
    count: int | None = None

    def __post_init__(self):
        check_choice('TextFile.unit', self.unit, UNITS)
        check_integer('TextFile.start', self.start, 0)
        if self.max_bytes is not None:
            check_integer('TextFile.max_bytes', self.max_bytes, 8)
        if self.count is not None:
            check_integer('TextFile.count', self.count, 1)
        if self.shuffle_seed is not None:
            check_integer('TextFile.shuffle_seed', self.shuffle_seed, 0, 2**63 - 1)

    @property
    def size(self) -> int:
        """Number of items in use."""
        start, stop = self._window()
        return stop - start

    def take(self, position: int, count: int) -> list[Item]:
        """Items position .. position + count - 1, going round.

        Raises:
          ValueError: bytes that are no UTF-8; names file and line.
          FileNotFoundError: there is no such file.
        """
        start, stop = self._window()
        rows = start + epoch_indices(position, count, stop - start, self.shuffle_seed)
        return _items(self._index(), rows)

    def check(self) -> None:
        """Reads all items in use and raises on the first that is not UTF-8."""
        _check(file_version(self.path, 'TextFile'), self.unit, self.max_bytes, *self._window())

    def _index(self) -> LineIndex:
        return _units(file_version(self.path, 'TextFile'), self.unit, self.max_bytes)

    def _window(self) -> tuple[int, int]:
        return window('TextFile', self.path, len(self._index()), self.start, self.count)


def _items(index: LineIndex, rows: np.ndarray) -> list[Item]:
    items = []
    for row, line in zip(rows.tolist(), index.read(rows), strict=True):
        try:
            items.append(make_item('', line.decode('utf-8')))
        except UnicodeDecodeError as error:
            raise ValueError(
                f'{index.path}, line {index.number[row]}: not UTF-8 text (byte {error.start + 1} of the item); '
                'convert the file to UTF-8'
            ) from None
    return items


@functools.lru_cache(maxsize=16)
def _check(version: FileVersion, unit: str, max_bytes: int | None, start: int, stop: int) -> None:
    index = _units(version, unit, max_bytes)
    for first in range(start, stop, _CHECKED):
        _items(index, np.arange(first, min(stop, first + _CHECKED)))


@functools.lru_cache(maxsize=8)
def _units(version: FileVersion, unit: str, max_bytes: int | None) -> LineIndex:
    """Places of the units of a file; `number` is the line a unit begins on."""
    index = line_index(version)
    if unit == 'paragraph' and len(index):
        follows = np.diff(index.number) == 1
        first = np.flatnonzero(np.concatenate([[True], ~follows]))
        final = np.flatnonzero(np.concatenate([~follows, [True]]))
        index = LineIndex(index.path, index.start[first], index.stop[final], index.number[first])
    return index if max_bytes is None else _cut(index, max_bytes)


def _cut(index: LineIndex, max_bytes: int) -> LineIndex:
    """The same text in units of at most `max_bytes`."""
    starts, stops, numbers = [], [], []
    with open(index.path, 'rb') as file:
        for start, stop, number in np.stack([index.start, index.stop, index.number], axis=1).tolist():
            while stop - start > max_bytes:
                middle = start + _place_to_cut(file, start, max_bytes)
                starts.append(start)
                stops.append(middle)
                numbers.append(number)
                start = middle
            starts.append(start)
            stops.append(stop)
            numbers.append(number)
    return LineIndex(index.path, *[np.array(column, np.int64) for column in (starts, stops, numbers)])


def _place_to_cut(file: BinaryIO, start: int, max_bytes: int) -> int:
    """Bytes from `start` to the last space or line end within `max_bytes`, or else to the start of a character."""
    file.seek(start)
    part = file.read(max_bytes + 1)
    place = max(part.rfind(b' '), part.rfind(b'\n'))
    if place > 0:
        return place
    place = max_bytes
    while place > max_bytes - 4 and part[place] & 0xC0 == 0x80:  # the byte goes on with a character
        place -= 1
    return place
