"""Files that are there whole or not at all, whenever the process that writes them is killed."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; what was there stays until then.

    Raises:
      OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')  # always the same: what a killed run left is written over
    try:
        with partial.open('w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk every byte counts
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all. Raises OSError, or TypeError where JSON has no words for the value."""
    write_text(path, json.dumps(value, indent=1) + '\n')


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Writes one JSON value a line, whole or not at all. Raises as `write_json` does."""
    write_text(path, ''.join(json.dumps(value, ensure_ascii=False) + '\n' for value in values))
