"""Files that are there whole or not at all, whenever the process that writes them is killed."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of what was at `path` when all of it is written, or not at all.

    Raises:
      OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')  # always the same: what a killed run left is written over
    try:
        with partial.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk every byte counts
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all. Raises OSError where it cannot be written."""
    with written(path) as file:
        file.write(text.encode('utf-8'))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all. Raises OSError, or TypeError where JSON has no words for the value."""
    write_text(path, json.dumps(value, indent=1) + '\n')


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Writes one JSON value a line, whole or not at all. Raises as `write_json` does."""
    write_text(path, ''.join(json.dumps(value, ensure_ascii=False) + '\n' for value in values))
