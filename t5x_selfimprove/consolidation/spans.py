"""Spans of text as DROP compares them: case, articles, punctuation and the spelling of numbers do not matter.

The normalisation of DROP's evaluation (Dua et al. 2019, arXiv:1903.00161), on device and host: text is parted at spaces
and hyphens; of each token, in lower case, punctuation is dropped unless the token is a number, a number is written one
way, and an article is dropped.

    'The St. Louis Rams'      b'st louis rams'
    'a 1,200-yard run'        b'1200 yard run'
    '5.0', '05'               b'5'
    '0.50'                    b'.5'

Left out: numbers as Python reads them besides digits and one point ('1e5', 'inf'), and credit for a part of an answer.
"""

from types import ModuleType
from typing import Any

from jaxtyping import Bool

from t5x_selfimprove.consolidation.canonical import (
    MARGIN,
    Mask,
    Reading,
    Rows,
    Window,
    digit,
    lower,
    one_of,
    space,
    upper,
)

LONGEST_ABBREVIATION = 3  # bytes before the full stop: 'St.', 'Mrs.', 'U.S.'


def span(window: Window) -> Reading:
    """The text up to the end of its line or sentence, normalised."""
    xp, position = window.xp, window.position
    small = lower(window.text, xp)
    end, ended = span_end(window)
    body = (position >= MARGIN) & (position < end[:, None]) & ~space(small) & (small != ord('-'))
    tokens = _Tokens(body, xp)

    figure, dot = digit(small), small == ord('.')
    other = tokens.total(body & ~figure & ~dot)
    is_number = (other == 0) & (tokens.total(body & dot) <= 1) & (tokens.total(body & figure) > 0)
    kept = body & (~_punctuation(small) | (dot & is_number))
    numeric = tokens.total(kept & ~figure & ~dot) == 0
    kept = kept & (~numeric | _worth(tokens, small, kept))

    rank, size = tokens.rank(kept), tokens.total(kept)
    articles = [
        (size == len(word))
        & (
            tokens.total(kept & sum_of([(rank == place) & (small == code) for place, code in enumerate(word, 1)]))
            == len(word)
        )
        for word in (b'a', b'an', b'the')
    ]
    kept = kept & ~sum_of(articles)
    # One space before every token but the first: the place before a token is a space or hyphen.
    filled = tokens.starts & (tokens.total(kept) > 0) & (running_count(kept, xp) - kept > 0)
    gap = xp.pad(filled[:, 1:], ((0, 0), (0, 1)))
    return xp.where(gap, ord(' '), small).astype(xp.uint8), kept | gap, ended & kept.any(axis=1)


def span_end(window: Window) -> tuple[Rows, Bool[Any, 'S']]:
    """Where a span ends, and whether that is known: as `Window.sentence`, but that 'St. Louis' goes on.

    A full stop ends nothing behind a capital letter with at most two more bytes, unless the line or text ends there.
    """
    xp, position, seen = window.xp, window.position, window.seen[:, None]
    last = position + 1 >= seen
    words = _Tokens(~space(window.text), xp)
    length = position - words.at_start(position)
    capital = words.at_start(xp.where(upper(window.text), 1, 0)) > 0
    goes_on = capital & (length <= LONGEST_ABBREVIATION) & (window.text == ord('.')) & ~one_of(window.at(1), '\n\r')
    pause = xp.where(last, ~window.cut[:, None], space(window.at(1)) & ~goes_on)
    stop = (window.text == ord('\n')) | (one_of(window.text, '.!?') & pause)
    stop = stop & (position < seen)
    return xp.minimum(window.first(stop), window.seen), stop.any(axis=1) | ~window.cut


def _worth(tokens: '_Tokens', small: Any, kept: Mask) -> Mask:
    """The bytes of numbers that count: no zeros in front or at the end of a fraction; of nothing but zeros the first.

    0 0 7 . 5 0     0 . 0     . 5
        ^ ^ ^       ^         ^ ^
    """
    figure, dot = kept & digit(small), kept & (small == ord('.'))
    fraction = figure & (tokens.rank(dot) > 0)
    significant = figure & (small != ord('0'))
    before = figure & ~fraction & (tokens.rank(significant & ~fraction) > 0)
    left = tokens.total(significant & fraction) - tokens.rank(significant & fraction)
    behind = fraction & ((left > 0) | (significant & fraction))
    point = dot & (tokens.total(significant & fraction) > 0)
    zero = figure & (tokens.total(significant) == 0) & (tokens.rank(figure) == 1)
    return before | behind | point | zero


def _punctuation(byte: Any) -> Any:
    """ASCII that is neither letter, digit, space nor control."""
    return (
        ((byte >= 33) & (byte <= 47))
        | ((byte >= 58) & (byte <= 64))
        | ((byte >= 91) & (byte <= 96))
        | ((byte >= 123) & (byte <= 126))
    )


class _Tokens:
    """Runs of set places of a mask; counts within them, at every place of theirs.

    mask       1 1 1 0 1 1
    values     0 1 1 0 1 0
    rank       0 1 2 . 1 1      up to the place, itself too
    total      2 2 2 . 1 1
    """

    def __init__(self, mask: Mask, xp: ModuleType):
        self.xp = xp
        self.starts = mask & ~xp.pad(mask[:, :-1], ((0, 0), (1, 0)))
        self.ends = mask & ~xp.pad(mask[:, 1:], ((0, 0), (0, 1)))

    def at_start(self, values: Any) -> Any:
        """What stands at the start of the run that a place is in (or comes after); values must not be negative."""
        xp = self.xp
        width = values.shape[-1]
        place = xp.where(self.starts, xp.arange(width, dtype=xp.int32)[None], 0)
        start = _running_max(place, xp)
        return xp.take_along_axis(xp.broadcast_to(values, start.shape), start, axis=1)

    def rank(self, values: Mask) -> Any:
        counted = running_count(values, self.xp)
        return counted - self.at_start(counted - values)

    def total(self, values: Mask) -> Any:
        """Set values of the run."""
        xp, width = self.xp, values.shape[-1]
        counted = running_count(values, xp)
        place = xp.where(self.ends, width - 1 - xp.arange(width, dtype=xp.int32)[None], 0)
        end = width - 1 - _running_max(place[:, ::-1], xp)[:, ::-1]
        return xp.take_along_axis(counted, end, axis=1) - self.at_start(counted - values)


def sum_of(masks: list[Mask]) -> Mask:
    """Where any of the masks is set."""
    result = masks[0]
    for mask in masks[1:]:
        result = result | mask
    return result


def running_count(mask: Mask, xp: ModuleType) -> Any:
    """int32[S, W]: set places up to each place, itself too."""
    width = mask.shape[1]
    # A product with a triangle of ones; counts this small are exact in floats.
    return (mask.astype(xp.float32) @ xp.triu(xp.ones((width, width), xp.float32))).astype(xp.int32)


def _running_max(values: Any, xp: ModuleType) -> Any:
    """int32[S, W]: the largest value up to each place; values must not be negative."""
    step, width = 1, values.shape[1]
    while step < width:
        values = xp.maximum(values, xp.pad(values[:, :-step], ((0, 0), (step, 0))))
        step *= 2
    return values
