"""The command that prints and greps stored paths."""

import pathlib
import re

import pytest

from tests.made_run import made_run
from tests.stored import stored
from tests.tiny_run import run


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> pathlib.Path:
    return made_run(tmp_path_factory.mktemp('samples'), rounds=2, questions=6, paths=4)


def samples(directory: pathlib.Path, *asked: str) -> tuple[int, str]:
    outcome = run(['samples', str(directory), *asked])
    assert not outcome.err, outcome.err
    return outcome.code, outcome.out


def rows(directory: pathlib.Path, *names: str) -> list[dict]:
    return [path for name in names for one in stored(directory / f'samples/{name}.parquet') for path in one['paths']]


def test_all_paths_of_a_question(made):
    one = stored(made / 'samples/round_0002.parquet')[3]
    code, said = samples(made, '--question', one['question_id'], '--round=2')
    assert code == 0 and one['question'] in said and f'{one["question_id"]}  round 2: vote {one["chosen"]}' in said
    assert [line.split(']  ', 1)[1] for line in re.findall(r'^ +\d  \[.*', said, re.MULTILINE)] == [
        path['text'].strip() for path in one['paths']
    ]
    assert f'answer {one["paths"][0]["answer"]}; {one["paths"][0]["log_prob"]:.2f} nats' in said
    assert said.endswith('4 paths of 1 questions\n')


@pytest.mark.parametrize(
    ('asked', 'names', 'wanted'),
    [
        ((), ('round_0001', 'round_0002'), lambda row: True),
        (('--text', r'\+ 5 ='), ('round_0001', 'round_0002'), lambda row: '+ 5 =' in row['text']),
        (('--question=HUGO', '--round', '1'), ('round_0001',), lambda row: 'Hugo' in row['question']),
        (('--kept',), ('round_0001', 'round_0002'), lambda row: row['kept']),
        (('--answer', '7'), ('round_0001', 'round_0002'), lambda row: row['answer'] == '7'),
        (('--evaluation', '--round', '0', '--wrong'), ('evaluation_0000',), lambda row: row['answer'] != row['gold']),
    ],
)
def test_paths_that_are_asked_for(made, asked, names, wanted):
    code, said = samples(made, '--limit', '999', *asked)
    texts = [row['text'].strip() for row in rows(made, *names) if wanted(row)]
    assert [line.split(']  ', 1)[1] for line in re.findall(r'^ +\d  \[.*', said, re.MULTILINE)] == texts
    assert code == (0 if texts else 1) and 0 < len(texts) < 60


def test_what_there_is_more_of_is_said(made):
    code, said = samples(made, '--limit=2')
    assert (
        code == 0 and said.count('round 1:') == 2 and said.endswith('48 paths of 12 questions; the first 2 are shown\n')
    )
    assert samples(made, '--text=nowhere to be found') == (1, '0 paths of 0 questions\n')


def test_mistakes(made, tmp_path):
    for asked, said in [
        ((str(made), '--round=9'), 'of this kind there are rounds: 1, 2'),
        ((str(tmp_path),), 'holds no such samples; of this kind there are rounds: none'),
        ((str(made), '--text=('), "--text '(' is no regular expression"),
    ]:
        outcome = run(['samples', *asked])
        assert outcome.code == 2 and said in outcome.err
