"""Plain text: lines, paragraphs, and long ones cut without losing a byte."""

import pytest

from t5x_selfimprove.data.items import Bank, encode_examples, make_item
from t5x_selfimprove.data.text_file import TextFile
from t5x_selfimprove.vocabulary import ByteVocabulary

TEXT = 'First line.\nSecond, with é.\n\n  \nThird  \nFourth\r\n\r\nFifth'


@pytest.fixture
def path(tmp_path) -> str:
    (tmp_path / 'text.txt').write_bytes(TEXT.encode())
    return str(tmp_path / 'text.txt')


def texts(bank: TextFile) -> list[str]:
    return [item.rationale for item in bank.take(0, bank.size)]


def test_lines(path):
    bank = TextFile(path)
    bank.check()
    assert isinstance(bank, Bank)
    assert texts(bank) == ['First line.', 'Second, with é.', 'Third  ', 'Fourth', 'Fifth']
    assert bank.take(4, 2) == [make_item('', 'Fifth'), make_item('', 'First line.')]
    assert texts(TextFile(path, start=1, count=2)) == ['Second, with é.', 'Third  ']
    assert sorted(texts(TextFile(path, shuffle_seed=1))) == sorted(texts(bank))


def test_paragraphs(path):
    assert texts(TextFile(path, unit='paragraph')) == ['First line.\nSecond, with é.', 'Third  \nFourth', 'Fifth']


@pytest.mark.parametrize('max_bytes', [8, 9, 10, 11, 12, 15, 100])
def test_long_units_are_cut_without_loss(tmp_path, max_bytes):
    text = 'one two  three fourfivesixseven é北🙂🙂🙂🙂🙂🙂éééééééé end\nnew line       x'
    (tmp_path / 'long.txt').write_bytes(f'{text}\n\nshort'.encode())
    bank = TextFile(str(tmp_path / 'long.txt'), unit='paragraph', max_bytes=max_bytes)
    bank.check()
    parts = texts(bank)
    assert parts[-1] == 'short' and ''.join(parts[:-1]) == text
    assert all(1 <= len(part.encode()) <= max_bytes for part in parts)
    if max_bytes == 15:
        assert parts[:3] == ['one two  three', ' fourfivesixsev', 'en']


def test_becomes_examples(path):
    bank = TextFile(path)
    examples, _ = encode_examples(bank.take(0, bank.size), ByteVocabulary(), [2], [10], room=20)
    assert not examples.prompt_length.any()
    assert ByteVocabulary().decode(examples.tokens[1]) == 'Second, with é.'


def test_bad_bytes_are_refused_with_file_and_line(tmp_path):
    (tmp_path / 'a.txt').write_bytes(b'fine\n\nca\xff\n')
    bank = TextFile(str(tmp_path / 'a.txt'))
    with pytest.raises(ValueError, match=r'a\.txt, line 3: not UTF-8 text \(byte 3 of the item\)'):
        bank.check()
    TextFile(bank.path, count=1).check()


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        ({'unit': 'word'}, ValueError, "unit must be one of 'line', 'paragraph'; it is 'word'"),
        ({'max_bytes': 7}, ValueError, 'max_bytes must be at least 8'),
        ({'start': -1}, ValueError, 'start must be at least 0'),
        ({'count': 0}, ValueError, 'count must be at least 1'),
        ({'shuffle_seed': 1.5}, TypeError, 'shuffle_seed must be an integer'),
    ],
)
def test_refuses_wrong_settings(settings, error, message):
    with pytest.raises(error, match=message):
        TextFile('a.txt', **settings)


def test_missing_file_and_window(path):
    with pytest.raises(FileNotFoundError, match='TextFile: there is no file'):
        TextFile(path + 'x').check()
    with pytest.raises(ValueError, match='TextFile: start = 4 and count = 2 reach past the 5 items'):
        TextFile(path, start=4, count=2).check()
