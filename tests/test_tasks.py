"""gin/tasks and the table of tasks say the same, and the run that they are for is one."""

import pathlib

import pytest

from t5x_selfimprove import config
from t5x_selfimprove.data.published import LONGEST_ANSWER
from t5x_selfimprove.data.tasks import TASKS
from t5x_selfimprove.templates.tasks import STYLES, prompt_text
from tests.test_gin_files import commands, make_vocabularies

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'gin' / 'tasks'


def test_every_task_has_its_file():
    assert {path.stem for path in FOLDER.glob('*.gin')} == set(TASKS)


@pytest.mark.parametrize('task', list(TASKS))
def test_the_run_of_a_task(task, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (argv,) = commands((FOLDER / f'{task}.gin').read_text(encoding='utf-8'))
    asked = config.parse_arguments(argv)
    make_vocabularies(asked.files, asked.bindings, tmp_path_factory.getbasetemp())
    run = config.build(config.ROOTS[asked.command], asked.files, asked.bindings).value
    train, test = run.questions.bank, run.evaluation_questions.bank
    assert train.task == test.task == task == run.place.name
    assert not train.labels and test.labels
    assert run.answers.kind == run.recipe.consolidator.answers.kind == TASKS[task].kind
    assert run.recipe.prompt.text == prompt_text(task, 'few_shot_cot')
    assert [one.prompt.text for one in run.recipe.formats] == [prompt_text(task, style) for style in STYLES]
    assert [one.target for one in run.recipe.formats] == ['path', 'answer'] * 2
    assert not task.startswith('drop') or run.answers.room == LONGEST_ANSWER
    if train.path == test.path:
        assert train.start + train.count <= test.start
    assert train.count is None or run.questions.per_round <= train.count


def test_files_of_one_data_set_share_no_question(shared_data):
    """Of the tasks that come in one file: what is trained on is not evaluated on."""
    from t5x_selfimprove.config.reading import Reader
    from t5x_selfimprove.data.tasks import TaskFile

    for task, name in {'svamp': 'SVAMP.json', 'multiarith': 'MultiArith.json', 'strategyqa': 'task.json'}.items():
        path = shared_data / task / name
        if not path.is_file():
            pytest.skip(f'no {task} at {path}')
        reader = Reader()
        reader.file(f'gin/tasks/{task}.gin')
        said = {binding.name: binding.value for binding in reader.bindings}
        train = TaskFile(str(path), task=task, start=said.get('TRAIN_START', 0), count=said['TRAIN_COUNT'])
        test = TaskFile(str(path), task=task, start=said['TEST_START'])
        ids = [{item.id for item in bank.take(0, bank.size)} for bank in (train, test)]
        assert not ids[0] & ids[1], task
