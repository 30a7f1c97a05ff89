"""The public data sets: every row of the files that are there, every published form, labels that nobody can read."""

import collections
import dataclasses
import json

import pyarrow
import pyarrow.parquet
import pytest

from t5x_selfimprove.consolidation import AnswerFormat
from t5x_selfimprove.consolidation.kinds import KINDS
from t5x_selfimprove.data.items import Bank, Unlabelled, encode_questions, without_labels
from t5x_selfimprove.data.tasks import TASKS, TaskFile
from t5x_selfimprove.vocabulary import ByteVocabulary
from tests.data.published_samples import FOOTBALL, HOT, REST, SAMPLES, WET, save

# Task, file, rows; answers of the first rows, and how many of each answer where there are few.
FILES = [
    ('gsm8k', 'gsm8k/train.jsonl', 7473, ['72', '10', '5']),
    ('gsm8k', 'gsm8k/test.jsonl', 1319, ['18', '3', '70000']),
    ('svamp', 'svamp/SVAMP.json', 1000, ['51', '1', '17']),
    ('multiarith', 'multiarith/MultiArith.json', 600, ['39', '8', '2']),
    ('aqua', 'aqua/test.jsonl', 254, {'A': 63, 'B': 58, 'C': 46, 'D': 53, 'E': 34}),
    ('strategyqa', 'strategyqa/task.json', 2290, {'yes': 1071, 'no': 1219}),
    ('commonsenseqa', 'commonsenseqa/train.jsonl', 9741, {'A': 1909, 'B': 1973, 'C': 1946, 'D': 1985, 'E': 1928}),
    ('commonsenseqa', 'commonsenseqa/dev.jsonl', 1221, {'A': 239, 'B': 255, 'C': 241, 'D': 251, 'E': 235}),
    ('anli_r3', 'anli_r3_dev/ANLI_r3_dev.csv', 1198, {'yes': 402, 'no': 396, 'it is not possible to tell': 400}),
]


@pytest.mark.parametrize(('task', 'name', 'rows', 'answers'), FILES)
def test_every_row_of_the_published_files(shared_data, task, name, rows, answers):
    path = shared_data / name
    if not path.is_file():
        pytest.skip(f'no {task} at {path}')
    bank = TaskFile(str(path), task=task)
    assert bank.size == rows and bank.check() == []
    items = bank.take(0, rows)
    if isinstance(answers, dict):
        assert collections.Counter(item.answer for item in items) == answers
    else:
        assert [item.answer.replace(',', '') for item in items[:3]] == answers
    form = AnswerFormat(ByteVocabulary(), kind=TASKS[task].kind)
    labels = list(dict.fromkeys(item.answer for item in items))[:300]
    assert all(form.canonical(label) for label in labels), [one for one in labels if not form.canonical(one)]
    assert TaskFile(str(path), task=task, labels=False).take(0, rows) == without_labels(items)


@pytest.mark.parametrize(('task', 'name', 'text', 'items'), SAMPLES)
def test_published_forms(tmp_path, task, name, text, items):
    bank = TaskFile(save(tmp_path, name, text), task=task)
    assert isinstance(bank, Bank) and bank.check() == [] and bank.take(0, bank.size) == items
    assert bank.take(1, len(items)) == [*items[1:], items[0]]
    questions, _ = encode_questions(items, ByteVocabulary(), 200, AnswerFormat(ByteVocabulary(), kind=TASKS[task].kind))
    assert questions.known.tolist() == [item.answer is not None for item in items]


def test_every_task_has_a_sample_and_a_kind():
    assert {sample[0] for sample in SAMPLES} == set(TASKS)
    assert all(task.kind in KINDS for task in TASKS.values())


def test_parquet_forms(tmp_path):
    """As other hubs publish the same data: columns, lists of structures, numbers of classes."""
    forms = {
        'arc_challenge': (
            [{'id': '1', 'question': 'What is hot?', 'choices': {'text': ['ice', 'snow', 'fire'],
              'label': ['1', '2', '3']}, 'answerKey': '3'}],
            [HOT],
        ),
        'openbookqa': (
            [{'question_stem': 'What is wet?', 'choices': {'text': ['sand', 'rain', 'wind', 'ash'],
              'label': list('ABCD')}, 'answerKey': 'B'}],
            [WET],
        ),
        'rte': ([{'sentence1': 'It rains.', 'sentence2': 'It is May.', 'label': 1, 'idx': 0}], [SAMPLES[-2][3][1]]),
        'mnli': ([{'premise': 'He left.', 'hypothesis': 'He sat.', 'label': -1}], SAMPLES[-3][3]),
        'anli_r3': ([{'premise': 'It rains.', 'hypothesis': 'It is dry.', 'label': 2}], [SAMPLES[-6][3][2]]),
        'drop_non_football': (
            [
                {'section_id': section, 'passage': item.question.split('\n')[0],
                 'question': item.question.split('\n')[1], 'answers_spans': {'spans': item.answer.split(', ')}}
                for section, items in (('nfl_12', FOOTBALL), ('history_7', REST))
                for item in items
            ],
            REST,
        ),
    }  # fmt: skip
    for task, (rows, items) in forms.items():
        path = str(tmp_path / f'{task}.parquet')
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        assert TaskFile(path, task=task).take(0, len(items)) == items, task


def flip(value):
    """Another value of the same sort."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [flip(one) for one in value]
    if isinstance(value, dict):
        return {name: flip(one) for name, one in value.items()}
    return f'{value} 8\n#### 8 '


LABELS = {'answer', 'Answer', 'lSolutions', 'correct', 'rationale', 'facts', 'target', 'target_scores', 'answerKey',
          'label', 'gold_label', 'reason', 'answers_spans'}  # fmt: skip


def flipped(record, inside: str = ''):
    """A record, or document of them, with every label and every rationale another (but labels of choices)."""
    if isinstance(record, list):
        return [flipped(one, inside) for one in record]
    if not isinstance(record, dict):
        return record
    return {
        name: flip(value) if name in LABELS and inside != 'choices' else flipped(value, name)
        for name, value in record.items()
    }


@pytest.mark.parametrize(
    ('task', 'name', 'text', 'items'), [sample for sample in SAMPLES if sample[1].endswith(('json', 'jsonl'))]
)
def test_labels_flipped_or_missing_change_nothing_without_labels(tmp_path, task, name, text, items):
    lines = name.endswith('.jsonl')
    document = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    changed = flipped(document)
    assert changed != document
    written = '\n'.join(map(json.dumps, changed)) if lines else json.dumps(changed)
    true, wrong = (
        TaskFile(save(tmp_path / folder, name, one), task=task, labels=False)
        for folder, one in (('true', text), ('wrong', written))
    )
    assert true.take(0, len(items)) == wrong.take(0, len(items)) == without_labels(items)
    assert true.check() == wrong.check() == []
    hidden = Unlabelled(dataclasses.replace(true, labels=True))
    assert hidden.take(0, len(items)) == without_labels(items)


def test_a_label_that_is_wrong_is_told(tmp_path):
    broken = {
        'gsm8k': ({'question': 'q', 'answer': 'So 4.'}, "no '#### answer' at its end: 'So 4.'"),
        'aqua': (
            {'question': 'q', 'options': ['A)1'], 'rationale': '', 'correct': 'B'},
            "'B' is none of the choices A",
        ),
        'commonsenseqa': ({'question': {'stem': 'q', 'choices': 'no'}, 'answerKey': 'A'}, 'choices must be a list'),
        'strategyqa': ({'question': 'q', 'answer': 'yes'}, "'answer' must be true or false; it is 'yes'"),
        'anli_r1': ({'context': 'c', 'hypothesis': 'h', 'label': 'x'}, "'label' must be one of e, n, c; it is 'x'"),
        'svamp': ({'Body': 'b', 'Question': 'q', 'Answer': ' '}, "the field 'Answer' holds no answer"),
        'multiarith': ({'sQuestion': 'q', 'lSolutions': []}, "no field 'lSolutions.0'"),
        'rte': ({'premise': '', 'hypothesis': 'h', 'label': 'entailment'}, 'must not be empty'),
        'drop_non_football': (
            {'passage': 'p', 'question': 'q', 'section_id': 'history_1', 'answer': {'spans': ['x' * 100, 'y' * 101]}},
            'the answer is longer than 200 bytes',
        ),
        'drop': ({'question': 'q'}, "no field 'passage'; the fields there are: 'question'"),
        'drop_football': ('text', 'a record must be an object'),
    }
    for task, (record, message) in broken.items():
        path = save(tmp_path, f'{task}.jsonl', json.dumps(record) + '\n')
        with pytest.raises(ValueError, match=rf'{task}\.jsonl, line 1: .*{message}'):
            TaskFile(path, task=task).check()
    with pytest.raises(ValueError, match=r'target begins with .Yes., and target_scores says .No.'):
        record = {'input': 'q', 'target_scores': {'Yes': 0, 'No': 1}, 'target': 'Yes. So.'}
        TaskFile(save(tmp_path, 'a.json', json.dumps({'examples': [record]})), task='strategyqa').check()


def test_football_is_told_by_the_name_of_the_passage_or_by_words():
    football = TASKS['drop_football'].only
    assert football({'section_id': 'nfl_1', 'passage': 'p'}) and not football({'section_id': 'history_1'})
    assert football({'passage': 'He threw two touchdowns.'}) and not football({'passage': 'A field of the NFLD.'})


def test_bad_records_of_a_part_of_a_data_set(tmp_path):
    rows = [{'section_id': f'{section}_1', 'passage': 'p', 'question': f'{number}?', 'answer': {'number': '1'}}
            for number, section in enumerate(['nfl', 'history', 'nfl', 'nfl'])]  # fmt: skip
    del rows[2]['question']
    path = save(tmp_path, 'a.jsonl', ''.join(json.dumps(row) + '\n' for row in rows))
    bank = TaskFile(path, task='drop_football')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: there is no field 'question'"):
        bank.check()
    skipping = dataclasses.replace(bank, on_error='skip')
    assert skipping.size == 2 and [item.question for item in skipping.take(0, 3)] == ['p\n0?', 'p\n3?', 'p\n0?']
    assert skipping.skipped == 1 and 'one bad line' in skipping.check()[0]
    assert TaskFile(path, task='drop_non_football', on_error='skip').size == 1


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"TaskFile\.task must be one of 'gsm8k', 'svamp'"):
        TaskFile('a.jsonl', task='gsm')
    with pytest.raises(ValueError, match=r"a\.zip' must end in one of \.jsonl"):
        TaskFile(save(tmp_path, 'a.zip', 'x'), task='gsm8k').check()
