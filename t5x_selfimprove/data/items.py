"""Items of text, the banks they come from, and how they become the records `Questions` and `Examples`.

A bank is a frozen value with three members (see `Bank`). It keeps no reading position: position p is the same item
whenever it is asked for, so a run resumes by remembering one number.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from t5x_selfimprove.records import Examples, Questions
from t5x_selfimprove.vocabulary import Vocabulary, encode_following

TOO_LONG = ('refuse', 'skip')


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One question with what is known about it.

    Attributes:
      id: 16 hex digits, a 64-bit hash of the question (of the rationale where the question is empty).
      question: text without any prompt; empty for plain text to model.
      rationale: steps to the answer, or None.
      answer: the label as text, or None where it is not known or was dropped.
    """

    id: str
    question: str
    rationale: str | None = None
    answer: str | None = None


def make_item(question: str, rationale: str | None = None, answer: str | None = None) -> Item:
    """An item with its `id`, the BLAKE2b-64 hash of the question (of the rationale where the question is empty)."""
    text = (question or rationale or '').encode('utf-8', errors='surrogatepass')
    return Item(hashlib.blake2b(text, digest_size=8).hexdigest(), question, rationale, answer)


@runtime_checkable
class Bank(Protocol):
    """A source of items. Implementations are frozen dataclasses."""

    @property
    def size(self) -> int | None:
        """Number of items; None = endless."""
        ...

    def take(self, position: int, count: int) -> list[Item]:
        """Items position .. position + count - 1. A finite bank goes round, epoch after epoch."""
        ...

    def check(self) -> Sequence[str] | None:
        """Looks through the bank. Returns what it leaves out because it was asked to, in words.

        Raises:
          ValueError, OSError: now rather than later: missing file or field, broken line, no items.
        """
        ...


def check_banks(*banks: Bank | None) -> dict[str, str]:
    """Looks through banks before they are used. Returns what they leave out under one name, or nothing."""
    found = remarks(*(bank for bank in banks if bank is not None))
    return {'left out': '; '.join(dict.fromkeys(found))} if found else {}


def remarks(*banks: Bank) -> list[str]:
    """Looks through banks; what each leaves out. Raises ValueError or OSError if one of them has something wrong."""
    return [remark for bank in banks for remark in bank.check() or ()]


def check_are_banks(owner: str, values: Sequence[Any]) -> None:
    """Raises TypeError unless all `values` are banks."""
    for value in values:
        if not isinstance(value, Bank):
            raise TypeError(f'{owner} must be banks (size, take, check); one is a {type(value).__name__}')


def without_labels(items: Sequence[Item]) -> list[Item]:
    """The same questions with neither answer nor rationale."""
    return [Item(item.id, item.question, None, None) for item in items]


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """A bank whose labels and rationales nobody behind it can read."""

    bank: Any

    def __post_init__(self):
        if not isinstance(self.bank, Bank):
            raise TypeError(f'Unlabelled.bank must be a bank (size, take, check); it is a {type(self.bank).__name__}')

    @property
    def size(self) -> int | None:
        return self.bank.size

    def take(self, position: int, count: int) -> list[Item]:
        return without_labels(self.bank.take(position, count))

    def check(self) -> Sequence[str] | None:
        return self.bank.check()


def check_integer(owner: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises TypeError unless `value` is an integer, ValueError unless low <= value <= high."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f'{owner} must be an integer; it is {value!r} ({type(value).__name__})')
    if value < low or (high is not None and value > high):
        limits = f'at least {low}' if high is None else f'in {low}..{high}'
        raise ValueError(f'{owner} must be {limits}; it is {value}')


def check_choice(owner: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f'{owner} must be one of {", ".join(map(repr, choices))}; it is {value!r}')


def epoch_indices(position: int, count: int, size: int, shuffle_seed: int | None) -> np.ndarray:
    """Which items of a finite bank positions position .. position + count - 1 are: int64[count], each in 0..size-1.

    Epoch e is positions e * size .. (e + 1) * size - 1 and holds every item once: in order, or with a seed in an order
    of its own, a function of (seed, e, size) alone.
    """
    check_integer('position', position, 0)
    check_integer('count', count, 0)
    places = np.arange(position, position + count, dtype=np.int64)
    epochs, offsets = np.divmod(places, size)
    if shuffle_seed is None:
        return offsets
    result = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        result[rows] = _epoch_order(size, shuffle_seed, int(epoch))[offsets[rows]]
    return result


def take_at(bank: Bank, positions: np.ndarray) -> list[Item]:
    """The items at some positions, int64[n], that rise; neighbours are asked for together."""
    runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
    return [item for run in runs if len(run) for item in bank.take(int(run[0]), len(run))]


@functools.lru_cache(maxsize=4)
def _epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)


def encode_questions(
    items: Sequence[Item],
    vocabulary: Vocabulary,
    room: int,
    answer_format: Any = None,
    too_long: str = 'refuse',
    count: int | None = None,
) -> tuple[Questions, int]:
    """Items as a record of NumPy arrays, one row an item, in order; the row of one that is left out is padding.

    Args:
      items: the questions; an answer of None is an unknown label.
      vocabulary: turns the question text into tokens; nothing is put round them.
      room: P, the tokens a question may have.
      answer_format: has `room` (A, bytes) and `canonical(text) -> bytes`; None = no labels, and A is 1.
      too_long: 'refuse' raises on a question of more than `room` tokens; 'skip' leaves it out and counts it.
      count: rows of the result; the missing ones are padding of weight 0. None = as many as there are items.

    Returns:
      (questions, skipped): `Questions` with Q = count rows, and how many items were left out.

    Raises:
      ValueError: a question too long or without tokens, more items than `count`, a label that is no answer.
    """
    check_choice('too_long', too_long, TOO_LONG)
    check_integer('room', room, 1)
    encoded = [(row, item, vocabulary.encode(item.question)) for row, item in enumerate(items)]
    kept = _that_fit(encoded, room, too_long, 'question')
    rows = _row_count(len(items), count)
    width = 1 if answer_format is None else answer_format.room
    tokens = np.full((rows, room), vocabulary.pad_id, np.int32)
    length = np.zeros(rows, np.int32)
    answer = np.zeros((rows, width), np.uint8)
    known = np.zeros(rows, bool)
    weight = np.zeros(rows, np.float32)
    words = np.zeros((rows, 2), np.uint32)  # of the 64-bit ids, high word first
    for row, item, ids in kept:
        tokens[row, : len(ids)] = ids
        length[row] = len(ids)
        weight[row] = 1
        words[row] = np.frombuffer(bytes.fromhex(item.id), '>u4')
        if answer_format is not None and item.answer is not None:
            label = _canonical(item, answer_format)
            answer[row, : len(label)] = np.frombuffer(label, np.uint8)
            known[row] = True
    return Questions(tokens, length, answer, known, weight, words), len(items) - len(kept)


def encode_examples(
    items: Sequence[Item],
    vocabulary: Vocabulary,
    prompt_before: Sequence[int],
    prompt_after: Sequence[int],
    room: int,
    too_long: str = 'refuse',
    count: int | None = None,
    answer_text: str = ' The answer is {answer}.',
    rooms: tuple[int, int] | None = None,
) -> tuple[Examples, int]:
    """Items as prompt-completion pairs: before + question + after, then ' rationale' + `answer_text` + end of text.

    An item with an empty question is plain text: no prompt at all, and its rationale is the completion as it stands.
    Rows are in the order of the items; that of one that is left out is padding.

    Args:
      items: with a rationale, an answer or both; a missing one is left out of the completion.
      vocabulary: turns text into tokens.
      prompt_before: token ids put before each question.
      prompt_after: token ids put after each question.
      room: T, the tokens a pair may have, end of text included.
      too_long: 'refuse' raises on a longer pair; 'skip' leaves it out and counts it.
      count: rows of the result; the missing ones are padding of weight 0. None = as many as there are items.
      answer_text: how an answer is said; has '{answer}' in it.
      rooms: the tokens that a prompt and that a completion may have, for an encoder-decoder, which has them apart.

    Returns:
      (examples, skipped): `Examples` of NumPy arrays with E = count rows, and how many items were left out.

    Raises:
      ValueError: a pair too long, an item with nothing to learn from, more items than `count`, plain text for an
        encoder-decoder.
    """
    check_choice('too_long', too_long, TOO_LONG)
    check_integer('room', room, 1)
    if '{answer}' not in answer_text:
        raise ValueError(f"answer_text must have '{{answer}}' in it; it is {answer_text!r}")
    before, after = list(prompt_before), list(prompt_after)
    pairs = []
    for row, item in enumerate(items):
        prompt = before + vocabulary.encode(item.question) + after if item.question else []
        text = completion_text(item, answer_text)
        completion = encode_following(vocabulary, text) if prompt else vocabulary.encode(text)
        pairs.append((row, item, prompt + completion + [vocabulary.eos_id], len(prompt)))
    kept = _that_fit(pairs, room, too_long, 'example (prompt, completion and end of text)')
    if rooms is not None:
        kept = _that_fit_apart(kept, rooms, too_long)
    rows = _row_count(len(items), count)
    tokens = np.full((rows, room), vocabulary.pad_id, np.int32)
    prompt_length = np.zeros(rows, np.int32)
    length = np.zeros(rows, np.int32)
    weight = np.zeros(rows, np.float32)
    for row, _, ids, prompted in kept:
        tokens[row, : len(ids)] = ids
        prompt_length[row], length[row], weight[row] = prompted, len(ids), 1
    return Examples(tokens, prompt_length, length, weight, rooms), len(items) - len(kept)


def completion_text(item: Item, answer_text: str = ' The answer is {answer}.') -> str:
    """What a model should say after the prompt of this item.

    Raises:
      ValueError: the item has neither rationale nor answer, or is plain text with an answer.
    """
    if not item.rationale and item.answer is None:
        raise ValueError(f'item {item.id} has neither rationale nor answer to learn from: {item.question[:80]!r}')
    if not item.question:
        if item.answer is not None:
            raise ValueError(f'item {item.id} has an answer ({item.answer!r}) but an empty question')
        return item.rationale
    said = f' {item.rationale}' if item.rationale else ''
    return said if item.answer is None else said + answer_text.replace('{answer}', item.answer)


def item_texts(bank: Bank, count: int | None = None, answer_text: str = ' The answer is {answer}.') -> Iterator[str]:
    """Question and completion texts of the first `count` items (None = all of a finite bank), to learn a vocabulary.

    Raises:
      ValueError: `count` is None and the bank is endless.
    """
    total = bank.size if count is None else count
    if total is None:
        raise ValueError('this bank is endless: say how many items to read with count')
    for start in range(0, total, 1024):
        for item in bank.take(start, min(1024, total - start)):
            if item.question:
                yield item.question
            if item.rationale or item.answer is not None:
                yield completion_text(item, answer_text)


def _that_fit(encoded: list[tuple], room: int, too_long: str, what: str) -> list[tuple]:
    """Those of (row, item, ids, ...) that have 1..room ids."""
    kept = []
    for one in encoded:
        _, item, ids = one[:3]
        if not ids:
            raise ValueError(f'item {item.id} has an empty {what}; drop it from the bank')
        if len(ids) <= room:
            kept.append(one)
        elif too_long == 'refuse':
            raise ValueError(
                f'item {item.id}: its {what} has {len(ids)} tokens, the room is {room} ({item.question[:60]!r}); '
                f"make the room at least {len(ids)}, or set too_long='skip' to leave such items out and count them"
            )
    return kept


def _that_fit_apart(
    pairs: list[tuple[int, Item, list[int], int]], rooms: tuple[int, int], too_long: str
) -> list[tuple[int, Item, list[int], int]]:
    """Those of (row, item, ids, prompt length) whose prompt and completion fit rooms of their own."""
    for _, item, _, prompted in pairs:
        if not prompted:
            raise ValueError(
                f'item {item.id} is plain text, without a question: an encoder-decoder learns what follows a prompt. '
                'Use a bank of questions, or a decoder-only model'
            )
    prompts = [(row, item, ids[:prompted], ids, prompted) for row, item, ids, prompted in pairs]
    kept = _that_fit(prompts, rooms[0], too_long, 'prompt (in learning.Packing.source_length)')
    rest = [(row, item, ids[prompted:], ids, prompted) for row, item, _, ids, prompted in kept]
    kept = _that_fit(rest, rooms[1], too_long, 'completion (in learning.Packing.row_length less one)')
    return [(row, item, ids, prompted) for row, item, _, ids, prompted in kept]


def _row_count(items: int, count: int | None) -> int:
    if count is None:
        return items
    check_integer('count', count, 0)
    if items > count:
        raise ValueError(f'{items} items do not fit in count = {count} rows')
    return count


def _canonical(item: Item, answer_format: Any) -> bytes:
    label = answer_format.canonical(item.answer)
    if not label or len(label) > answer_format.room:
        raise ValueError(
            f'item {item.id}: its label {item.answer!r} is no answer of the kind asked for, or is longer than '
            f'{answer_format.room} bytes; set the kind or room of the answer format, or the field that holds the answer'
        )
    return label
