"""Prompts of the public data sets: their form, and exemplars that are right and are nobody else's."""

import ast
import operator
import re

import pytest

from t5x_selfimprove.consolidation import AnswerFormat
from t5x_selfimprove.data import tasks as data_tasks
from t5x_selfimprove.data.items import completion_text, make_item
from t5x_selfimprove.data.tasks import TaskFile
from t5x_selfimprove.templates import of_task
from t5x_selfimprove.templates.tasks import FOLDER, STYLES, TASKS, exemplars, prompt_text
from t5x_selfimprove.vocabulary import ByteVocabulary
from tests.data.test_tasks import FILES

BYTES = ByteVocabulary()
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(expression: str) -> float:
    """Of '0.25 * 80'."""

    def of(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](of(node.left), of(node.right))
        return ast.literal_eval(node)

    return of(ast.parse(expression, mode='eval').body)


def test_every_task_has_prompts():
    assert set(TASKS) == set(data_tasks.TASKS)
    assert {name for names in TASKS.values() for name in names} == {path.stem for path in FOLDER.iterdir()}


@pytest.mark.parametrize('task', list(TASKS))
def test_exemplars_are_right(task):
    kind = data_tasks.TASKS[task].kind
    answers = AnswerFormat(BYTES, kind=kind, room=16)
    shown = [one for name in TASKS[task] for one in exemplars(name)]
    assert len(shown) >= 3 and len({one.question for one in shown}) == len(shown)
    for one in shown:
        assert answers.canonical(completion_text(make_item(one.question, one.rationale, one.answer)))
        for left, right in re.findall(r'((?:\d[\d.]* [-+*/] )+\d[\d.]*) = (\d+(?:\.\d+)?)', one.rationale):
            assert value(left) == pytest.approx(float(right)), one
        if kind == 'number':
            assert re.findall(r'= (\d+)', one.rationale)[-1] == one.answer, one
        if kind == 'option':
            letters = dict(re.findall(r'\((\w)\) (.*?)(?= \(|$)', one.question.split('\nOptions: ')[1]))
            assert one.answer in letters and f'({one.answer})' in one.rationale, one
            assert [letter for letter in letters if f'({letter})' in one.rationale] == [one.answer], one
        if kind in ('nli', 'yes_no') and task != 'strategyqa':
            assert one.answer in one.question.split('\nOptions: ')[1].split(', '), one
    if kind in ('option', 'nli', 'yes_no'):
        assert len({one.answer for one in shown}) >= {'option': 4, 'nli': 3, 'yes_no': 2}[kind]


@pytest.mark.parametrize(('task', 'name'), [row[:2] for row in FILES])
def test_exemplars_are_of_no_data_set(shared_data, task, name):
    if not (shared_data / name).is_file():
        pytest.skip(f'no {task} in {shared_data}')
    bank = TaskFile(str(shared_data / name), task=task, labels=False)
    asked = {make_item(one.question).id for part in TASKS[task] for one in exemplars(part)}
    assert not asked & {item.id for item in bank.take(0, bank.size)}


def test_styles():
    texts = {style: prompt_text('rte', style, None if style.startswith('zero') else 2) for style in STYLES}
    first, second = exemplars('rte')[:2]
    asked = 'Question: {question}\nAnswer:'
    assert texts == {
        'few_shot_cot': f'Question: {first.question}\nAnswer: {first.rationale} The answer is yes.\n\n'
        f'Question: {second.question}\nAnswer: {second.rationale} The answer is no.\n\n{asked}',
        'few_shot_direct': f'Question: {first.question}\nAnswer: The answer is yes.\n\n'
        f'Question: {second.question}\nAnswer: The answer is no.\n\n{asked}',
        'zero_shot_cot': f"{asked} Let's think step by step.",
        'zero_shot_direct': asked,
    }
    assert prompt_text('drop', 'few_shot_cot').count('The answer is') == 6
    prompt = of_task(BYTES, 'rte', 'few_shot_direct', 2)
    assert BYTES.decode(prompt.before) + '{question}' + BYTES.decode(prompt.after) == texts['few_shot_direct']


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('gsm',), "no prompts for 'gsm'; there are for gsm8k, svamp"),
        (('rte', 'cot'), "style must be one of 'few_shot_cot', .*; it is 'cot'"),
        (('rte', 'few_shot_cot', 5), r'shots must be in 1\.\.4 for rte; it is 5'),
        (('rte', 'few_shot_cot', 0), r'shots must be in 1\.\.4 for rte; it is 0'),
    ],
)
def test_what_is_not_there_is_told(words, message):
    with pytest.raises(ValueError, match=message):
        of_task(BYTES, *words)
