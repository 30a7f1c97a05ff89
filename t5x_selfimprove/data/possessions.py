"""The embedded task: word problems about possessions, made up on the spot, endless and seeded.

    Hugo has 7 pens. He finds 10. He sells 8. How many pens does he have?
    10 + 7 = 17. 17 - 8 = 9.  (The answer is 9.)

A rationale combines the amounts in any order that keeps every partial total within bounds. Different orders are
different paths to the same answer whose slips are independent, which is what a vote needs.

Item i is a pure function of (seed, split, i) and the difficulty. Splits never overlap: the signed amounts of a
question, whatever their order, belong to one split by a hash that knows neither seed nor difficulty.
"""

import dataclasses
import functools
import re

import numpy as np

from t5x_selfimprove.data.items import Item, check_choice, check_integer, epoch_indices, make_item
from t5x_selfimprove.vocabulary import WordVocabulary

NAMES = (
    ('Hugo', 'He'), ('Anna', 'She'), ('Ben', 'He'), ('Clara', 'She'), ('David', 'He'), ('Emma', 'She'),
    ('Felix', 'He'), ('Greta', 'She'), ('Ivan', 'He'), ('Julia', 'She'), ('Karl', 'He'), ('Laura', 'She'),
)  # fmt: skip
OBJECTS = (
    'pens', 'books', 'coins', 'cards', 'apples', 'stamps', 'marbles', 'shells', 'buttons', 'stickers', 'balls', 'cups',
)  # fmt: skip
GAINS = ('finds', 'buys', 'wins', 'gets')
LOSSES = ('sells', 'loses', 'donates', 'discards')
SPLITS = {'labelled': range(0, 20), 'held_out': range(20, 40), 'unlabelled': range(40, 100)}  # of 100 buckets
MAX_STEPS = 32
ORDERS = ('random', 'story')

_BLOCK = 1024  # items made at once and kept
_BLOCKS_KEPT = 64
_ATTEMPTS = 5_000  # redraws before a split is called empty; at a share of 20 % chance alone never needs as many
_ORDER_ATTEMPTS = 200  # redraws before a rationale falls back to the order of the story
_WORDS_STREAM, _ORDER_STREAM = 1 << 40, 1 << 41  # draws beside those of the attempts, which are streams 0, 1, ...


@dataclasses.dataclass(frozen=True)
class Possessions:
    """Bank of possession problems.

    Attributes:
      split: 'labelled', 'unlabelled' or 'held_out'; no content is in two of them, whatever the seeds.
      seed: of everything drawn; 0 or more.
      min_steps, max_steps: signed amounts a question has, uniform in between; at least 2.
      max_amount: amounts are 1..max_amount.
      max_total: totals, in the story and in the rationale, stay in 0..max_total.
      loss_share: probability that an amount is taken away rather than added, where both are possible.
      order: 'random' = the rationale goes through the amounts in a random valid order; 'story' = as told.
      count: number of items, the first `count`; None = endless.
      shuffle_seed: with a count, every epoch has an order of its own; None = always the same order.
    """

    split: str = 'labelled'
    seed: int = 0
    min_steps: int = 3
    max_steps: int = 5
    max_amount: int = 12
    max_total: int = 30
    loss_share: float = 0.45
    order: str = 'random'
    count: int | None = None
    shuffle_seed: int | None = None

    def __post_init__(self):
        check_choice('Possessions.split', self.split, tuple(SPLITS))
        check_choice('Possessions.order', self.order, ORDERS)
        check_integer('Possessions.seed', self.seed, 0, 2**63 - 1)
        check_integer('Possessions.min_steps', self.min_steps, 2, MAX_STEPS)
        check_integer('Possessions.max_steps', self.max_steps, self.min_steps, MAX_STEPS)
        check_integer('Possessions.max_total', self.max_total, 1, 1_000_000)
        check_integer('Possessions.max_amount', self.max_amount, 1, self.max_total)
        if isinstance(self.loss_share, bool) or not isinstance(self.loss_share, (int, float)):
            raise TypeError(f'Possessions.loss_share must be a number; it is {self.loss_share!r}')
        if not 0 <= self.loss_share <= 1:
            raise ValueError(f'Possessions.loss_share must be in 0..1; it is {self.loss_share}')
        if self.count is not None:
            check_integer('Possessions.count', self.count, 1)
        if self.shuffle_seed is not None:
            check_integer('Possessions.shuffle_seed', self.shuffle_seed, 0, 2**63 - 1)
            if self.count is None:
                raise ValueError('Possessions.shuffle_seed needs a count: an endless bank has no epochs to shuffle')

    @property
    def size(self) -> int | None:
        return self.count

    def take(self, position: int, count: int) -> list[Item]:
        """Items position .. position + count - 1; about 20 microseconds an item when first made.

        Raises:
          ValueError: the difficulty leaves this split without a single question.
        """
        if self.count is None:
            check_integer('position', position, 0)
            check_integer('count', count, 0)
            indices = np.arange(position, position + count, dtype=np.int64)
        else:
            indices = epoch_indices(position, count, self.count, self.shuffle_seed)
        if self.shuffle_seed is not None and self.count > _BLOCK * _BLOCKS_KEPT:
            return _make_items(self, indices)  # scattered over more blocks than are kept
        source = dataclasses.replace(self, count=None, shuffle_seed=None)
        blocks = {int(number): _block(source, int(number)) for number in np.unique(indices // _BLOCK)}
        return [blocks[index // _BLOCK][index % _BLOCK] for index in indices.tolist()]

    def check(self) -> None:
        """Raises ValueError if some number of steps has no question in this split."""
        for steps in range(self.min_steps, self.max_steps + 1):
            source = dataclasses.replace(self, min_steps=steps, max_steps=steps, count=None, shuffle_seed=None)
            _make_items(source, np.zeros(1, np.int64))


def vocabulary(max_total: int = 30, texts: tuple[str, ...] = ()) -> WordVocabulary:
    """Word vocabulary of the task with the numbers 0..max_total, plus every piece of `texts`.

    `texts` are prompt templates: a slot such as {question} parts the text before it from the text after it.
    """
    check_integer('max_total', max_total, 1, 1_000_000)
    plain = [f'{name} {name} has {he} {he.lower()}' for name, he in NAMES]
    plain += [f' {word}' for word in OBJECTS + tuple(map(_singular, OBJECTS)) + GAINS + LOSSES]
    plain += [' How many pens does he have?', ' 1 + 1 - 1 = 1. The answer is 1.']
    plain += [f' {number}' for number in range(max_total + 1)]
    return WordVocabulary.learn(plain + [part for text in texts for part in re.split(r'\{\w+\}', text)])


@functools.lru_cache(maxsize=_BLOCKS_KEPT)
def _block(bank: Possessions, number: int) -> tuple[Item, ...]:
    return tuple(_make_items(bank, np.arange(number * _BLOCK, (number + 1) * _BLOCK, dtype=np.int64)))


def _make_items(bank: Possessions, indices: np.ndarray) -> list[Item]:
    """The items with these indices; indices: int64[n]."""
    key = np.full(len(indices), bank.seed, np.uint64)
    key = _mix(_mix(key) ^ np.uint64(1 + tuple(SPLITS).index(bank.split)))
    key = _mix(key ^ indices.astype(np.uint64))
    words = _draws(key, _WORDS_STREAM, 3 + bank.max_steps)
    steps = bank.min_steps + _below(words[:, 2], bank.max_steps - bank.min_steps + 1)
    amounts = _amounts(bank, key, steps)
    ordered = amounts if bank.order == 'story' else _reordered(amounts, key, bank.max_total)
    names, objects = _below(words[:, 0], len(NAMES)), _below(words[:, 1], len(OBJECTS))
    verbs = np.where(amounts > 0, _below(words[:, 3:], len(GAINS)), _below(words[:, 3:], len(LOSSES)))
    rows = zip(*[array.tolist() for array in (names, objects, verbs, steps, amounts, ordered)], strict=True)
    return [_write(*row) for row in rows]


def _write(name: int, item: int, verbs: list[int], steps: int, amounts: list[int], ordered: list[int]) -> Item:
    (who, he), what = NAMES[name], OBJECTS[item]
    told = [f'{who} has {amounts[0]} {what if amounts[0] != 1 else _singular(what)}.']
    for amount, verb in zip(amounts[1:steps], verbs[1:steps], strict=True):
        told.append(f'{he} {GAINS[verb]} {amount}.' if amount > 0 else f'{he} {LOSSES[verb]} {-amount}.')
    told.append(f'How many {what} does {he.lower()} have?')
    total, worked = ordered[0], []
    for amount in ordered[1:steps]:
        worked.append(f'{total} {"+" if amount > 0 else "-"} {abs(amount)} = {total + amount}.')
        total += amount
    return make_item(' '.join(told), ' '.join(worked), str(total))


def _singular(plural: str) -> str:
    return plural[:-1]  # all of OBJECTS form their plural with -s


def _amounts(bank: Possessions, key: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Signed amounts as told, int64[n, max_steps] with zeros after `steps`, redrawn until they are of the split."""
    amounts = np.zeros((len(key), bank.max_steps), np.int64)
    buckets = SPLITS[bank.split]
    pending = np.arange(len(key))
    for attempt in range(_ATTEMPTS):
        drawn, valid = _story(bank, _draws(key[pending], attempt, 2 * bank.max_steps), steps[pending])
        bucket = split_bucket(drawn)
        valid &= (bucket >= buckets.start) & (bucket < buckets.stop)
        amounts[pending[valid]] = drawn[valid]
        pending = pending[~valid]
        if not len(pending):
            return amounts
    raise ValueError(
        f'Possessions found no question of {steps[pending[0]]} steps for split {bank.split!r} in {_ATTEMPTS} draws: '
        f'max_amount = {bank.max_amount} and max_total = {bank.max_total} leave too few; raise one of them'
    )


def _story(bank: Possessions, draws: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed amounts int64[n, max_steps] told from the draws uint64[n, 2 * max_steps], and bool[n]: within bounds.

    An amount that would carry the total out of bounds has its sign turned; if that does not help the story is not
    valid. The first amount comes out positive, since there is nothing to take from.
    """
    sizes = 1 + _below(draws[:, : bank.max_steps], bank.max_amount)
    losses = (draws[:, bank.max_steps :] >> np.uint64(11)) * 2.0**-53 < bank.loss_share
    amounts = np.where(losses, -sizes, sizes)
    amounts[np.arange(bank.max_steps)[None] >= steps[:, None]] = 0
    total = np.zeros(len(steps), np.int64)
    valid = np.ones(len(steps), bool)
    for column in amounts.T:  # a view: turned signs are written through
        turned = (total + column < 0) | (total + column > bank.max_total)
        column[turned] *= -1
        total += column
        valid &= (total >= 0) & (total <= bank.max_total)
    return amounts, valid


def split_bucket(amounts: np.ndarray) -> np.ndarray:
    """Bucket 0..99 of the signed amounts int64[n, K], int64[n]; the order of the amounts and zeros do not count."""
    hashes = np.where(amounts != 0, _mix(amounts.astype(np.uint64)), np.uint64(0))
    return _below(_mix(hashes.sum(axis=1, dtype=np.uint64)), 100)


def _reordered(amounts: np.ndarray, key: np.ndarray, max_total: int) -> np.ndarray:
    """Amounts int64[n, K] of each row in an order drawn uniformly from those with all partial totals in bounds."""
    result = amounts.copy()  # the order of the story is valid: what is left if no draw were
    pending = np.arange(len(amounts))
    for attempt in range(_ORDER_ATTEMPTS):
        ranks = _draws(key[pending], _ORDER_STREAM + attempt, amounts.shape[1])
        ranks[amounts[pending] == 0] = np.uint64(2**64 - 1)  # padding stays at the end
        drawn = np.take_along_axis(amounts[pending], np.argsort(ranks, axis=1, kind='stable'), axis=1)
        totals = np.cumsum(drawn, axis=1)
        valid = ((totals >= 0) & (totals <= max_total)).all(axis=1)
        result[pending[valid]] = drawn[valid]
        pending = pending[~valid]
        if not len(pending):
            break
    return result


def _draws(key: np.ndarray, stream: int, count: int) -> np.ndarray:
    """uint64[n, count] of random bits, a function of key uint64[n], stream and place (SplitMix64 of a counter)."""
    state = _mix(key ^ _mix(np.full(1, stream, np.uint64)))
    return _mix(state[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mix(x: np.ndarray) -> np.ndarray:
    """One SplitMix64 step of each element (Steele, Lea and Flood, 'Fast splittable pseudorandom number generators')."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _below(bits: np.ndarray, n: int) -> np.ndarray:
    """Random bits uint64 -> int64 in 0..n-1 (multiply and shift; the bias is below n / 2**32)."""
    return (((bits >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)).astype(np.int64)
