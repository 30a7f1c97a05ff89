"""Spans and conclusions: labels, and that spans are equal where DROP's evaluation has them equal."""

import re
import string

import numpy as np

from t5x_selfimprove.consolidation import AnswerFormat
from tests.consolidation.batches import BYTES


def test_labels_of_nli_and_spans():
    nli, span = AnswerFormat(BYTES, kind='nli'), AnswerFormat(BYTES, kind='span')
    assert [nli.canonical(label) for label in ('yes', 'no', 'it is not possible to tell')] == [
        b'yes',
        b'no',
        b'unknown',
    ]
    assert span.canonical('St. Louis') == b'st louis' and span.canonical('Rams. Bears') == b''
    assert span.canonical('17') == span.canonical('17.0') == span.canonical('017') == b'17'


def official(text: str) -> str:
    """The normalisation of DROP's evaluation, as published: numbers in Python's spelling."""

    def is_number(token: str) -> bool:
        try:
            float(token)
        except ValueError:
            return False
        return True

    tokens = []
    for token in re.split(' |-', text.lower()):
        token = token if is_number(token) else ''.join(c for c in token if c not in string.punctuation)
        token = str(float(token)) if is_number(token) else token
        tokens.append(' '.join(re.sub(r'\b(a|an|the)\b', ' ', token).split()))
    return ' '.join(filter(None, tokens))


def test_spans_are_equal_where_drop_has_them_equal():
    rng = np.random.default_rng(5)
    pieces = [*'0 5 00 12 , . $ - % / : ( ) " x B I a A the The an 1,200 1200 .5 0.5 0.50 5.0 an.'.split(), *[' '] * 12]
    answers = AnswerFormat(BYTES, kind='span', room=64)
    labels = [
        ''.join(pieces[place] for place in rng.integers(len(pieces), size=rng.integers(1, 6))) for _ in range(500)
    ]
    pairs = [(official(label), answers.canonical(label)) for label in labels if '. ' not in label + ' ']
    pairs = [(theirs, ours) for theirs, ours in pairs if theirs or ours]
    assert len(pairs) > 250 and len(dict(pairs)) < len(pairs) - 60
    assert len(set(pairs)) == len({theirs for theirs, _ in pairs}) == len({ours for _, ours in pairs})
