"""Questions from JSON lines: the mapping, the errors with their line, and that labels can be kept out."""

import json
import os
import re

import numpy as np
import pytest

from t5x_selfimprove import records
from t5x_selfimprove.data import lines, record_files
from t5x_selfimprove.data.curriculum import Curriculum
from t5x_selfimprove.data.items import Bank, Unlabelled, check_banks, encode_questions, make_item
from t5x_selfimprove.data.question_files import JsonLines
from t5x_selfimprove.vocabulary import ByteVocabulary


def write(path, *rows) -> str:
    """A file of JSON rows; a row that is bytes already stands as it is."""
    path.write_bytes(b'\n'.join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b'\n')
    return str(path)


@pytest.fixture
def five(tmp_path) -> str:
    return write(tmp_path / 'five.jsonl', *[{'question': f'q{n}?', 'answer': str(n)} for n in range(5)])


def test_fields_are_mapped(tmp_path):
    path = write(tmp_path / 'a.jsonl', {'Body': ' one? ', 'steps': 'because', 'Result': ' 1 ', 'other': None})
    bank = JsonLines(path, question='Body', answer='Result', rationale='steps')
    assert bank.take(0, 1) == [make_item('one?', 'because', '1')]
    assert JsonLines(path, question='Body', answer=None).take(0, 1) == [make_item('one?', None, None)]
    assert isinstance(bank, Bank) and bank.size == 1 and bank.skipped == 0


def test_answer_is_cut_at_the_last_mark_and_patterns_are_dropped(tmp_path):
    path = write(
        tmp_path / 'a.jsonl', {'question': 'q', 'answer': '48/2 = <<48/2=24>>24\n#### is a mark\n#### <<x>>1,024 '}
    )
    bank = JsonLines(path, answer_after='####', drop_pattern=r'<<.*?>>')
    assert bank.take(0, 1) == [make_item('q', '48/2 = 24\n#### is a mark', '1,024')]


@pytest.mark.parametrize(
    ('value', 'text'),
    [(72, '72'), (72.0, '72'), (0.5, '0.5'), (-3, '-3'), (10**18, '1000000000000000000'), ('07', '07')],
)
def test_numbers_become_text(tmp_path, value, text):
    path = write(tmp_path / 'a.jsonl', {'question': 'q', 'answer': value})
    assert JsonLines(path).take(0, 1)[0].answer == text


def test_blank_lines_line_ends_and_byte_order_mark(tmp_path):
    rows = [
        b'\xef\xbb\xbf{"question": "a", "answer": "1"}\r',
        b'\r',
        b'',
        b'  \t',
        b'{"question": "\xc3\xa9", "answer": "2"}',
    ]
    path = tmp_path / 'a.jsonl'
    path.write_bytes(b'\n'.join(rows))  # no line end at the end
    assert [item.question for item in JsonLines(str(path)).take(0, 2)] == ['a', 'é']
    path.write_bytes(b'\n'.join([*rows, b'{"question": "c"}', b'']))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 6: there is no field 'answer'"):
        JsonLines(str(path)).check()


def test_lines_are_found_across_chunks(tmp_path, monkeypatch):
    rows = [b'a\r', b'', b'bb', b'ccc\r', b' ', b'dddd', b'e']
    path = tmp_path / 'a.txt'
    path.write_bytes(b'\n'.join(rows))
    version = lines.file_version(str(path), 'x')
    for chunk in (1, 2, 3, 5, 100):
        monkeypatch.setattr(lines, '_CHUNK', chunk)
        lines.line_index.cache_clear()
        index = lines.line_index(version)
        assert index.read(np.arange(len(index))) == [b'a', b'bb', b'ccc', b'dddd', b'e']
        assert index.number.tolist() == [1, 3, 4, 6, 7]
    assert index.read(np.array([4, 0, 0])) == [b'e', b'a', b'a']


def test_window_order_and_going_round(five):
    questions = lambda bank, *where: [item.question for item in bank.take(*where)]  # noqa: E731
    assert questions(JsonLines(five), 3, 4) == ['q3?', 'q4?', 'q0?', 'q1?']
    part = JsonLines(five, start=1, count=3)
    assert part.size == 3 and questions(part, 0, 4) == ['q1?', 'q2?', 'q3?', 'q1?']
    shuffled = JsonLines(five, start=1, shuffle_seed=3)
    epochs = [questions(shuffled, 4 * epoch, 4) for epoch in range(5)]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {('q1?', 'q2?', 'q3?', 'q4?')}
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert questions(shuffled, 2, 5) == (epochs[0] + epochs[1])[2:7]


def test_relative_paths_start_at_the_working_directory(five, monkeypatch):
    monkeypatch.chdir(os.path.dirname(five))
    assert JsonLines('five.jsonl').size == 5
    with pytest.raises(FileNotFoundError, match=r"there is no file 'six\.jsonl' \(relative to /"):
        JsonLines('six.jsonl').check()


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='JsonLines: there is no file'):
        _ = JsonLines(str(tmp_path / 'none.jsonl')).size
    with pytest.raises(ValueError, match='is a directory'):
        JsonLines(str(tmp_path)).check()
    (tmp_path / 'empty.jsonl').write_bytes(b'')
    with pytest.raises(ValueError, match=r'empty\.jsonl.* is empty'):
        JsonLines(str(tmp_path / 'empty.jsonl')).check()
    (tmp_path / 'blank.jsonl').write_bytes(b'\n \r\n\n')
    with pytest.raises(ValueError, match=r'blank\.jsonl.* has 0 items'):
        JsonLines(str(tmp_path / 'blank.jsonl')).check()


def test_window_past_the_end(five):
    with pytest.raises(ValueError, match=r'start = 3 and count = 3 reach past the 5 items'):
        JsonLines(five, start=3, count=3).check()
    with pytest.raises(ValueError, match='has 5 items, none from start = 5 on'):
        JsonLines(five, start=5).check()


BAD = [
    (b'{"question": "a", "answer": 1', 'not JSON: .* at column'),
    (b'{"question": "a\xff", "answer": "1"}', r'not UTF-8 text \(byte 16 of the line\)'),
    (b'[{"question": "a"}]', 'must hold a JSON object; this one holds a list'),
    ({'frage': 'a', 'answer': '1'}, "there is no field 'question'; the fields there are: 'frage', 'answer'"),
    ({'question': 'a', 'answer': None}, "field 'answer' must be text or a number; it is null"),
    ({'question': 'a', 'answer': True}, "field 'answer' must be text or a number; it is true"),
    ({'question': ['a'], 'answer': 1}, r"field 'question' must be text or a number; it is \[\"a\"\]"),
    (b'{"question": "a", "answer": NaN}', "field 'answer' must be text or a number; it is NaN"),
    ({'question': ' ', 'answer': '1'}, "field 'question' is empty"),
    ({'question': 'a', 'answer': ' '}, "field 'answer' holds no answer"),
]


@pytest.mark.parametrize(('row', 'message'), BAD)
def test_bad_lines_are_refused_with_file_and_line(tmp_path, row, message):
    good = {'question': 'a', 'answer': '1'}
    path = write(tmp_path / 'a.jsonl', good, b'', row, good)
    pattern = rf'a\.jsonl, line 3: .*{message}.*on_error=.skip.'
    with pytest.raises(ValueError, match=pattern):
        JsonLines(path).check()
    with pytest.raises(ValueError, match=pattern):
        JsonLines(path).take(1, 1)
    assert JsonLines(path).take(0, 1)[0].question == 'a'  # read line by line, so what comes before is there
    JsonLines(path, start=2).check()


def test_bad_lines_are_skipped_and_counted(tmp_path):
    good = [{'question': f'q{n}', 'answer': '1'} for n in range(3)]
    rows = [good[0], *[row for row, _ in BAD], good[1], BAD[0][0], good[2]]
    bank = JsonLines(write(tmp_path / 'a.jsonl', *rows), on_error='skip')
    (remark,) = bank.check()
    assert re.match(r'11 bad lines: .*a\.jsonl, line 2: not JSON: .* \.\.\.$', remark)
    assert check_banks(Unlabelled(bank), None, bank, Curriculum((bank,), 2)) == {'left out': remark}
    one, none = (
        JsonLines(write(tmp_path / name, *bad, *good), on_error='skip') for name, bad in (('c', [b'x']), ('d', []))
    )
    assert re.fullmatch(r'one bad line: .*c, line 1: not JSON: .*x.', check_banks(none, one)['left out'])
    assert check_banks(none, JsonLines(none.path)) == {}
    assert bank.size == 3 and bank.skipped == len(BAD) + 1
    assert [item.question for item in bank.take(0, 4)] == ['q0', 'q1', 'q2', 'q0']
    assert len(bank.skipped_reasons) == 10 and re.search(r'a\.jsonl, line 2: not JSON', bank.skipped_reasons[0])
    with pytest.raises(ValueError, match=r'past the 3 items .*\(11 bad lines were skipped, the first: .*line 2'):
        JsonLines(bank.path, on_error='skip', count=4).check()
    nothing = JsonLines(write(tmp_path / 'b.jsonl', BAD[0][0]), on_error='skip')
    with pytest.raises(ValueError, match=r'has 0 items.*1 bad lines were skipped'):
        nothing.check()


def test_a_line_nested_too_deeply_is_a_bad_line(five, monkeypatch):
    def overflow(_):
        raise RecursionError  # as of 100,000 brackets; made here, since real ones upset Python 3.11's own compiler

    monkeypatch.setattr(record_files.json, 'loads', overflow)
    with pytest.raises(ValueError, match='line 1: not readable as JSON: nested too deeply'):
        JsonLines(five).take(0, 1)


def test_answer_without_its_mark(tmp_path):
    path = write(tmp_path / 'a.jsonl', {'question': 'a', 'answer': 'twelve'})
    with pytest.raises(ValueError, match="line 1: the field 'answer' has no '####' in it: 'twelve'"):
        JsonLines(path, answer_after='####').check()


def test_a_changed_file_is_read_anew(five):
    bank = JsonLines(five)
    assert bank.size == 5
    with open(five, 'a', encoding='utf-8') as file:
        file.write('{"question": "new", "answer": "1"}\n')
    assert bank.size == 6 and bank.take(5, 1)[0].question == 'new'


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        ({'on_error': 'drop'}, ValueError, "on_error must be one of 'refuse', 'skip'; it is 'drop'"),
        ({'question': None}, ValueError, 'question must be a word; it is None'),
        ({'answer': ''}, ValueError, "answer must be a word; it is ''"),
        ({'answer': None, 'answer_after': '####'}, ValueError, 'it needs answer to be set'),
        ({'rationale': 'r', 'answer_after': '####'}, ValueError, 'and rationale to be None'),
        ({'drop_pattern': '<<('}, ValueError, "drop_pattern '<<\\(' is no regular expression"),
        ({'start': -1}, ValueError, 'start must be at least 0'),
        ({'count': 0}, ValueError, 'count must be at least 1'),
        ({'count': 1.0}, TypeError, 'count must be an integer'),
        ({'shuffle_seed': 'x'}, TypeError, 'shuffle_seed must be an integer'),
    ],
)
def test_refuses_wrong_settings(settings, error, message):
    with pytest.raises(error, match=message):
        JsonLines('a.jsonl', **settings)
    with pytest.raises(ValueError, match='path must be the path of a file'):
        JsonLines('').check()


def test_only_the_lines_asked_for_are_parsed(tmp_path, monkeypatch):
    path = write(tmp_path / 'a.jsonl', *[{'question': f'q{n}', 'answer': '1'} for n in range(1000)])
    parsed = []
    real = record_files.json.loads
    monkeypatch.setattr(record_files.json, 'loads', lambda text: parsed.append(text) or real(text))
    assert JsonLines(path, shuffle_seed=0).size == 1000 and not parsed
    JsonLines(path, shuffle_seed=0).take(500, 7)
    assert len(parsed) == 7


def test_flipping_every_label_changes_nothing_for_an_unlabelled_bank(tmp_path):
    rows = [{'question': f'what is {n}?', 'answer': f'steps {n} #### {n}'} for n in range(20)]
    true = JsonLines(write(tmp_path / 'true.jsonl', *rows), answer_after='####', shuffle_seed=0)
    for row in rows:
        row['answer'] = f'nonsense #### {int(row["question"].split()[-1][:-1]) + 1}'
    flipped = JsonLines(write(tmp_path / 'flipped.jsonl', *rows), answer_after='####', shuffle_seed=0)

    class Label:
        room = 4

        @staticmethod
        def canonical(text: str) -> bytes:
            return text.encode()

    def arrays(bank):
        questions, _ = encode_questions(bank.take(7, 20), ByteVocabulary(), 20, Label())
        records.check(questions)
        return vars(questions)

    assert (arrays(true)['answer'] != arrays(flipped)['answer']).any()
    one, other = arrays(Unlabelled(true)), arrays(Unlabelled(flipped))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not one['known'].any() and not one['answer'].any()
    assert Unlabelled(true).take(0, 20) == Unlabelled(flipped).take(0, 20)


def test_gsm8k(shared_data):
    path = shared_data / 'gsm8k' / 'train.jsonl'
    if not path.is_file():
        pytest.skip(f'no GSM8K at {path}')
    bank = JsonLines(str(path), answer_after='####', drop_pattern=r'<<.*?>>')
    bank.check()
    assert bank.size == 7473
    first = bank.take(0, 1)[0]
    assert first.answer == '72' and first.question.startswith('Natalia sold clips to 48')
    assert first.rationale == (
        'Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.'
    )
    for item in bank.take(0, bank.size):
        assert re.fullmatch(r'-?[\d,.]+', item.answer) and '<<' not in item.rationale and '####' not in item.rationale
