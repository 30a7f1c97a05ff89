"""Several banks as one: the pooled tasks of a run."""

import dataclasses
import functools

import numpy as np

from t5x_selfimprove.data.items import Bank, Item, check_are_banks, check_integer, remarks


@dataclasses.dataclass(frozen=True)
class Pool:
    """Banks that take turns, each spread evenly.

        rates (3, 1)      a a b a | a a b a | ...       every bank in its own order, from its position 0

    Huang et al. 2022 (arXiv:2210.11610) train one model on six tasks pooled. All items get one prompt and one way of
    reading answers; what a task needs of its own stands in its questions.

    Attributes:
      banks: the banks.
      rates: items of each bank in a period; None = their sizes, so that an epoch of the pool holds every item once.

    Raises:
      TypeError, ValueError: no bank, a field of the wrong type or out of range, an endless bank without rates.
    """

    banks: tuple[Bank, ...]
    rates: tuple[int, ...] | None = None

    def __post_init__(self):
        if not self.banks:
            raise ValueError('a pool needs at least one bank')
        check_are_banks('Pool.banks', self.banks)
        if self.rates is not None and len(self.rates) != len(self.banks):
            raise ValueError(f'Pool.rates must be as many as banks, {len(self.banks)}; they are {self.rates}')
        for rate in self.rates or ():
            check_integer('Pool.rates', rate, 1)

    @property
    def size(self) -> int | None:
        """Items of all banks; None with rates: banks go round at different times."""
        return sum(self.turns()) if self.rates is None else None

    def turns(self) -> tuple[int, ...]:
        """Items of each bank in a period. Raises ValueError where a bank is endless and there are no rates."""
        if self.rates is not None:
            return self.rates
        sizes = [bank.size for bank in self.banks]
        if None in sizes:
            raise ValueError(f'bank {sizes.index(None) + 1} of the pool is endless: give Pool.rates')
        return tuple(sizes)

    def take(self, position: int, count: int) -> list[Item]:
        """Items position .. position + count - 1. Raises as the banks and `turns` do."""
        check_integer('position', position, 0)
        turns = self.turns()
        which, rank = _period(turns)
        periods, offsets = np.divmod(np.arange(position, position + count), len(which))
        items: list[Item | None] = [None] * count
        for number, bank in enumerate(self.banks):
            places = np.flatnonzero(which[offsets] == number)
            if len(places):  # the positions in a bank follow one another
                first = int(periods[places[0]] * turns[number] + rank[offsets[places[0]]])
                for place, item in zip(places.tolist(), bank.take(first, len(places)), strict=True):
                    items[place] = item
        return items

    def check(self) -> list[str]:
        """What the banks leave out. Raises ValueError or OSError if one of them has something wrong."""
        left_out = remarks(*self.banks)
        self.turns()
        return left_out


@functools.lru_cache(maxsize=4)
def _period(turns: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of each place of a period: the number of its bank, and which of that bank's items in the period it is."""
    number = np.repeat(np.arange(len(turns)), turns)
    rank = np.concatenate([np.arange(rate) for rate in turns])
    order = np.argsort((rank + 0.5) / np.repeat(turns, turns), kind='stable')
    return number[order], rank[order]
