"""Making a vocabulary: SentencePiece pieces learnt on the text of a bank, before any model is trained with them."""

import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from t5x_selfimprove import files
from t5x_selfimprove.data.items import Bank, check_banks, completion_text, item_texts
from t5x_selfimprove.display import Display
from t5x_selfimprove.session import check_writable
from t5x_selfimprove.vocabulary import SentencePieceVocabulary


@dataclasses.dataclass(frozen=True)
class MakeVocabulary:
    """Trains a SentencePiece vocabulary on questions and completions of a bank, and tells how long they are in it.

    Beside the model file stands `path`.json, which says what it was made from. The same command again finds the file
    and keeps it; a file that was made otherwise is never written over, because models may have been trained with it.

    Raises:
      ValueError: a size that no vocabulary can have, or a count below 1.
    """

    bank: Bank
    path: str  # of the model file to make, as SentencePieceVocabulary.path
    size: int  # tokens in all: 260 for bytes and special tokens, then pieces of text
    count: int | None = None  # items of the bank to read; None = all
    answer_text: str = ' The answer is {answer}.'
    model_type: str = 'unigram'  # or 'bpe'
    character_coverage: float = 0.9995  # share of the text whose characters become pieces of their own

    def __post_init__(self):
        if self.size <= 260:
            raise ValueError(f'size must be more than 260, which bytes and special tokens take; it is {self.size}')
        if self.count is not None and self.count < 1:
            raise ValueError(f'count must be at least 1; it is {self.count}')

    def run(self, config: str) -> dict[str, Any]:
        """Makes the vocabulary, or finds it made. Returns what the file beside it says.

        Raises:
          ValueError: the bank has something wrong, cannot fill `size`, or `path` was made otherwise.
          OSError: a file that is missing or cannot be written.
        """
        display, path = Display(), Path(self.path).expanduser()
        for name, what in check_banks(self.bank).items():
            display.say(f'{name}: {what}')
        wanted = {**self.settings(), **self.read()}
        made = described(path)
        if made is None:
            check_writable(path.parent)
            display.say(f'vocabulary: {self.size:,} tokens from {wanted["texts"]:,} texts')
            made = self.train(path, {**wanted, 'config': config}, display)
        else:
            differing = {name: made.get(name) for name in wanted if made.get(name) != wanted[name]}
            if differing:
                raise ValueError(
                    f'{path} is there and was made otherwise: it has {differing}, this command asks for '
                    f'{ {name: wanted[name] for name in differing} }. Models may have been trained with it: '
                    'name another path, or remove it first'
                )
            display.say(f'reused: {path} was made from these {wanted["texts"]:,} texts with these settings')
        display.say(f'{made["fingerprint"]} is its fingerprint, which checkpoints remember')
        self.show_lengths(display)
        return made

    def settings(self) -> dict[str, Any]:
        """What the pieces depend on beside the text."""
        return {'size': self.size, 'model_type': self.model_type, 'character_coverage': self.character_coverage}

    def texts(self) -> Any:
        """The texts, one after the other."""
        return item_texts(self.bank, self.count, self.answer_text)

    def read(self) -> dict[str, Any]:
        """Number of texts and a digest of them all."""
        digest, count = hashlib.sha256(), 0
        for text in self.texts():
            spelled = text.encode(errors='surrogatepass')
            digest.update(len(spelled).to_bytes(8, 'little') + spelled)
            count += 1
        return {'texts': count, 'text_digest': digest.hexdigest()[:16]}

    def train(self, path: Path, describing: dict[str, Any], display: Display) -> dict[str, Any]:
        """Trains and writes both files, the model last: where it stands, it is whole and described."""
        start, partial = time.perf_counter(), path.with_name(f'{path.name}.partial')
        with display.phase('vocabulary', 'learning the pieces'):
            vocabulary = SentencePieceVocabulary.train(
                self.texts(), str(partial), self.size, self.model_type, self.character_coverage
            )
        made = {**describing, 'fingerprint': vocabulary.fingerprint()}
        files.write_json(beside(path), made)
        os.replace(partial, path)
        display.say(f'made {path} in {time.perf_counter() - start:.1f} s')
        return made

    def show_lengths(self, display: Display) -> None:
        """Prints how many tokens questions and completions take: what rooms are chosen by."""
        vocabulary = SentencePieceVocabulary(self.path)
        lengths: dict[str, list[int]] = {'question': [], 'completion': [], 'both': []}
        total = self.bank.size if self.count is None else self.count
        for start in range(0, total, 1024):
            for item in self.bank.take(start, min(1024, total - start)):
                completed = item.rationale or item.answer is not None
                question = len(vocabulary.encode(item.question))
                # One more for the end of the text.
                completion = len(vocabulary.encode(completion_text(item, self.answer_text))) + 1 if completed else 0
                for name, length in zip(lengths, (question, completion, question + completion), strict=True):
                    lengths[name].append(length)
        quantiles = (0.5, 0.9, 0.95, 0.98, 1.0)
        rows = [
            [
                name,
                f'{np.mean(found):.0f}',
                *(f'{np.quantile(found, share, method="higher"):.0f}' for share in quantiles),
            ]
            for name, found in lengths.items()
        ]
        columns = ['tokens', 'mean', *(f'{100 * share:.0f} % within' for share in quantiles[:-1]), 'longest']
        display.table(f'{total:,} items in this vocabulary', columns, rows)


def beside(path: Path) -> Path:
    """The file that says what a vocabulary was made from."""
    return path.with_name(f'{path.name}.json')


def described(path: Path) -> dict[str, Any] | None:
    """What is known of the vocabulary at `path`; None where there is none.

    Raises:
      ValueError: it was not made by this command, or was changed since.
    """
    if not path.exists():
        return None
    if not beside(path).is_file():
        raise ValueError(
            f'{path} is there and was not made by this command ({beside(path).name} is not beside it): '
            'use it as it is, name another path, or remove it first'
        )
    made = json.loads(beside(path).read_text(encoding='utf-8'))
    found = SentencePieceVocabulary(str(path)).fingerprint()
    if made['fingerprint'] != found:
        raise ValueError(
            f'{path} is not the vocabulary that {beside(path).name} describes: its fingerprint is {found}, not '
            f'{made["fingerprint"]}. Name another path, or remove both files first'
        )
    return made
