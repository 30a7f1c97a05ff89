"""Where the lines of a text file are, so that any of them can be read without holding the file in memory."""

import dataclasses
import functools
import os

import numpy as np

_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class LineIndex:
    """Places of the lines of a file that are not blank (hold more than spaces), without their line ends.

    A record of a CSV file is a line here, also where a quoted field goes on over several lines of the file.

    Attributes:
      path: of the file.
      start, stop: int64[n], byte offsets; `stop` is exclusive.
      number: int64[n], the line each begins on; 1 for the first line of the file, blank ones counted.
    """

    path: str
    start: np.ndarray
    stop: np.ndarray
    number: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def read(self, rows: np.ndarray) -> list[bytes]:
        """The bytes of these lines, in the order asked for; rows: int64[m]."""
        spans = zip(self.start[rows].tolist(), self.stop[rows].tolist(), strict=True)
        result = []
        with open(self.path, 'rb') as file:
            place = 0
            for start, stop in spans:
                if start != place:
                    file.seek(start)
                result.append(file.read(stop - start))
                place = stop
        return result


@dataclasses.dataclass(frozen=True)
class FileVersion:
    """A file as it was when looked at: equal again only if it was not touched. Key of what is cached about it."""

    path: str
    size: int
    modified_ns: int


def file_version(path: str, owner: str) -> FileVersion:
    """Looks at a file; `~` is expanded, a relative path starts at the working directory.

    Raises:
      FileNotFoundError: names `owner`, the path and the working directory.
      ValueError: the path is empty or a directory, or the file has no bytes.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ValueError(f'{owner}.path must be the path of a file; it is {path!r}')
    expanded = os.path.expanduser(os.fspath(path))
    try:
        status = os.stat(expanded)
    except FileNotFoundError:
        where = '' if os.path.isabs(expanded) else f' (relative to {os.getcwd()})'
        raise FileNotFoundError(f'{owner}: there is no file {expanded!r}{where}') from None
    if os.path.isdir(expanded):
        raise ValueError(f'{owner}: {expanded!r} is a directory; give the path of a file')
    if status.st_size == 0:
        raise ValueError(f'{owner}: {expanded!r} is empty')
    return FileVersion(os.path.abspath(expanded), status.st_size, status.st_mtime_ns)


def window(owner: str, path: str, total: int, start: int, count: int | None, remark: str = '') -> tuple[int, int]:
    """The part [start, start + count) of `total` things in a file, as (start, stop); count None = up to the end.

    Raises:
      ValueError: nothing is left, or fewer than `count`; the message ends with `remark`.
    """
    if count is not None and start + count > total:
        raise ValueError(
            f'{owner}: start = {start} and count = {count} reach past the {total} items of {path!r}; '
            f'lower them, or set count to None{remark}'
        )
    if start >= total:
        raise ValueError(f'{owner}: {path!r} has {total} items, none from start = {start} on{remark}')
    return start, total if count is None else start + count


@functools.lru_cache(maxsize=8)
def line_index(version: FileVersion, quoted: bool = False) -> LineIndex:
    """Finds the lines; reads the file once (about a second a gigabyte). 24 bytes of memory a line.

    Args:
      version: the file.
      quoted: whether line ends between double quotes are text (RFC 4180: a quote inside a quoted field is doubled).

    Raises:
      ValueError: a quote is never closed.
    """
    # Offsets of line ends; whether \r stands before them; up to them, bytes that are no space, quotes, and line ends.
    ends, returns, inks, numbers = [], [], [], []
    last = offset = ink = quotes = line = 0
    with open(version.path, 'rb') as file:
        begin = 3 if file.read(3) == b'\xef\xbb\xbf' else 0  # a byte order mark is no text
        file.seek(0)
        while chunk := file.read(_CHUNK):
            data = np.frombuffer(chunk, np.uint8)
            found = np.flatnonzero(data == 10)
            number = np.arange(line + 1, line + 1 + len(found))
            line += len(found)
            if quoted:
                marks = np.cumsum(data == ord('"'), dtype=np.int32)
                outside = (marks[found] + quotes) % 2 == 0
                found, number, quotes = found[outside], number[outside], quotes + int(marks[-1])
            numbers.append(number)
            inked = np.cumsum(data > 32, dtype=np.int32)
            ends.append(found + offset)
            returns.append(np.where(found > 0, data[found - 1], last) == 13)
            inks.append(inked[found] + ink)
            last, offset, ink = int(data[-1]), offset + len(chunk), ink + int(inked[-1])
    if last != 10 or quotes % 2:
        ends.append(np.array([offset]))
        returns.append(np.array([False]))
        inks.append(np.array([ink]))
        numbers.append(np.array([line + 1]))
    stop = np.concatenate(ends)
    start = np.concatenate([[begin], stop[:-1] + 1])
    number = np.concatenate([[1], np.concatenate(numbers)[:-1] + 1])
    if quotes % 2:
        raise ValueError(
            f'{version.path}: the number of double quotes is odd, so that one is never closed; the last record begins '
            f'on line {number[-1]}. In CSV a quote inside a field is doubled and the field quoted'
        )
    # The three bytes of a byte order mark count as ink of the first line.
    filled = np.flatnonzero(np.diff(np.concatenate(inks), prepend=begin) > 0)
    return LineIndex(version.path, start[filled], (stop - np.concatenate(returns))[filled], number[filled])
