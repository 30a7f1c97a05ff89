"""The notebooks of colabs/, run from top to bottom at the tests' size, and what is committed of them: real outputs."""

import pathlib
import re

import nbclient
import nbformat
import pytest

from tests import tiny_run

FOLDER = tiny_run.ROOT / 'colabs'
NAMES = ('quickstart', 'ask_and_vote', 'read_a_run')  # in the order in which they are read


def notebook(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


def execute(name: str, **values: object) -> list[str]:
    """Runs a notebook with other values of its first cell; the texts of the cells' outputs."""
    book = notebook(name)
    (cell,) = [cell for cell in book.cells if 'parameters' in cell.metadata.get('tags', [])]
    unknown = [value for value in values if f'{value} = ' not in cell.source]
    assert not unknown, f'{name} has no parameters {unknown}'
    cell.source += '\n' + '\n'.join(f'{value} = {values[value]!r}' for value in values)
    client = nbclient.NotebookClient(book, timeout=600, resources={'metadata': {'path': str(FOLDER)}})
    client.execute(env=tiny_run.environment())
    code = [cell for cell in book.cells if cell.cell_type == 'code']
    return [''.join(output.get('text', '') for output in cell.outputs) for cell in code]


def settings(arguments: list[str]) -> list[str]:
    """Those of a command line, but for its files and places."""
    places = ('--gin.RUN_DIR=', '--gin.INITIAL=')
    return [word for word in arguments[1:] if word.startswith('--gin.') and not word.startswith(places)]


def test_notebooks_run(tmp_path):
    """One after the other, as they are read: the second and the third read the run of the first."""
    run, quick = str(tmp_path / 'run'), {'session__Place__tensorboard': False}
    improve = settings(tiny_run.improve_arguments('', '', **quick))
    pretrain = settings(tiny_run.pretrain_arguments('', **quick))
    said = execute('quickstart', RUN_DIR=run, PRETRAIN_SETTINGS=pretrain, IMPROVE_SETTINGS=improve, INSTALL=False)
    assert 'round 2: ' in said[3] and f'the page of the run: {run}/report.html' in said[4]
    of_task = [word for word in improve if 'TransformerConfig' in word]
    said = execute('ask_and_vote', RUN_DIR=run, SETTINGS=of_task, N=4, HELD_OUT=8, INSTALL=False)
    assert 'How many pens does he have?\n  chosen: ' in said[3] and 'majority of  4: ' in said[6]
    said = execute('read_a_run', RUN_DIR=run, INSTALL=False)
    assert re.search(r'^evaluation +3$', said[2], re.MULTILINE) and ' paths; columns: question_id, ' in said[4]
    assert 'answer:' in said[7] or 'there is none' in said[7]


@pytest.mark.parametrize('name', NAMES)
def test_committed_outputs_are_those_of_a_run(name: str):
    """Every cell was run, in order, and none ended in an error."""
    code = [cell for cell in notebook(name).cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not any(output.output_type == 'error' for output in outputs)
    assert any('image/png' in output.get('data', {}) for output in outputs)


def test_every_notebook_is_run():
    assert sorted(path.stem for path in pathlib.Path(FOLDER).glob('*.ipynb')) == sorted(NAMES)
