"""The same questions in every format: the same items by the same mapping, and what is wrong with a record is told."""

import csv
import dataclasses
import json
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from t5x_selfimprove.data import lines, record_files
from t5x_selfimprove.data.fields import labelled_choices, option_letter, value_at
from t5x_selfimprove.data.items import Bank, make_item
from t5x_selfimprove.data.question_files import Csv, FileBank, Json, JsonLines, Parquet
from t5x_selfimprove.data.record_files import form_of

ROWS = [
    {'Body': f'Ann says "{n}",\nBob, too.', 'Question': f'What\tis {n} é?', 'steps': f'It is\n{n}.', 'Result': str(n)}
    for n in range(23)
]
MAPPING = {'question': '{Body} {Question}', 'answer': 'Result', 'rationale': 'steps'}
ITEMS = [make_item(f'{row["Body"]} {row["Question"]}', row['steps'], row['Result']) for row in ROWS]


def banks(folder, rows=ROWS, **mapping) -> dict[str, FileBank]:
    """The rows in a file of each format, and the bank that reads it."""
    (folder / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (folder / 'a.json').write_text(json.dumps({'data': {'all': rows}}))
    with open(folder / 'a.csv', 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / 'a.parquet', row_group_size=5)
    return {
        'jsonl': JsonLines(str(folder / 'a.jsonl'), **mapping),
        'json': Json(str(folder / 'a.json'), array='data.all', **mapping),
        'csv': Csv(str(folder / 'a.csv'), **mapping),
        'parquet': Parquet(str(folder / 'a.parquet'), **mapping),
    }


def test_every_format_gives_the_same_items(tmp_path):
    for name, bank in banks(tmp_path, **MAPPING).items():
        assert isinstance(bank, Bank) and bank.size == 23, name
        assert bank.check() == [] and bank.take(0, 23) == ITEMS, name
        assert bank.take(20, 7) == ITEMS[20:] + ITEMS[:4], name
        shuffled = dataclasses.replace(bank, shuffle_seed=3, start=2)
        epochs = shuffled.take(0, 42)
        assert epochs == dataclasses.replace(JsonLines(**MAPPING, path=str(tmp_path / 'a.jsonl')), shuffle_seed=3,
                                             start=2).take(0, 42)  # fmt: skip
        assert sorted(item.id for item in epochs[:21]) == sorted(item.id for item in ITEMS[2:]), name
        assert shuffled.take(17, 9) == epochs[17:26], name  # resumed in the middle


def test_tabs(tmp_path):
    (tmp_path / 'a.tsv').write_text('index\tsentence1\tlabel\n0\tA 5" pipe\tyes\n1\t"Odd\tno\n')
    bank = Csv(str(tmp_path / 'a.tsv'), tabs=True, question='sentence1', answer='label')
    assert bank.take(0, 2) == [make_item('A 5" pipe', None, 'yes'), make_item('"Odd', None, 'no')]


def test_nested_fields_and_choices(tmp_path):
    rows = [
        {'q': {'stem': 'Who?', 'choices': [{'label': '1', 'text': 'he'}, {'label': '2', 'text': 'she'}]}, 'key': '2'},
        {'q': {'stem': 'How?', 'choices': [{'label': 'A', 'text': 'so'}, {'label': 'B', 'text': 'not'}]}, 'key': 'A'},
    ]
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'a.parquet')
    for make, name in ((JsonLines, 'a.jsonl'), (Parquet, 'a.parquet')):
        bank = make(str(tmp_path / name), question='q.stem', choices='q.choices', answer='key')
        assert bank.take(0, 2) == [
            make_item('Who?\nOptions: (A) he (B) she', None, 'B'),
            make_item('How?\nOptions: (A) so (B) not', None, 'A'),
        ]
        unlabelled = dataclasses.replace(bank, answer=None)
        assert [item.answer for item in unlabelled.take(0, 2)] == [None, None]


def test_paths_and_choices():
    record = {'a.b': 1, 'a': {'b': 2, 'c': [3, {'d': 4}]}}
    assert [value_at(record, path) for path in ('a.b', 'a.c.0', 'a.c.1.d')] == [1, 3, 4]
    with pytest.raises(ValueError, match=r"no field 'a.x.y'; the fields of 'a' there are: 'b', 'c'"):
        value_at(record, 'a.x.y')
    with pytest.raises(ValueError, match=r"no field 'a.c.2'; the fields of 'a.c' there are: a list"):
        value_at(record, 'a.c.2')
    assert labelled_choices(['A)5', '(b) six', 'C. 7']) == (['A', 'B', 'C'], ['5', 'six', '7'])
    assert labelled_choices(['A)5', 'six']) == (['A', 'B'], ['A)5', 'six'])
    assert labelled_choices({'text': ['x', 'y'], 'label': ['1', '2']}) == (['1', '2'], ['x', 'y'])
    for bad in ('xy', [], [1, 2], {'text': ['x']}, {'text': ['x'], 'label': ['A', 'B']}, ['x'] * 27):
        with pytest.raises(ValueError, match='choices'):
            labelled_choices(bad)
    assert option_letter('3', ['1', '2', '3']) == 'C'
    with pytest.raises(ValueError, match="'E' is none of the choices A, B"):
        option_letter('E', ['A', 'B'])


def test_bad_records_are_told_by_file_and_place(tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[7]['Result'] = ' '
    places = {'jsonl': 'line 8', 'json': 'element 8', 'csv': 'line 23', 'parquet': 'row 8'}
    for name, bank in banks(tmp_path, rows, **MAPPING).items():
        with pytest.raises(ValueError, match=rf"a\.{name}, {places[name]}: the field 'Result' holds no answer"):
            bank.check()
        skipping = dataclasses.replace(bank, on_error='skip')
        assert skipping.size == 22 and skipping.take(0, 22) == ITEMS[:7] + ITEMS[8:]
        assert re.match(rf'one bad line: .*{places[name]}: ', skipping.check()[0])
        with pytest.raises(ValueError, match=r"no field 'frage'; the fields there are: .*'Body'.*'Result'"):
            dataclasses.replace(bank, question='frage').check()


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.csv', b'q,a\n1,"x"y\n', r'a\.csv, line 2: not CSV: '),
        ('a.csv', b'q,a\n"1\n2",3\n4\n', r'a\.csv, line 4: there are 1 fields; the first line names 2'),
        ('a.csv', b'q,a\n\xff,3\n', r'a\.csv, line 2: not UTF-8 text'),
        ('a.csv', b'q,a\n1,2\n"3,4\n5,6\n', r'a\.csv: .* odd, .* last record begins on line 3'),
        ('a.csv', b'q,q\n1,2\n', r'a\.csv, line 1: it names a field twice'),
        ('a.csv', b'q,a\n', r'a\.csv.* has 0 items'),
        ('a.json', b'[{"q": 1},\n{"q": }]', r'a\.json, line 2: not JSON'),
        ('a.json', b'{"q": 1}\n{"q": 2}\n', r'a\.json, line 2: not JSON: Extra data.*it is JSON lines'),
        ('a.json', b'{"q": 1}', r'a\.json: the document must be an array of records; it is a dict'),
        ('a.parquet', b'PAR2 and so on', r"a\.parquet' is no Parquet file"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text)
    make = {'.csv': Csv, '.json': Json, '.parquet': Parquet}[form_of(name, 'test')]
    with pytest.raises(ValueError, match=message):
        make(str(tmp_path / name), question='q', answer=None).check()


def test_json_array_in_a_json_lines_bank(tmp_path):
    (tmp_path / 'a.jsonl').write_text('[{"question": "q"}]\n')
    with pytest.raises(ValueError, match=r'line 1: a line must hold a JSON object; .* read it with data\.Json'):
        JsonLines(str(tmp_path / 'a.jsonl')).check()


def test_names_of_files():
    assert [form_of(name, 'x') for name in ('a.JSONL', 'b.ndjson', 'c.pq', 'd.tsv')] == [
        '.jsonl', '.jsonl', '.parquet', '.tsv',
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"x: the name of 'a.gz' must end in one of \.jsonl, \.csv"):
        form_of('a.gz', 'x')


def test_parquet_holds_two_row_groups_of_the_columns_that_are_read(tmp_path, monkeypatch):
    bank = banks(tmp_path, **MAPPING)['parquet']
    read = []
    real = pyarrow.parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile,
        'read_row_group',
        lambda file, group, columns: read.append((group, columns)) or real(file, group, columns),
    )
    record_files._row_group.cache_clear()
    assert bank.take(3, 4) == ITEMS[3:7] and bank.take(4, 3) == ITEMS[4:7]
    assert dataclasses.replace(bank, question='Body', answer=None, rationale=None).take(22, 1)[0].answer is None
    assert read == [(0, ['Body', 'Question', 'Result', 'steps']), (1, ['Body', 'Question', 'Result', 'steps']),
                    (4, ['Body'])]  # fmt: skip
    assert record_files._row_group.cache_info().currsize == 2


def test_quoted_line_ends_across_chunks(tmp_path, monkeypatch):
    text = b'a,b\r\n"1\n\n2",3\r\n\n"4 ""x\n""",5\n6,"7'
    path = tmp_path / 'a.csv'
    path.write_bytes(text + b'"')
    version = lines.file_version(str(path), 'x')
    for chunk in (1, 2, 3, 5, 100):
        monkeypatch.setattr(lines, '_CHUNK', chunk)
        lines.line_index.cache_clear()
        index = lines.line_index(version, True)
        assert index.read(np.arange(len(index))) == [b'a,b', b'"1\n\n2",3', b'"4 ""x\n""",5', b'6,"7"']
        assert index.number.tolist() == [1, 2, 6, 8]
    path.write_bytes(text)
    with pytest.raises(ValueError, match='last record begins on line 8'):
        lines.line_index(lines.file_version(str(path), 'x'), True)
