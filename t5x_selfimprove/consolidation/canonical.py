"""How the text behind "The answer is" becomes canonical bytes, so that equal answers are equal arrays.

One code for device and host: every function takes a `Window`, which carries the array module (`jax.numpy` or `numpy`)
it works with. All is elementwise arithmetic on neighbouring bytes and a few reductions over the window; nothing loops.

A kind is a function `Window -> (bytes uint8[S, W], keep bool[S, W], found bool[S])`: the answer is the kept bytes, in
order. `kinds.py` has the table of them.
"""

import dataclasses
import functools
from types import ModuleType
from typing import Any

from jaxtyping import Bool, Int32, UInt8

MARGIN = 2  # empty positions before the text: room for the '-' and '0' that a number may need in front
NLI = (  # what is said of a conclusion, and how; '*' = the word may go on
    ('yes', ('yes', 'entail*')),
    ('no', ('no', 'contradict*')),
    (
        'unknown',
        ('not possible', 'impossible', 'cannot', "can't", 'neutral', 'unknown', 'unclear', 'maybe'),
    ),
)
REACH = 12  # how far a rule looks to either side of a byte

Mask = Bool[Any, 'S W']
Rows = Int32[Any, 'S']
Reading = tuple[UInt8[Any, 'S W'], Mask, Bool[Any, 'S']]


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """The text after a trigger phrase, as far as it is looked at.

        position    0  1  2  3  4  5  6  7  8  9
        text        0  0  ␠  $  1  ,  2  0  0  .  0  0     MARGIN zeros, the text, zeros
        seen = 10                                ^

    Attributes:
      text: the bytes; zeros before position MARGIN and from `seen` on. A zero byte in the text counts as a space.
      seen: the first position after the text.
      cut: the text goes on behind `seen`, or would have gone on had the model not been stopped.
      xp: `jax.numpy` or `numpy`.
    """

    text: UInt8[Any, 'S W']
    seen: Int32[Any, 'S']
    cut: Bool[Any, 'S']
    xp: ModuleType

    @functools.cached_property
    def position(self) -> Int32[Any, '1 W']:
        return self.xp.arange(self.text.shape[1], dtype=self.xp.int32)[None]

    @functools.cached_property
    def _padded(self) -> UInt8[Any, 'S _']:
        return self.xp.pad(self.text, ((0, 0), (REACH, REACH)))

    def at(self, offset: int) -> UInt8[Any, 'S W']:
        """The byte `offset` positions further on, for every position; zero outside."""
        return self._padded[:, REACH + offset : REACH + offset + self.text.shape[1]]

    def first(self, mask: Mask) -> Rows:
        """First position where the mask is set; W where it is nowhere."""
        return self.xp.min(self.xp.where(mask, self.position, self.text.shape[1]), axis=1)

    def last(self, mask: Mask) -> Rows:
        """Last position where the mask is set; -1 where it is nowhere."""
        return self.xp.max(self.xp.where(mask, self.position, -1), axis=1)

    @functools.cached_property
    def sentence(self) -> tuple[Rows, Bool[Any, 'S']]:
        """Where the first sentence ends, and whether that is known (False: it may go on behind what is seen).

        A sentence ends at a line's end, at '.', '!' or '?' before a space or the end of the text, or with the text.
        """
        last = self.position + 1 >= self.seen[:, None]
        pause = self.xp.where(last, ~self.cut[:, None], space(self.at(1)))
        stop = (self.text == ord('\n')) | (one_of(self.text, '.!?') & pause)
        stop = stop & (self.position < self.seen[:, None])
        return self.xp.minimum(self.first(stop), self.seen), stop.any(axis=1) | ~self.cut


def one_of(byte: Any, characters: str | bytes) -> Any:
    """Whether each byte is one of the characters (ASCII, or bytes)."""
    codes = characters.encode('ascii') if isinstance(characters, str) else characters
    return functools.reduce(lambda found, code: found | (byte == code), codes[1:], byte == codes[0])


def digit(byte: Any) -> Any:
    """Whether each byte is one of 0..9."""
    return (byte >= ord('0')) & (byte <= ord('9'))


def upper(byte: Any) -> Any:
    """Whether each byte is one of A..Z."""
    return (byte >= ord('A')) & (byte <= ord('Z'))


def letter(byte: Any) -> Any:
    """Whether each byte is an ASCII letter."""
    return upper(byte) | ((byte >= ord('a')) & (byte <= ord('z')))


def space(byte: Any) -> Any:
    """Space, tab, line ends, and the zero byte, which also stands where there is no text."""
    return (byte == ord(' ')) | ((byte >= 9) & (byte <= 13)) | (byte == 0)


def lower(byte: Any, xp: ModuleType) -> Any:
    """ASCII letters in lower case; all other bytes, those of UTF-8 sequences too, as they are."""
    return xp.where(upper(byte), byte + 32, byte).astype(xp.uint8)


def number(window: Window) -> Reading:
    """The first number of the sentence: '$1,200.00' -> b'1200', '-.50' -> b'-0.5', '-0' -> b'0', '50%' -> b'50'.

    Commas count as thousands separators where exactly three digits follow. A number that is only a part of something
    else ('1/2', '3:45', '1,5', '1.2.3', '2^10', '1e5') is no number, since reading its head would make different
    answers equal. A minus sign is '-' or U+2212, before or behind the currency sign, and no hyphen of a word
    ('covid-19' -> b'19').
    """
    xp, position, text = window.xp, window.position, window.text
    figure, figure_next = digit(text), digit(window.at(1))
    end, _ = window.sentence
    first = window.first(figure & (position < end[:, None]))[:, None]
    joined = digit(window.at(-1)) | letter(window.at(-1))
    leading_point = (text == ord('.')) & (position == first - 1) & ~joined & (window.at(-1) != ord('.'))
    start = first - leading_point.any(axis=1, keepdims=True)

    thousands = figure_next & digit(window.at(2)) & digit(window.at(3)) & ~digit(window.at(4))
    comma = (text == ord(',')) & digit(window.at(-1)) & thousands
    point = (text == ord('.')) & figure_next & (digit(window.at(-1)) | leading_point)
    inside = position >= start
    dot = window.first(inside & point)[:, None]
    stop = window.first(inside & ~(figure | (comma & (position < dot)) | (position == dot)))[:, None]
    dot = xp.minimum(dot, stop)

    behind = (position == stop) & one_of(text, ',./:^eE')
    partial = (behind & figure_next).any(axis=1)
    open_ended = (stop >= window.seen[:, None]) | (behind & (position + 1 >= window.seen[:, None]))
    found = (first[:, 0] < window.text.shape[1]) & ~partial & ~(window.cut & open_ended.any(axis=1))

    worth = figure & (text != ord('0')) & inside & (position < stop)
    top = window.first(worth & (position < dot))[:, None]
    bottom = window.last(worth & (position > dot))[:, None]
    whole = figure & (position >= top) & (position < dot)
    fraction = (position >= dot) & (position <= bottom)

    minus = (text == ord('-')) & ~joined
    minus = minus | ((text == 0x92) & (window.at(-1) == 0x88) & (window.at(-2) == 0xE2))
    # Behind the minus only what is written of currencies: $, \$, cent, pound, yen, euro (UTF-8 bytes); U+2212 itself.
    sign = one_of(text, b'-$\\\xc2\xa2\xa3\xa5\xe2\x82\xac\x88\x92')
    before = window.last(~sign & (position < start))[:, None]
    negative = (minus & (position > before) & (position < start)).any(axis=1) & worth.any(axis=1)

    zero = (position == start - 1) & (top >= dot)
    dash = (position == start - 2) & negative[:, None]
    # Where no '0' goes in front, the place of the '0' stays unkept, and the '-' is still before all digits.
    spelled = xp.where(zero, ord('0'), xp.where(dash, ord('-'), text)).astype(xp.uint8)
    return spelled, zero | dash | whole | fraction, found


def option(window: Window) -> Reading:
    """The first letter standing alone, in lower case: '(B)', 'b.', 'B)', 'option B because ...' -> b'b'.

    'a', 'I' and 'i' before a space are words ('a dog', 'I think'), not options.
    """
    text, position = window.text, window.position
    end, _ = window.sentence
    word = one_of(text, 'aiI') & one_of(window.at(1), ' \t')
    alone = letter(text) & ~_joins(window.at(-1)) & ~_joins(window.at(1)) & ~word
    first = window.first(alone & (position < end[:, None]))
    found = (first < text.shape[1]) & ~(window.cut & (first + 1 >= window.seen))
    return lower(text, window.xp), position == first[:, None], found


def yes_no(window: Window) -> Reading:
    """The first 'yes' or 'no' that is a word of its own, in whatever case -> b'yes', b'no'."""
    xp, position = window.xp, window.position
    small = lower(window.text, xp)
    one, two = lower(window.at(1), xp), lower(window.at(2), xp)
    opens = ~_joins(window.at(-1)) & (position < window.sentence[0][:, None])
    yes = (small == ord('y')) & (one == ord('e')) & (two == ord('s')) & ~_joins(window.at(3)) & opens
    no = (small == ord('n')) & (one == ord('o')) & ~_joins(window.at(2)) & opens
    first = window.first(yes | no)[:, None]
    length = 2 + (yes & (position == first)).any(axis=1, keepdims=True)
    found = (first[:, 0] < window.text.shape[1]) & ~(window.cut & ((first + length)[:, 0] >= window.seen))
    return small, (position >= first) & (position < first + length), found


def text(window: Window) -> Reading:
    """The whole sentence: lower case, one space for any run of them, no leading article, no punctuation around.

    'The  United States.' -> b'united states'. Brackets and signs are kept ('C++', 'f(x)', '-5').
    """
    xp, position = window.xp, window.position
    small, blank = lower(window.text, xp), space(window.text)
    end, ended = window.sentence
    inside = (position >= MARGIN) & (position < end[:, None])
    quotes = one_of(window.text, '"\'*`')
    first = window.first(inside & ~(blank | quotes | (window.text == ord(':'))))[:, None]
    last = window.last(inside & ~(blank | quotes | one_of(window.text, '.,;:!?')))[:, None]
    article = xp.minimum(_article(window, small) + first, window.text.shape[1])
    article = xp.max(xp.where(position == first, article, 0), axis=1, keepdims=True)
    behind = window.first((position >= article) & ~blank)[:, None]
    first = xp.where(behind <= last, behind, first)
    keep = (position >= first) & (position <= last) & ~(blank & space(window.at(-1)))
    return xp.where(blank, ord(' '), small).astype(xp.uint8), keep, ended & keep.any(axis=1)


def nli(window: Window) -> Reading:
    """The first word or phrase that says whether a conclusion holds -> b'yes', b'no', b'unknown'.

    'yes', 'entail...'; 'no', 'contradict...'; 'not possible', 'impossible', 'cannot', 'can\'t', 'neutral', 'unknown',
    'unclear', 'maybe'. So 'It is not possible to tell.' -> b'unknown'.
    """
    xp, position = window.xp, window.position
    small = lower(window.text, xp)
    opens = ~_joins(window.at(-1)) & (position < window.sentence[0][:, None])
    length = xp.zeros(window.text.shape, xp.int32)
    said = xp.zeros(window.text.shape, xp.int32)
    for number, (_, phrases) in enumerate(NLI, 1):
        for phrase in phrases:
            whole = phrase.removesuffix('*')
            here = opens & functools.reduce(
                lambda found, place, whole=whole: found & (lower(window.at(place), xp) == ord(whole[place])),
                range(1, len(whole)),
                small == ord(whole[0]),
            )
            if whole == phrase:
                here = here & ~_joins(window.at(len(whole)))
            length, said = xp.where(here, len(whole), length), xp.where(here, number, said)
    first = window.first(said > 0)[:, None]
    said, length = (xp.sum(xp.where(position == first, value, 0), axis=1) for value in (said, length))
    found = (said > 0) & ~(window.cut & (first[:, 0] + length >= window.seen))
    # The word stands at the front of the window, wherever the phrase stood.
    spelled, kept = xp.zeros(window.text.shape, xp.uint8), xp.zeros(window.text.shape, bool)
    for number, (word, _) in enumerate(NLI, 1):
        letters = xp.asarray(list(word.encode()) + [0] * window.text.shape[1], xp.uint8)[: window.text.shape[1]]
        chosen = (said == number)[:, None]
        spelled = xp.where(chosen, letters[None], spelled)
        kept = kept | (chosen & (position < len(word)))
    return spelled, kept, found


def _article(window: Window, small: Any) -> Any:
    """int32[S, W]: length of the article, with its space, that starts at each position; 0 = none."""
    xp = window.xp
    one, two = lower(window.at(1), xp), lower(window.at(2), xp)
    a = (small == ord('a')) & space(one)
    an = (small == ord('a')) & (one == ord('n')) & space(two)
    the = (small == ord('t')) & (one == ord('h')) & (two == ord('e')) & space(window.at(3))
    return 2 * a.astype(xp.int32) + 3 * an.astype(xp.int32) + 4 * the.astype(xp.int32)


def _joins(byte: Any) -> Any:
    """Bytes that make a letter beside them part of a word; those from 128 on belong to letters beyond ASCII."""
    return letter(byte) | digit(byte) | one_of(byte, "_'-") | (byte >= 128)


def assemble(reading: Reading, room: int, xp: ModuleType) -> tuple[UInt8[Any, 'S A'], Bool[Any, 'S']]:
    """Moves the kept bytes to the left.

    Returns:
      (answer, found): answers zero-padded to `room` bytes; all zeros where there is none, or where it is longer.
    """
    spelled, keep, found = reading
    width = spelled.shape[1]
    # A product with a triangle of ones is a running count in one operation; counts this small are exact in floats.
    rank = keep.astype(xp.float32) @ xp.triu(xp.ones((width, width), xp.float32))
    found = found & (rank[:, -1] >= 1) & (rank[:, -1] <= room)
    rank = xp.where(keep & found[:, None], rank, 0).astype(xp.uint8)
    here = rank[:, None, :] == xp.arange(1, room + 1, dtype=xp.uint8)[None, :, None]
    return xp.max(xp.where(here, spelled[:, None, :], xp.uint8(0)), axis=2), found
