"""Texts that vocabularies are tried on."""

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
