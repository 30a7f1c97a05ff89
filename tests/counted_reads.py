"""The command line, writing down what a process reads of its banks and turns into tokens.

python -m tests.counted_reads improve ...     a JSON line for each reading, into the file that READS_LOG names, with the
                                              number of the process behind it
"""

import json
import os
import pathlib
import sys
from typing import Any

from t5x_selfimprove import processes
from t5x_selfimprove.data.possessions import Possessions
from t5x_selfimprove.main import main
from t5x_selfimprove.vocabulary.words import WordVocabulary


def told(log: pathlib.Path, number: int) -> tuple[dict[str, set[int]], set[str]]:
    """What a process wrote down: the positions that it has read of each split; the texts that it has encoded."""
    lines = [json.loads(line) for line in pathlib.Path(f'{log}.{number}').read_text().splitlines()]
    read: dict[str, set[int]] = {}
    for split, position, count in (line for line in lines if isinstance(line, list)):
        read.setdefault(split, set()).update(range(position, position + count))
    return read, {line for line in lines if isinstance(line, str)}


def count(log: str) -> None:
    """Writes down every reading from here on."""
    take, encode = Possessions.take, WordVocabulary.encode

    def write(what: Any) -> None:
        with open(f'{log}.{processes.number()}', 'a') as file:
            print(json.dumps(what), file=file)

    def counted_take(self: Possessions, position: int, count: int) -> list:
        write([self.split, position, count])
        return take(self, position, count)

    def counted_encode(self: WordVocabulary, text: str) -> list[int]:
        write(text)
        return encode(self, text)

    Possessions.take, WordVocabulary.encode = counted_take, counted_encode


if __name__ == '__main__':
    count(os.environ['READS_LOG'])
    sys.exit(main())
