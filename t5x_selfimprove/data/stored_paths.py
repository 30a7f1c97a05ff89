"""Paths that a run has sampled and stored, as a bank and as a seqio Task: to train another model on, or to mix.

A smaller model that is pre-trained on the kept paths of a larger one is the distillation of Huang et al. 2022
(arXiv:2210.11610, section 5.4).
"""

import dataclasses
import functools
import numbers
import re
from pathlib import Path

from t5x_selfimprove.data import store
from t5x_selfimprove.data.items import Item, check_integer, epoch_indices, make_item
from t5x_selfimprove.data.seqio_tasks import add_task, answer_accuracy, bank_source, text_task
from t5x_selfimprove.vocabulary import ByteVocabulary, Vocabulary

ROUND = re.compile(r'round_(\d+)\.parquet')
READ = ('question', 'text', 'kept', 'ended', 'vote_share')


@dataclasses.dataclass(frozen=True)
class StoredPaths:
    """Bank of the paths in a run's sample store: each is an item whose rationale is the whole text of the path.

    Only paths of the rounds of training are read, never those of an evaluation. Paths that were cut off at the length
    limit are left out: what they would teach is to stop anywhere.

    Attributes:
      directory: of the run.
      rounds: numbers of the rounds; () = all that there are.
      kept: only the paths that the run trained on; False = all.
      min_share: least vote share of the question of a path, 0..1.
      distinct: of equal texts of a question, in whatever rounds, only the first.
      shuffle_seed: every epoch in an order of its own; None = in the order of the store, epoch after epoch the same.

    Raises:
      TypeError, ValueError: a field of the wrong type or out of range.
    """

    directory: str
    rounds: tuple[int, ...] = ()
    kept: bool = True
    min_share: float = 0.0
    distinct: bool = True
    shuffle_seed: int | None = None

    def __post_init__(self):
        for number in self.rounds:
            check_integer('StoredPaths.rounds', number, 1)
        if not isinstance(self.min_share, numbers.Real) or not 0 <= self.min_share <= 1:
            raise ValueError(f'StoredPaths.min_share must be in 0..1; it is {self.min_share!r}')
        if self.shuffle_seed is not None:
            check_integer('StoredPaths.shuffle_seed', self.shuffle_seed, 0, 2**31 - 1)

    @property
    def size(self) -> int:
        return len(_load(self, self.versions()))

    def take(self, position: int, count: int) -> list[Item]:
        """Items position .. position + count - 1.

        Raises:
          FileNotFoundError: the run has stored no samples, or not those of a round that was asked for.
          ValueError: a file is no sample store, or no path is left.
        """
        items = _load(self, self.versions())
        return [items[place] for place in epoch_indices(position, count, len(items), self.shuffle_seed).tolist()]

    def check(self) -> None:
        """Reads all of it."""
        self.take(0, 1)

    def versions(self) -> tuple[tuple[str, int, int], ...]:
        """The files, in order of round, each with its size and time. Raises as `take` does."""
        folder = Path(self.directory, 'samples')
        found = {int(name[1]): path for path in folder.glob('*.parquet') if (name := ROUND.fullmatch(path.name))}
        missing = [number for number in self.rounds if number not in found]
        if missing or not found:
            what = f'those of round {missing[0]}' if missing else 'any'
            raise FileNotFoundError(f'{folder} holds no samples of a round, not {what}: name the directory of a run')
        stats = [(path, path.stat()) for number, path in sorted(found.items()) if number in (self.rounds or found)]
        return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)


@functools.lru_cache(maxsize=4)
def _load(bank: StoredPaths, versions: tuple[tuple[str, int, int], ...]) -> tuple[Item, ...]:
    items, seen = [], set()
    for path, _, _ in versions:
        columns = store.read(Path(path), READ).to_pydict()
        for question, text, kept, ended, share in zip(*(columns[name] for name in READ), strict=True):
            # Shares are stored as float32, where 0.6 is a little more or less.
            if not ended or (bank.kept and not kept) or share < bank.min_share - 1e-6 or not text.strip():
                continue
            if bank.distinct and (question, text) in seen:
                continue
            seen.add((question, text))
            items.append(make_item(question, text.strip()))
    if not items:
        raise ValueError(f'no stored path of {bank.directory} is as asked for: {bank}')
    return tuple(items)


def register_samples(bank: StoredPaths, name: str, vocabulary: Vocabulary | None = None) -> str:
    """Registers stored paths with seqio, as a Task with the one split 'train': `inputs` is the question, `targets` the
    path. Registering the same again does nothing.

    Args:
      bank: which paths.
      name: of the task; `seqio.get_mixture_or_task(name)` works then, and mixtures may have it.
      vocabulary: of both features; None = bytes.

    Returns:
      The name.

    Raises:
      FileNotFoundError, ValueError: as `StoredPaths.take`, or the name is taken by something else.
    """
    bank.check()
    vocabulary = ByteVocabulary() if vocabulary is None else vocabulary
    source = bank_source(dataclasses.replace(bank, shuffle_seed=None), 'train')
    add_task(name, (bank, vocabulary), text_task(source, vocabulary, [answer_accuracy]))
    return name
