"""The answer of a completion, read from token ids on device: canonical bytes that are equal when the answers are."""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, UInt8

from t5x_selfimprove.consolidation.canonical import MARGIN, Window, assemble, letter, space
from t5x_selfimprove.consolidation.kinds import KINDS, WHOLE
from t5x_selfimprove.vocabulary import Vocabulary, spelling_table, table_of

MAX_BYTES = 200  # of trigger and window: positions and automaton states then fit in a byte
BLOCK = 1 << 22  # array elements that the host reads at a time; bounds its memory


@dataclasses.dataclass(frozen=True)
class AnswerFormat:
    """Where the answer stands in a completion, and what counts as the same answer.

    The answer is read behind the *last* trigger phrase (ASCII case does not matter), up to the end of the sentence,
    the line or the text, and made canonical by its kind (`canonical.py` and `spans.py` have the rules):

        kind      text                                canonical
        number    'The answer is $1,200.00.'          b'1200'
        option    'the answer is (B).'                b'b'
        yes_no    'The answer is: Yes, it is.'        b'yes'
        nli       'The answer is not possible ...'    b'unknown'
        text      'The answer is the  Red Sea.'       b'red sea'
        span      'The answer is the 1,200-yard ...'  b'1200 yard ...'

    There is no answer where there is no trigger phrase, where the phrase goes on as a word ('the answer isn't 7'), or
    where nothing of the kind stands in the sentence. Nothing is ever shortened to fit: an answer longer than `room`
    bytes, one that does not end within `window` bytes of the phrase, and one that the end of a cut-off completion may
    have cut, are no answers.

    Device and host run the same code (`extract`, `extract_host`), and labels go through it too (`canonical`). What is
    compared is the text, so it does not matter how it was cut into tokens. How answers are parsed is not said in the
    papers on majority votes (Huang et al. 2022, arXiv:2210.11610; Wang et al. 2022, arXiv:2203.11171); these rules are
    our own.

    Attributes:
      vocabulary: says which bytes each token spells.
      trigger: the phrase before the answer, at most 200 bytes.
      kind: 'number', 'option', 'yes_no', 'nli', 'text' or 'span'.
      room: A, the bytes an answer may have.
      window: bytes behind the trigger that are looked at, at most 200.
      truncated_votes: whether the answer of a completion that was cut off at the length limit is counted by the
        consolidators (it is read and reported in either case, where the cut cannot have shortened it).

    Raises:
      TypeError, ValueError: a field of the wrong type or out of range.
    """

    vocabulary: Vocabulary
    trigger: str = 'The answer is'
    kind: str = 'number'
    room: int = 16
    window: int = 64
    truncated_votes: bool = False

    def __post_init__(self):
        if not isinstance(self.vocabulary, Vocabulary):
            raise TypeError(f'AnswerFormat.vocabulary must be a vocabulary; it is a {type(self.vocabulary).__name__}')
        if not isinstance(self.trigger, str) or not 1 <= len(self.trigger.encode()) <= MAX_BYTES:
            raise ValueError(f'AnswerFormat.trigger must be text of 1..{MAX_BYTES} bytes; it is {self.trigger!r}')
        if self.trigger != self.trigger.strip():
            raise ValueError(f'AnswerFormat.trigger must not begin or end with a space; it is {self.trigger!r}')
        if self.kind not in KINDS:
            raise ValueError(f'AnswerFormat.kind must be one of {", ".join(map(repr, KINDS))}; it is {self.kind!r}')
        if type(self.room) is not int or type(self.window) is not int or not 1 <= self.room <= self.window <= MAX_BYTES:
            raise ValueError(
                f'AnswerFormat needs whole numbers 1 <= room <= window <= {MAX_BYTES}; '
                f'room is {self.room!r}, window is {self.window!r}'
            )
        if type(self.truncated_votes) is not bool:
            raise TypeError(f'AnswerFormat.truncated_votes must be True or False; it is {self.truncated_votes!r}')

    def extract(
        self, tokens: Int32[Array, 'S C'], mask: Bool[Array, 'S C'], ended: Bool[Array, 'S'] | None = None
    ) -> tuple[UInt8[Array, 'S A'], Bool[Array, 'S']]:
        """Answers of S completions; to be called under `jit`.

        Args:
          tokens: the completions; ids outside the vocabulary count as its first or last token.
          mask: which tokens are of the completion.
          ended: False where the completion was cut off. An answer that the cut may have shortened is none. None = all
            ended.

        Returns:
          (answer, found): canonical bytes, zero-padded; zeros and False where there is none.
        """
        return self._extract(tokens, mask, ended, jnp)

    def extract_host(
        self, tokens: Int[np.ndarray, 'S C'], mask: Bool[np.ndarray, 'S C'], ended: Bool[np.ndarray, 'S'] | None = None
    ) -> tuple[UInt8[np.ndarray, 'S A'], Bool[np.ndarray, 'S']]:
        """The same in NumPy, for reports and data files."""
        tokens = np.asarray(tokens, np.int32)
        rows = tokens.shape[0]
        step = max(1, BLOCK // ((MARGIN + self.window) * self.room))
        ended = np.ones(rows, bool) if ended is None else ended
        blocks = [slice(start, start + step) for start in range(0, rows, step)] or [slice(0, 0)]
        parts = [self._extract(tokens[block], mask[block], ended[block], np) for block in blocks]
        answer, found = zip(*parts, strict=True)
        return np.concatenate(answer), np.concatenate(found)

    def phrase_start(self, tokens: Int32[Array, 'S C'], mask: Bool[Array, 'S C']) -> Int32[Array, 'S']:
        """The token of each completion in which its last trigger phrase begins, -1 where there is none; under `jit`.

        A space before the phrase is of it, be it in the same token or one of its own.
        """
        _, lengths = spelling_table(self.vocabulary)
        spellings = self.vocabulary.token_bytes()
        automaton, spaces = _automaton(spellings, self._phrase), np.array([one == b' ' for one in spellings])
        tokens = jnp.clip(tokens, 0, len(lengths) - 1)
        length = jnp.where(mask, jnp.take(lengths, tokens, mode='clip'), 0)
        behind, _ = _last_phrase(automaton, tokens, mask, length, jnp)
        first, ends = (behind - len(self._phrase))[:, None], jnp.cumsum(length, axis=1)
        space = mask & jnp.take(spaces, tokens, mode='clip') & (ends == first)
        start = ((ends <= first) & mask & ~space).sum(axis=1, dtype=jnp.int32)
        return jnp.where(behind < 0, -1, start)

    def canonical(self, text: str) -> bytes:
        """The canonical answer in a label; b'' where there is none, or it is longer than `room` bytes.

        Args:
          text: a bare answer ('1,200'), or text with the trigger phrase in it.
        """
        return _label(self.kind, self.room, self.window, self._phrase, text)

    @functools.cached_property
    def _phrase(self) -> bytes:
        return self.trigger.encode().lower()

    def _extract(self, tokens: Any, mask: Any, ended: Any, xp: ModuleType) -> tuple[Any, Any]:
        table, lengths = spelling_table(self.vocabulary)
        automaton = _automaton(self.vocabulary.token_bytes(), self._phrase)
        tokens = xp.clip(tokens, 0, len(lengths) - 1)
        length = xp.where(mask, xp.take(lengths, tokens, mode='clip'), 0)
        behind, total = _last_phrase(automaton, tokens, mask, length, xp)
        text, seen = _text_behind(table, tokens, length, behind, total, self.window, xp)
        cut = total - behind > self.window
        window = Window(text, seen, cut if ended is None else cut | ~ended, xp)
        spelled, keep, found = KINDS[self.kind](window)
        found = found & (behind >= 0) & ~_runs_on(self._phrase, text[:, MARGIN])
        return assemble((spelled, keep, found), self.room, xp)


def answer_bytes(answer: UInt8[np.ndarray, 'A']) -> bytes:
    """An answer's bytes without the padding; b'' is no answer."""
    return np.asarray(answer, np.uint8).tobytes().rstrip(b'\0')


def answer_text(answer: UInt8[np.ndarray, 'A']) -> str:
    """An answer for people to read; '' is no answer."""
    return answer_bytes(answer).decode('utf-8', errors='replace')


@functools.lru_cache(maxsize=1 << 16)  # a bank's labels are few, and are read again in every evaluation
def _label(kind: str, room: int, size: int, phrase: bytes, text: str) -> bytes:
    spelled = text.encode()
    place = spelled.lower().rfind(phrase)
    if place >= 0:
        spelled = spelled[place + len(phrase) :]
        if _runs_on(phrase, np.frombuffer(spelled[:1], np.uint8)).any():
            return b''
    shown = np.zeros((1, MARGIN + size), np.uint8)
    begin = np.frombuffer(spelled[:size], np.uint8)
    shown[0, MARGIN : MARGIN + len(begin)] = begin
    seen = np.array([MARGIN + len(begin)], np.int32)
    window = Window(shown, seen, np.array([len(spelled) > size]), np)
    if kind in WHOLE and not (space(shown) | (window.position <= WHOLE[kind](window)[0][:, None])).all():
        return b''  # 'Mr. Smith' must not become 'mr' without a word
    answer, found = assemble(KINDS[kind](window), room, np)
    return answer_bytes(answer[0]) if found[0] else b''


def _runs_on(phrase: bytes, byte: Any) -> Any:
    """Whether a byte behind the phrase makes its last word another word."""
    return letter(byte) & bool(letter(phrase[-1]))


@functools.lru_cache(maxsize=16)
def _automaton(spellings: tuple[bytes, ...], phrase: bytes) -> np.ndarray:
    """What reading a whole token does to the search for a phrase (Knuth, Morris, Pratt 1977), for all tokens at once.

    Returns:
      int32[len(phrase), V]: for s bytes of the phrase matched before the token, 256 * p + (bytes matched behind it),
      where p is the length of the part of the token up to the last end of the phrase in it; 0 = it does not end in it.
    """
    size = len(phrase)
    borders = [max(k for k in range(s) if phrase[:s].endswith(phrase[:k])) if s else 0 for s in range(size + 1)]
    reads = np.zeros((size, 256), np.int32)  # bytes matched behind one more byte, all `size` of them included
    for matched in range(size):
        if matched:
            reads[matched] = reads[borders[matched]]
        for byte in {phrase[matched : matched + 1], phrase[matched : matched + 1].upper()}:
            reads[matched, byte[0]] = matched + 1
    table, lengths = table_of(spellings)
    state = np.repeat(np.arange(size, dtype=np.int32)[:, None], len(lengths), axis=1)
    end = np.zeros_like(state)
    for place in range(table.shape[1]):
        live = np.flatnonzero(place < lengths)  # few in a large vocabulary: only some tokens are long
        after = reads[state[:, live], table[live, place]]
        end[:, live] = np.where(after == size, place + 1, end[:, live])
        state[:, live] = np.where(after == size, borders[size], after)
    return 256 * end + state


def _last_phrase(automaton: np.ndarray, tokens: Any, mask: Any, length: Any, xp: ModuleType) -> tuple[Any, Any]:
    """Reads the tokens one after the other.

    Returns:
      (behind, total), both int32[S]: bytes up to the end of the last phrase, -1 without one; bytes of the whole text.
    """
    entries = xp.asarray(automaton.reshape(-1))
    size = automaton.shape[1]

    def step(carry: tuple, column: tuple) -> tuple:
        state, start, behind = carry
        token, live, bytes_long = column
        entry = xp.where(live, xp.take(entries, state * size + token, mode='clip'), state)
        behind = xp.where(entry >= 256, start + entry // 256, behind)
        return entry % 256, start + bytes_long, behind

    none = xp.zeros(tokens.shape[0], xp.int32)
    _, total, behind = _fold(step, (none, none, none - 1), (tokens.T, mask.T, length.T), xp)
    return behind, total


def _text_behind(
    table: np.ndarray, tokens: Any, length: Any, behind: Any, total: Any, size: int, xp: ModuleType
) -> tuple[Any, Any]:
    """The text behind the phrase, at most `size` bytes of it, after MARGIN zeros.

    The whole text, up to C * Bmax bytes a sample, is never spelled out: the tokens pass by once more, and each of these
    few places remembers the last token that starts at or before it.

    Returns:
      (text uint8[S, MARGIN + size], seen int32[S]: the first position behind the text).
    """
    offset = xp.arange(MARGIN + size, dtype=xp.int32)[None]
    place = behind[:, None] + offset - MARGIN

    def step(carry: tuple, column: tuple) -> tuple:
        row, start = carry
        token, bytes_long = column
        here = (token * table.shape[1] - start)[:, None]  # + place = index in the flat table
        return xp.where(start[:, None] <= place, here, row), start + bytes_long

    row, _ = _fold(step, (xp.zeros_like(place), xp.zeros_like(total)), (tokens.T, length.T), xp)
    byte = xp.take(xp.asarray(table.reshape(-1)), row + place, mode='clip')
    seen = xp.minimum(total - behind, size) + MARGIN
    return xp.where((offset >= MARGIN) & (offset < seen[:, None]), byte, 0).astype(xp.uint8), seen


def _fold(step: Callable, carry: tuple, columns: tuple, xp: ModuleType) -> tuple:
    """carry = step(carry, column) for every token position, of arrays [C, S]; one small loop when compiled."""
    if xp is jnp:
        return jax.lax.scan(lambda carry, column: (step(carry, column), None), carry, columns, unroll=2)[0]
    for column in zip(*columns, strict=True):
        carry = step(carry, column)
    return carry
