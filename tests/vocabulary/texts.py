"""Texts that vocabularies are tried on."""

import itertools
import random
from collections.abc import Iterator

AWKWARD = (
    '',
    ' ',
    '  two  spaces  ',
    '\n\n\tx\r\n',
    'naïve 北京 🙂',
    '\u2581 is how SentencePiece writes a space: a\u2581b\u2581\u2581',
    '\u00a0\ufb01\u2047\u0000',
    '$1,200.50 = 12*100.5',
    '<pad></s><unk><0x0A>',
)
STORY = "Hugo's pens cost 12 coins. He has 7 pens, and 1205 cards! The answer is 21.\nWhy?"

EMOJI = ('\U0001f468\u200d\U0001f469\u200d\U0001f467', '\U0001f1e9\U0001f1ea', '\U0001f44d\U0001f3fd', '\u2764\ufe0f')
PLANES = tuple(itertools.pairwise((0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x30000, 0xE0000, 0xF0000, 0x110000)))


def any_texts(seed: int, count: int) -> Iterator[str]:
    """Texts of all kinds of Unicode: every plane, marks, emoji, controls, spaces, digits, line ends, plain words."""
    draw = random.Random(seed)

    def character(least: int, below: int) -> str:
        code = draw.randrange(least, below)
        return chr(code) if not 0xD800 <= code < 0xE000 else '\ufffd'

    words = STORY.replace('\n', ' ').split(' ')
    kinds = (
        lambda: character(*draw.choice(PLANES)),
        lambda: character(0, 0x250),
        lambda: draw.choice('aeoAn<|') + character(0x300, 0x370) + draw.choice(('', '\u0327')),
        lambda: character(0x1100, 0x1113) + character(0x1161, 0x1176),  # Korean letters that compose
        lambda: draw.choice((*EMOJI, character(0x1F300, 0x1FAFF))),
        lambda: character(0, 0x20),
        lambda: draw.choice((' ', '\t', '\u00a0', '\u2003', '\u3000')) * draw.randrange(1, 9),
        lambda: str(draw.randrange(10 ** draw.randrange(1, 12))),
        lambda: draw.choice(('\n', '\r\n', '\n\n\n', '\u2028')),
        lambda: draw.choice(('\u2581', 'Ġ', '\ufb01', '\uff21', '<0x0A>', '</s>', '\u2047', '\ue000')),
        lambda: ' ' + draw.choice(words),
        lambda: draw.choice(words),
    )  # fmt: skip
    for _ in range(count):
        yield ''.join(draw.choice(kinds)() for _ in range(draw.randrange(1, 30)))
