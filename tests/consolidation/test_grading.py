"""Graders: the conventions of the data sets, and symbolic equality in processes that can be killed."""

import json
import re

import jax
import numpy as np
import pytest

from t5x_selfimprove.consolidation import AnswerFormat, grading
from t5x_selfimprove.consolidation.grading import Grades, SymbolicGrader, answer_of, is_right
from t5x_selfimprove.data.tasks import TaskFile
from tests.consolidation.batches import BYTES, rows

NUMBERS = AnswerFormat(BYTES)
GSM8K = AnswerFormat(BYTES, trigger='####')  # as the solutions of the data set state their answer


def changed(solution: str) -> str:
    """The same solution with another final number."""
    steps, mark, answer = solution.rpartition('####')
    digit = re.search(r'\d(?=\D*\Z)', answer)
    other = str((int(digit.group()) + 1) % 10)
    return steps + mark + answer[: digit.start()] + other + answer[digit.end() :]


def test_gsm8k_solutions(shared_data):
    """All 1,319 published solutions are right, and wrong when their final number is changed."""
    path = shared_data / 'gsm8k' / 'test.jsonl'
    if not path.is_file():
        pytest.skip(f'no GSM8K at {path}')
    solutions = [json.loads(line)['answer'] for line in path.read_text(encoding='utf-8').splitlines()]
    labels = [GSM8K.canonical(item.answer) for item in TaskFile(str(path), task='gsm8k').take(0, 1319)]
    assert len(solutions) == len(labels) == 1319 and b'' not in labels
    wrong = [changed(solution) for solution in solutions]
    assert all(one != other for one, other in zip(solutions, wrong, strict=True))
    tokens, mask = rows([BYTES.encode(text) for text in solutions + wrong])
    on_host, _ = GSM8K.extract_host(tokens, mask)
    answers = [bytes(answer).rstrip(b'\0') for answer in on_host]
    assert answers[:1319] == labels
    assert all(answer and answer != label for answer, label in zip(answers[1319:], labels, strict=True))
    on_device, found = jax.jit(GSM8K.extract)(tokens[::8], mask[::8])
    assert np.asarray(found).all() and (np.asarray(on_device) == on_host[::8]).all()


@pytest.mark.parametrize(
    ('kind', 'text', 'right', 'wrong'),
    [
        ('number', '2 + 2 = 4. The answer is $1,200.00.', '1200', '1201'),
        ('option', 'It is the third. The answer is (C) 240.', 'C', 'D'),
        ('yes_no', 'They can. So the answer is Yes.', 'yes', 'no'),
        ('nli', 'It is not said. The answer is it is not possible to tell.', 'it is not possible to tell', 'no'),
        ('span', 'He caught it. The answer is the St. Louis Rams.', 'St. Louis Rams', 'Rams'),
        ('span', 'It was long. The answer is 1,200.', '1200', '120'),
        ('text', 'It is red. The answer is the Red Sea.', 'red sea', 'Dead Sea'),
    ],
)
def test_conventions(kind, text, right, wrong):
    answers = AnswerFormat(BYTES, kind=kind, room=40)
    assert is_right(answers, text, right) and not is_right(answers, text, wrong)
    assert not is_right(answers, text.replace('answer is', 'answer was'), right)
    assert not is_right(answers, '', right)


def test_an_answer_that_was_cut_off():
    assert answer_of(NUMBERS, 'The answer is 12') == b'12' and answer_of(NUMBERS, 'The answer is 12', False) == b''
    assert answer_of(NUMBERS, '12') == b'' and not is_right(NUMBERS, 'The answer is x', 'y')


# Stands in for the worker: equal where both are the same in lower case; some pairs hang, kill it, or are unreadable.
FAKE = """
import json, sys, time
print('ready', flush=True)
for line in sys.stdin:
    label, answer = json.loads(line)
    if answer == 'hang': time.sleep(600)
    if answer == 'die': sys.exit(3)
    print('null' if answer == '?' else json.dumps(label.lower() == answer.lower()), flush=True)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Workers of the test's own; gives the processes that were started."""
    (tmp_path / 'worker.py').write_text(FAKE)
    monkeypatch.setattr(grading, 'WORKER', tmp_path / 'worker.py')
    started = []
    real = grading._Worker.__init__
    monkeypatch.setattr(grading._Worker, '__init__', lambda self: (real(self), started.append(self.process))[0])
    return started


@pytest.mark.parametrize('workers', [1, 3])
def test_a_grader_that_hangs_or_dies_is_killed_and_counted(fake, workers):
    pairs = [('a', 'A'), ('a', 'hang'), ('a', 'b'), ('b', 'die'), ('a', '?'), ('a', 'A'), ('c', 'C'), ('same', 'same')]
    grades = SymbolicGrader(timeout=1.0, workers=workers)(pairs)
    assert grades == Grades((True, False, False, False, False, True, True, True), unreadable=1, killed=2)
    assert len(fake) == workers + 2 and all(process.poll() is not None for process in fake)


def test_nothing_is_started_for_nothing(fake):
    assert SymbolicGrader()([]) == Grades((), 0, 0)
    assert SymbolicGrader()([('x', 'x')]) == Grades((True,), 0, 0) and not fake


def test_a_worker_that_cannot_start_is_told(tmp_path, monkeypatch):
    (tmp_path / 'worker.py').write_text('import no_such_package')
    monkeypatch.setattr(grading, 'WORKER', tmp_path / 'worker.py')
    with pytest.raises(RuntimeError, match=r'exit code 1\): it needs math-verify, which pip install'):
        SymbolicGrader()([('a', 'b')])


@pytest.mark.parametrize('words', [{'timeout': 0}, {'workers': 0}])
def test_settings_are_checked(words):
    with pytest.raises(ValueError, match='timeout must be positive and workers at least 1'):
        SymbolicGrader(**words)


def test_symbolic_equality():
    pytest.importorskip('math_verify', reason='math-verify is not installed (extra grading)')
    pairs = {
        (r'\frac{1}{2}', '0.5'): True,
        ('(x+1)^2', 'x^2 + 2x + 1'): True,
        (r'2\sqrt{3}', r'\sqrt{12}'): True,
        ('1,200', '1200'): True,
        ('(1, 2]', '(1, 2)'): False,
        ('x + 1', 'x + 2'): False,
        ('7', '8'): False,
    }
    grades = SymbolicGrader(timeout=60.0, workers=1)(list(pairs))
    assert dict(zip(pairs, grades.equal, strict=True)) == pairs and grades.killed == 0
    # A tower of powers, an integral that sympy does not come back from.
    hanging = [('9', '9^{9^{9^{9}}}'), ('9', r'\int_0^1 x^{x^{x^x}} dx'), ('1', '1.0')]
    assert SymbolicGrader(timeout=2.0, workers=1)(hanging) == Grades((False, False, True), unreadable=0, killed=2)
