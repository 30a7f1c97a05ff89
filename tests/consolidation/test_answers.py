"""Answers: exact small cases, and device == host == a plain reference on random text cut into random tokens."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from t5x_selfimprove.consolidation import AnswerFormat, answer_bytes, answer_text
from t5x_selfimprove.consolidation.kinds import KINDS, WHOLE
from t5x_selfimprove.vocabulary import WordVocabulary
from tests.consolidation.batches import BYTES, Spelled, rows, unchecked
from tests.consolidation.reference import reference

FORMATS = {kind: AnswerFormat(BYTES, kind=kind) for kind in KINDS}


def read(answers: AnswerFormat, *texts: str | bytes, ended: bool = True) -> list[bytes]:
    """Answers of texts in the byte vocabulary, on the host."""
    spelled = [text if isinstance(text, bytes) else text.encode() for text in texts]
    tokens, mask = rows([[byte + 3 for byte in text] for text in spelled])
    answer, found = answers.extract_host(tokens, mask, np.full(len(texts), ended))
    assert answer.dtype == np.uint8 and answer.shape == (len(texts), answers.room)
    assert ((answer > 0).any(axis=1) == found).all()
    return [answer_bytes(one) for one in answer]


NUMBERS = [
    (' 21.', '21'),
    (' 21', '21'),
    (': 21', '21'),
    ('\n21', ''),
    (' $1,200.00', '1200'),
    (' 1200', '1200'),
    (' 1,200', '1200'),
    (' $ 1,200', '1200'),
    (' 12,345,678.900 dollars', '12345678.9'),
    (' -7', '-7'),
    (' -$7', '-7'),
    (' $-7', '-7'),
    (' \u22127', '-7'),
    (' \u20ac-5.10', '-5.1'),
    (' -\u00a35', '-5'),
    (' \\$20', '20'),
    (' covid-19', '19'),
    (' - 5', '5'),
    (' -0', '0'),
    (' -0.00', '0'),
    (' 007', '7'),
    (' 0', '0'),
    (' 000.0100', '0.01'),
    (' .5', '0.5'),
    (' -.50', '-0.5'),
    (' ...5', '5'),
    (' No.5', '5'),
    (' 50%', '50'),
    (' **42**', '42'),
    (' \\boxed{42}', '42'),
    (' that he has 3 pens and 4 pencils.', '3'),
    (' 3. Then 4', '3'),
    (' 3.Then', '3'),
    (' unknown. There are 4', ''),
    (' unknown\n4', ''),
    (' 1, 2 or 3', '1'),
    (' 1/2', ''),
    (' 3:45', ''),
    (' 1,5', ''),
    (' 1,2000', ''),
    (' 1.2.3', ''),
    (' 2^10', ''),
    (' 1e5', ''),
    (' ', ''),
    ('', ''),
    ('n\u2019t 7', ''),
    ('7', '7'),
    (' 1234567890123456', '1234567890123456'),
    (' 12345678901234567', ''),
    (' -1234567890123456', ''),
    (' 00000000000000000000012', '12'),
]


@pytest.mark.parametrize(('text', 'answer'), NUMBERS)
def test_number(text: str, answer: str):
    assert read(FORMATS['number'], f'2 + 2 = 4. The answer is{text}') == [answer.encode()]


@pytest.mark.parametrize(
    ('kind', 'text', 'answer'),
    [
        ('option', ' (B)', 'b'),
        ('option', ' b.', 'b'),
        ('option', ' B)', 'b'),
        ('option', ' option C because', 'c'),
        ('option', ' a dog (D)', 'd'),
        ('option', ' a.', 'a'),
        ('option', ' A', 'a'),
        ('option', ' A dog', 'a'),
        ('option', ' \u00e9a', ''),
        ('option', " it's", ''),
        ('option', ' Dog', ''),
        ('option', ' what I say', ''),
        ('option', '. B', ''),
        ('yes_no', ': Yes, it is', 'yes'),
        ('yes_no', ' NO.', 'no'),
        ('yes_no', ' not known, no', 'no'),
        ('yes_no', ' yesterday', ''),
        ('yes_no', ' no-one', ''),
        ('yes_no', '. Yes', ''),
        ('text', ' The  Red\tSea!', 'red sea'),
        ('text', ': "Paris".', 'paris'),
        ('text', ' an apple', 'apple'),
        ('text', ' a', 'a'),
        ('text', ' the.', 'the'),
        ('text', ' theatre', 'theatre'),
        ('text', ' C++', 'c++'),
        ('text', ' -5', '-5'),
        ('text', ' 3.5 km. It', '3.5 km'),
        ('text', ' \u00c9ric', '\u00c9ric'),
        ('text', ' .', ''),
        ('text', ' one two three four', ''),
        ('nli', ' yes.', 'yes'),
        ('nli', ': No, since', 'no'),
        ('nli', ' it is not possible to tell.', 'unknown'),
        ('nli', ' Entailment', 'yes'),
        ('nli', ' that they contradict each other', 'no'),
        ('nli', " we can't say, no", 'unknown'),
        ('nli', ' noone', ''),
        ('nli', ' nothing', ''),
        ('nli', '. Yes', ''),
        ('span', ' The St. Louis Rams.', 'st louis rams'),
        ('span', ' the St. Louis Rams. They', 'st louis rams'),
        ('span', ' a 1,200-yard run', '1200 yard run'),
        ('span', ' 05.0', '5'),
        ('span', ' .50', '.5'),
        ('span', ' 0.0', '0'),
        ('span', ' 3.5%', '35'),
        ('span', ' $5', '5'),
        ('span', ' 1.2.3', '123'),
        ('span', ' 7-0', '7 0'),
        ('span', ' "The" (A) an: X', 'x'),
        ('span', ' U.S. Navy\nThat', 'us navy'),
        ('span', ' Tom.\nHe', 'tom'),
        ('span', ' 21 July 1944', '21 july 1944'),
        ('span', ' the', ''),
        ('span', ' \u00c9ric', '\u00c9ric'),
    ],
)
def test_other_kinds(kind: str, text: str, answer: str):
    assert read(FORMATS[kind], f'So the answer is{text}') == [answer.encode()]


def test_trigger_is_the_last_in_any_case():
    answers = FORMATS['number']
    assert read(answers, 'The answer is 1. THE ANSWER IS 2. tHe AnSwEr Is 3.') == [b'3']
    assert read(answers, 'The answer is 1. The answer is', 'The answer 1', 'the answer isnt 4', '') == [b''] * 4
    assert read(AnswerFormat(BYTES, trigger='####'), 'x ##### 18', '####', '### 4') == [b'18', b'', b'']
    assert read(AnswerFormat(BYTES, trigger='aab'), 'aaab 7', 'AAAAB 7 aaaab 8 aa') == [b'7', b'8']
    assert read(AnswerFormat(BYTES, trigger='aba'), 'ababa 7') == [b'7']


def test_masked_tokens_are_not_read():
    text = 'x The answer is 3. The answer is 9.'
    tokens, mask = rows([BYTES.encode(text)] * 3)
    mask[0, 18:] = False
    mask[1, 20:33] = False  # '3. 9.' is left behind the first phrase, and a cut at 9 is the end of a sentence
    answer, _ = FORMATS['number'].extract_host(tokens, mask)
    assert [answer_bytes(one) for one in answer] == [b'3', b'3', b'9']
    on_device, _ = jax.jit(FORMATS['number'].extract)(tokens, mask)
    assert (np.asarray(on_device) == answer).all()


def test_nothing_is_shortened_to_fit():
    answers = AnswerFormat(BYTES, room=3, window=8)
    said = 'the answer is'
    assert read(answers, f'{said} 123', f'{said} 1234', f'{said} 001.50', f'{said} -12') == [
        b'123',
        b'',
        b'1.5',
        b'-12',
    ]
    # Of 8 bytes behind the phrase the number must end within, and what follows must show that it does.
    assert read(answers, f'{said}      12', f'{said}      12 ', f'{said}     12 ', f'{said}      123') == [
        b'12',
        b'',
        b'12',
        b'',
    ]
    assert read(answers, f'{said}     12.', f'{said}     12.5', f'{said}     12. ') == [b'12', b'', b'']
    assert read(dataclasses.replace(answers, kind='text'), f'{said} abc. ', f'{said} abcd', f'{said}   abc. x') == [
        b'abc',
        b'',
        b'abc',
    ]
    assert read(dataclasses.replace(answers, kind='text'), f'{said}     abcd') == [b'']


@pytest.mark.parametrize(
    ('kind', 'texts', 'answers'),
    [
        ('number', ['21', '21.', '21. ', '21 ', '21,', '1/', '1.5 '], [b'', b'', b'21', b'21', b'', b'', b'1.5']),
        ('option', ['b', 'b.', '(B'], [b'', b'b', b'']),
        ('yes_no', ['yes', 'no.', 'no'], [b'', b'no', b'']),
        ('nli', ['yes', 'yes.', 'not possible', 'not possible.'], [b'', b'yes', b'', b'unknown']),
        ('text', ['red', 'red.', 'red. ', 'red\n'], [b'', b'', b'red', b'red']),
        ('span', ['5', '5.', '5. ', '5\n', 'St. '], [b'', b'', b'5', b'5', b'']),
    ],
)
def test_what_a_cut_may_have_shortened_is_no_answer(kind: str, texts: list[str], answers: list[bytes]):
    assert read(FORMATS[kind], *[f'The answer is {text}' for text in texts], ended=False) == answers
    whole = [text for text in texts if text != '1/']
    assert b'' not in read(FORMATS[kind], *[f'The answer is {text}' for text in whole])


def test_labels():
    number, text = FORMATS['number'], FORMATS['text']
    assert [number.canonical(label) for label in ('1,200', ' $5 ', '-0', '#### 3', 'none', '1/2', '')] == [
        b'1200',
        b'5',
        b'0',
        b'3',
        b'',
        b'',
        b'',
    ]
    assert number.canonical('She has 4. The answer is 3.') == b'3'
    assert number.canonical("The answer isn't 3.") == b''
    assert text.canonical('The Red Sea.') == b'red sea'
    assert text.canonical('Mr. Smith') == text.canonical('one\ntwo') == b''
    assert text.canonical('x' * 16) == b'x' * 16 and text.canonical('x' * 17) == text.canonical('x' * 80) == b''
    assert [FORMATS['option'].canonical(label) for label in ('(C)', 'c', 'C.')] == [b'c'] * 3
    assert answer_text(np.frombuffer('\u00e9a\0\0'.encode(), np.uint8)) == '\u00e9a'


def test_words_and_bytes_agree():
    text = 'Hugo has 7 pens. The answer is 21.'
    words = WordVocabulary.learn([text])
    for vocabulary in (BYTES, words):
        tokens, mask = rows([[*vocabulary.encode(text), vocabulary.eos_id]])
        assert answer_bytes(AnswerFormat(vocabulary).extract_host(tokens, mask)[0][0]) == b'21'


PIECES = [
    *'0 1 12 200 000 123456789 , . $ - % / : ! ? ( ) " e x B I a A no Yes yes No'.split(),
    *[
        ' ',
        ' ',
        ' ',
        '. ',
        '\n',
        '\t',
        '\0',
        ' a ',
        ' an ',
        'The ',
        '\u20ac',
        '\u2212',
        '\u00e9',
        "'",
        '1,200',
        '-.5',
        '^',
    ],
    *[
        'St. ',
        'St.',
        '05.0',
        '.50',
        '0',
        'a.',
        '-',
        '&',
        'Mrs. A',
        "can't",
        'maybe ',
        'not possible',
        'Entailment',
        'no',
    ],
    *['The answer is', 'THE ANSWER IS', 'the answer is ', 'The answer', 'The The answer is '],
]


def random_texts(rng: np.random.Generator, count: int) -> list[bytes]:
    texts = []
    for _ in range(count):
        drawn = [PIECES[place] for place in rng.integers(len(PIECES), size=rng.integers(1, 12))]
        if rng.random() < 0.8:
            drawn.insert(rng.integers(len(drawn)), 'The answer is ')
        texts.append(''.join(drawn).encode()[: rng.integers(1, 90)])
    return texts


def random_vocabulary(rng: np.random.Generator, texts: list[bytes]) -> Spelled:
    """All bytes, and many pieces of the texts, some of them long, some twice; special tokens that spell nothing."""
    pieces = []
    for text in texts[:400]:
        start = rng.integers(len(text))
        pieces.append(text[start : start + rng.integers(1, 20)])
    return Spelled((b'', b'', *[bytes([byte]) for byte in range(256)], b'', *pieces))


def random_tokens(rng: np.random.Generator, vocabulary: Spelled, text: bytes) -> list[int]:
    """One of the ways to cut a text into tokens, with tokens that spell nothing here and there."""
    starting: dict[int, list[int]] = {}
    for token, spelling in enumerate(vocabulary.spellings):
        starting.setdefault(spelling[0] if spelling else -1, []).append(token)
    ids, place = [], 0
    while place < len(text):
        fitting = [t for t in starting[text[place]] if text.startswith(vocabulary.spellings[t], place)]
        longest = max(fitting, key=lambda token: len(vocabulary.spellings[token]))
        token = longest if rng.random() < 0.5 else int(rng.choice(fitting))
        ids += [token] + [int(rng.choice(starting[-1]))] * (rng.random() < 0.1)
        place += len(vocabulary.spellings[token])
    return ids


@pytest.mark.parametrize('kind', list(KINDS))
@pytest.mark.parametrize(('room', 'window'), [(16, 64), (4, 17)])
def test_device_equals_host_equals_reference(kind: str, room: int, window: int):
    rng = np.random.default_rng(room)
    texts = random_texts(rng, 1500)
    vocabulary = random_vocabulary(rng, texts)
    answers = AnswerFormat(vocabulary, kind=kind, room=room, window=window)
    tokens, mask = rows([random_tokens(rng, vocabulary, text) for text in texts])
    assert [
        b''.join(vocabulary.spellings[t] for t in row[keep]) for row, keep in zip(tokens, mask, strict=True)
    ] == texts
    ended = rng.random(len(texts)) < 0.7
    answer, found = jax.tree.map(np.asarray, jax.jit(answers.extract)(tokens, mask, ended))
    on_host, found_on_host = answers.extract_host(tokens, mask, ended)
    wanted = [reference(answers, text, bool(whole)) for text, whole in zip(texts, ended, strict=True)]
    wrong = [
        (text, whole, one, answer_bytes(got))
        for text, whole, one, got in zip(texts, ended, wanted, answer, strict=True)
        if one != answer_bytes(got)
    ]
    assert not wrong, wrong[:5]
    assert (answer == on_host).all() and (found == found_on_host).all()
    assert (found == [one != b'' for one in wanted]).all()
    assert 30 < found.sum() < len(texts) - 30


def test_labels_are_read_as_samples_are():
    rng = np.random.default_rng(3)
    labels = [
        ''.join(PIECES[place] for place in rng.integers(len(PIECES), size=rng.integers(1, 6))) for _ in range(300)
    ]
    labels = [label for label in labels if 'nswer' not in label]
    for kind, answers in FORMATS.items():
        said = read(answers, *[f'The answer is {label}' for label in labels])
        ours = [answers.canonical(label) for label in labels]
        if kind in WHOLE:  # a label of several sentences is refused; of a sample the first one counts
            pairs = [(one, other) for one, other in zip(said, ours, strict=True) if other]
            said, ours = zip(*pairs, strict=True)
        assert list(said) == list(ours)


def test_without_samples_and_without_tokens():
    answers = FORMATS['number']
    answer, found = answers.extract_host(np.zeros((0, 5), np.int32), np.zeros((0, 5), bool))
    assert answer.shape == (0, 16) and found.shape == (0,)
    answer, found = answers.extract_host(np.zeros((2, 5), np.int32), np.zeros((2, 5), bool))
    assert not answer.any() and not found.any()


@pytest.mark.parametrize(('rows_', 'columns'), [(4800, 32), (200, 512)])
def test_memory_grows_with_samples_only(rows_: int, columns: int):
    answers = FORMATS['number']
    tokens, mask = np.zeros((rows_, columns), np.int32), np.ones((rows_, columns), bool)
    memory = jax.jit(answers.extract).lower(tokens, mask).compile().memory_analysis().temp_size_in_bytes
    assert memory < rows_ * (66 * 40 + columns * 10)


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'vocabulary': 'bytes'}, 'must be a vocabulary; it is a str'),
        ({'trigger': ''}, "1..200 bytes; it is ''"),
        ({'trigger': 'is '}, "must not begin or end with a space; it is 'is '"),
        ({'kind': 'numbers'}, "'number', 'option', 'yes_no', 'nli', 'text', 'span'; it is 'numbers'"),
        ({'room': 0}, 'room is 0'),
        ({'room': 65}, 'room is 65, window is 64'),
        ({'window': 201}, 'window is 201'),
        ({'room': 8.0}, 'room is 8.0'),
    ],
)
def test_fields_are_checked(fields: dict, said: str):
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        unchecked(AnswerFormat(BYTES), **fields).__post_init__()


def test_equal_formats_are_one_static_value():
    one, other = AnswerFormat(BYTES), AnswerFormat(type(BYTES)())
    assert one == other and hash(one) == hash(other)
    assert one != AnswerFormat(BYTES, kind='text')
