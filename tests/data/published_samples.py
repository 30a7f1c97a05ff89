"""Made-up records in the published forms of the public data sets, and the items that they are.

The texts are our own; the fields, their nesting, their odd values and the names of files are those of the data sets.
"""

import csv
import io
import json
import pathlib
from typing import Any

from t5x_selfimprove.data.items import Item, make_item


def json_lines(*records: dict[str, Any]) -> str:
    return ''.join(json.dumps(record) + '\n' for record in records)


def tabs(*records: dict[str, Any]) -> str:
    """Fields parted by tabs, without quoting."""
    names = list(records[0])
    return '\n'.join('\t'.join(row) for row in [names, *[[str(one[name]) for name in names] for one in records]]) + '\n'


def comma(*records: dict[str, Any]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def conclude(premise: str, hypothesis: str, options: str = 'yes, no, it is not possible to tell') -> str:
    return f'{premise}\nCan we conclude that "{hypothesis}"?\nOptions: {options}'


def choices(*texts: str, labels: str = 'ABCDE') -> list[dict[str, str]]:
    return [{'text': text, 'label': label} for text, label in zip(texts, labels, strict=False)]


WATER = {'stem': 'What is wet?', 'choices': choices('sand', 'rain', 'wind', 'ash')}
OPENBOOK = {'fact1': 'rain is water', 'humanScore': 0.9, 'clarity': 1.8, 'turkIdAnonymized': 'a1b2'}
NFL = {
    'passage': 'The Rams scored a touchdown of 7 yards, then one of 20.',
    'qa_pairs': [
        {
            'question': 'How many touchdowns were there?',
            'answer': {'number': '2', 'date': {'day': '', 'month': '', 'year': ''}, 'spans': []},
            'query_id': 'q1',
        },
        {
            'question': 'Who scored?',
            'answer': {'number': '', 'date': {'day': '', 'month': '', 'year': ''}, 'spans': ['The Rams']},
            'query_id': 'q2',
        },
    ],
}
HISTORY = {
    'passage': 'The war began on 3 May 1700 and ended in 1703.',
    'qa_pairs': [
        {
            'question': 'When did it begin?',
            'answer': {'number': '', 'date': {'day': '3', 'month': 'May', 'year': '1700'}, 'spans': []},
            'query_id': 'q3',
            'validated_answers': [{'number': '', 'date': {}, 'spans': ['3 May 1700']}],
        },
        {
            'question': 'Which years are named?',
            'answer': {'number': '', 'date': {'day': '', 'month': '', 'year': ''}, 'spans': ['1700', '1703']},
            'query_id': 'q4',
        },
    ],
}
DROP = json.dumps({'nfl_12': NFL, 'history_7': HISTORY})
FOOTBALL = [
    make_item(f'{NFL["passage"]}\nHow many touchdowns were there?', None, '2'),
    make_item(f'{NFL["passage"]}\nWho scored?', None, 'The Rams'),
]
REST = [
    make_item(f'{HISTORY["passage"]}\nWhen did it begin?', None, '3 May 1700'),
    make_item(f'{HISTORY["passage"]}\nWhich years are named?', None, '1700, 1703'),
]
WET = make_item('What is wet?\nOptions: (A) sand (B) rain (C) wind (D) ash', None, 'B')
HOT = make_item('What is hot?\nOptions: (A) ice (B) snow (C) fire', None, 'C')

# Task, name of the file, its text, the items.
SAMPLES: list[tuple[str, str, str, list[Item]]] = [
    (
        'gsm8k',
        'train.jsonl',
        json_lines(
            {'question': 'Two and two?', 'answer': '2+2=<<2+2=4>>4\n#### 4'},
            {'question': 'A thousand, twice? ', 'answer': 'It is $<<1000*2=2000>>2,000.\nSo.\n#### 2,000'},
        ),
        [
            make_item('Two and two?', '2+2=4', '4'),
            make_item('A thousand, twice?', 'It is $2,000.\nSo.', '2,000'),
        ],
    ),
    (
        'svamp',
        'SVAMP.json',
        json.dumps(
            [
                {
                    'ID': 'chal-1',
                    'Body': 'Ann has 3 hats',
                    'Question': 'How many?',
                    'Equation': '3.0',
                    'Answer': 3.0,
                    'Type': 'Subtraction',
                },
                {'ID': 'chal-2', 'Body': 'Bob has half a hat.', 'Question': 'How many?', 'Answer': 0.5},
            ]
        ),
        [make_item('Ann has 3 hats How many?', None, '3'), make_item('Bob has half a hat. How many?', None, '0.5')],
    ),
    (
        'multiarith',
        'MultiArith.json',
        json.dumps([{'iIndex': 0, 'lEquations': ['X=(1.0+2.0)'], 'lSolutions': [3.0], 'sQuestion': ' One and two? '}]),
        [make_item('One and two?', None, '3')],
    ),
    (
        'aqua',
        'test.json.jsonl',
        json_lines(
            {'question': 'Half of 6?', 'options': ['A)2', 'B)3', 'C)4'], 'rationale': '6/2.\nB', 'correct': 'B'}
        ),
        [make_item('Half of 6?\nOptions: (A) 2 (B) 3 (C) 4', '6/2.\nB', 'B')],
    ),
    (
        'strategyqa',
        'strategyqa_train.json',
        json.dumps(
            [
                {
                    'qid': '1',
                    'term': 'Fish',
                    'question': 'Can a fish drown?',
                    'answer': True,
                    'facts': ['Fish need oxygen.', 'Some water has none.'],
                    'decomposition': ['What do fish need?'],
                },
                {'qid': '2', 'question': 'Is ice hot?', 'answer': False, 'facts': []},
            ]
        ),
        [
            make_item('Can a fish drown?', 'Fish need oxygen. Some water has none.', 'yes'),
            make_item('Is ice hot?', None, 'no'),
        ],
    ),
    (
        'strategyqa',
        'task.json',
        json.dumps(
            {
                'canary': 'x',
                'examples': [
                    {'input': 'Is ice hot?', 'target_scores': {'Yes': 0, 'No': 1}, 'target': 'No. Ice is cold. Yes.'}
                ],
            }
        ),
        [make_item('Is ice hot?', 'Ice is cold. Yes.', 'no')],
    ),
    (
        'commonsenseqa',
        'dev_rand_split.jsonl',
        json_lines(
            {'answerKey': 'B', 'id': '1', 'question': {'question_concept': 'wet', **WATER}},
            {'id': '2', 'question': {'question_concept': 'hot', 'stem': 'What is hot?', 'choices': choices('a', 'b')}},
        ),
        [WET, make_item('What is hot?\nOptions: (A) a (B) b')],
    ),
    (
        'openbookqa',
        'train_complete.jsonl',
        json_lines({'id': '7-1', 'question': WATER, **OPENBOOK, 'answerKey': 'B'}),
        [WET],
    ),
    (
        'arc_challenge',
        'ARC-Challenge-Dev.jsonl',
        json_lines(
            {'id': 'M_1', 'question': WATER, 'answerKey': 'B'},
            {
                'id': 'NY_2',
                'question': {'stem': 'What is hot?', 'choices': choices('ice', 'snow', 'fire', labels='123')},
                'answerKey': '3',
            },
        ),
        [WET, HOT],
    ),
    ('drop', 'drop_dataset_dev.json', DROP, FOOTBALL + REST),
    ('drop_football', 'drop_dataset_dev.json', DROP, FOOTBALL),
    ('drop_non_football', 'drop_dataset_dev.json', DROP, REST),
    *[
        (
            f'anli_r{number}',
            'dev.jsonl',
            json_lines(
                {'uid': '1', 'context': 'It rains.', 'hypothesis': 'It is wet.', 'label': 'e', 'reason': 'Rain wets.'},
                {'uid': '2', 'context': 'It rains.', 'hypothesis': 'It is May.', 'label': 'n', 'reason': ''},
                {'uid': '3', 'context': 'It rains.', 'hypothesis': 'It is dry.', 'label': 'c'},
            ),
            [
                make_item(conclude('It rains.', 'It is wet.'), 'Rain wets.', 'yes'),
                make_item(conclude('It rains.', 'It is May.'), None, 'it is not possible to tell'),
                make_item(conclude('It rains.', 'It is dry.'), None, 'no'),
            ],
        )
        for number in (1, 2, 3)
    ],
    (
        'anli_r3',
        'ANLI_r3_dev.csv',
        comma({'context': 'It "rains",\nnow.', 'statement': 'It is wet.', 'reason': 'Rain wets.', 'gold_label': 'e'}),
        [make_item(conclude('It "rains",\nnow.', 'It is wet.'), 'Rain wets.', 'yes')],
    ),
    (
        'mnli',
        'multinli_1.0_dev_matched.txt',
        tabs(
            *[
                {
                    'gold_label': label,
                    'sentence1_binary_parse': '( x )',
                    'sentence2_binary_parse': '( x )',
                    'sentence1_parse': '(ROOT x)',
                    'sentence2_parse': '(ROOT x)',
                    'sentence1': 'He said "no.',
                    'sentence2': hypothesis,
                    'promptID': '1',
                }
                for label, hypothesis in (('neutral', 'He left.'), ('contradiction', 'He was mute.'))
            ]
        ),
        [
            make_item(conclude('He said "no.', 'He left.'), None, 'it is not possible to tell'),
            make_item(conclude('He said "no.', 'He was mute.'), None, 'no'),
        ],
    ),
    (
        'mnli',
        'multinli_1.0_dev_matched.jsonl',
        json_lines({'sentence1': 'He left.', 'sentence2': 'He sat.', 'gold_label': '-', 'annotator_labels': ['x']}),
        [make_item(conclude('He left.', 'He sat.'))],
    ),
    (
        'rte',
        'dev.tsv',
        tabs(
            {'index': 0, 'sentence1': 'It rains.', 'sentence2': 'It is wet.', 'label': 'entailment'},
            {'index': 1, 'sentence1': 'It rains.', 'sentence2': 'It is May.', 'label': 'not_entailment'},
        ),
        [
            make_item(conclude('It rains.', 'It is wet.', 'yes, no'), None, 'yes'),
            make_item(conclude('It rains.', 'It is May.', 'yes, no'), None, 'no'),
        ],
    ),
    (
        'rte',
        'val.jsonl',
        json_lines({'premise': 'It rains.', 'hypothesis': 'It is wet.', 'label': 'entailment', 'idx': 0}),
        [make_item(conclude('It rains.', 'It is wet.', 'yes, no'), None, 'yes')],
    ),
]


def save(folder: pathlib.Path, name: str, text: str) -> str:
    """The file, in a folder; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding='utf-8', newline='')
    return str(folder / name)
