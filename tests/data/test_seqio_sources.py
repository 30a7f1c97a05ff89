"""The public data sets as seqio Tasks: from files and from TFDS the same questions; mixtures, caching, the metric.

Nothing is downloaded: TFDS's own builders read samples in the published form, and GSM8K's test file where it is there.
"""

import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pytest

from t5x_selfimprove.consolidation import AnswerFormat
from t5x_selfimprove.data import seqio_sources
from t5x_selfimprove.data.items import Item, encode_questions, make_item
from t5x_selfimprove.data.seqio_sources import answer_accuracy_of, register
from t5x_selfimprove.data.seqio_tasks import ANSWER_AFTER, SeqioTask
from t5x_selfimprove.data.tasks import TASKS, TaskFile
from t5x_selfimprove.vocabulary import ByteVocabulary
from tests.data.published_samples import SAMPLES, save

BYTES = ByteVocabulary()
IN_TFDS = [name for name, task in TASKS.items() if task.tfds]
# Of each, the file that TFDS reads.
TFDS_FILES = {
    task: (name, text, items)
    for task, name, text, items in reversed(SAMPLES)
    if task in IN_TFDS and name not in ('ANLI_r3_dev.csv', 'val.jsonl', 'multinli_1.0_dev_matched.jsonl')
}


@pytest.fixture(scope='module')
def seqio():
    return pytest.importorskip('seqio')


@pytest.fixture(scope='module', autouse=True)
def offline(seqio):
    """TFDS looks for nothing in the cloud."""
    from tensorflow_datasets.core.utils import gcs_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gcs_utils, '_is_gcs_disabled', True)
        yield


def prepare(task: str, path: str, data_dir: str) -> None:
    """TFDS's own data set with one file as each of its splits: read and written by its own code."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(TASKS[task].tfds, data_dir=data_dir)
    file = pathlib.Path(path)
    words = {
        'gsm8k': {'path': file},
        'glue': {'data_file': file, 'split': 'dev'},
        'openbookqa': {'data_dir': file.parent, 'filepath': file},
    }.get(builder.name, {'filepath': file})
    splits = TASKS[task].tfds_splits.values()
    builder._split_generators = lambda *_, **__: {split: builder._generate_examples(**words) for split in splits}
    builder.download_and_prepare()


def as_tfds_has_it(task: str, item: Item) -> Item:
    """Of DROP, TFDS has the first span alone, and dates in numbers; of ANLI no reasons."""
    answer = item.answer
    if task.startswith('drop'):
        answer = {'3 May 1700': '1700-May-3', '1700, 1703': '1700'}.get(answer, answer)
    return make_item(item.question, item.rationale if task == 'gsm8k' else None, answer)


@pytest.fixture
def added(seqio, monkeypatch) -> dict[str, Any]:
    """Tasks by name, made without putting them into the registry of the process."""
    tasks: dict[str, Any] = {}
    monkeypatch.setattr(
        seqio_sources, 'add_task', lambda name, _, settings: tasks.update({name: seqio.Task(name, **settings)})
    )
    return tasks


def by_id(items: Iterable[Item]) -> list[Item]:
    """TFDS shuffles what it writes."""
    return sorted(items, key=lambda item: item.id)


@pytest.mark.parametrize('task', list(TFDS_FILES))
def test_tfds_gives_the_questions_of_the_file(added, tmp_path, task):
    name, text, items = TFDS_FILES[task]
    prepare(task, save(tmp_path, name, text), str(tmp_path))
    assert register([task], data_dir=str(tmp_path)) == [task] and set(added) == {task}
    assert set(added[task].splits) == set(TASKS[task].tfds_splits)
    split = list(TASKS[task].tfds_splits)[-1]
    examples = list(added[task].get_dataset(None, split, shuffle=False).as_numpy_iterator())
    bank = SeqioTask(task, answer_after=ANSWER_AFTER)
    assert by_id(bank._item(added[task], example) for example in examples) == by_id(
        as_tfds_has_it(task, item) for item in items
    )
    for example in examples:
        targets = example['targets_pretokenized'].decode()
        assert example['targets'].tolist() == [*BYTES.encode(targets), BYTES.eos_id]
        assert BYTES.decode(example['inputs'].tolist()) == example['inputs_pretokenized'].decode()


def test_gsm8k_of_tfds_is_the_file(added, shared_data, tmp_path):
    path = shared_data / 'gsm8k' / 'test.jsonl'
    if not path.is_file():
        pytest.skip(f'no GSM8K at {path}')
    prepare('gsm8k', str(path), str(tmp_path))
    register(['gsm8k'], data_dir=str(tmp_path))
    bank = SeqioTask('gsm8k', answer_after=ANSWER_AFTER)
    examples = added['gsm8k'].get_dataset(None, 'test', shuffle=False).as_numpy_iterator()
    items = [bank._item(added['gsm8k'], example) for example in examples]
    assert len(items) == 1319 and by_id(items) == by_id(TaskFile(str(path), task='gsm8k').take(0, 1319))


def test_every_task_of_tfds_is_registered(seqio, tmp_path):
    names = register(data_dir=str(tmp_path))
    assert names == IN_TFDS and register(data_dir=str(tmp_path)) == names
    assert {seqio.get_mixture_or_task(name).name for name in names} == set(names)
    mixture = seqio.get_mixture_or_task('huang2022')
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == seqio_sources.POOL_RATES
    with pytest.raises(ValueError, match="Task 'gsm8k' exists already and is different"):
        register(['gsm8k'], data_dir='elsewhere')


@pytest.fixture(scope='module')
def registered(seqio, tmp_path_factory) -> dict[str, dict[str, str]]:
    """Two tasks from files, in the registry."""
    folder = tmp_path_factory.mktemp('files')
    texts = {'svamp': SAMPLES[1], 'multiarith': SAMPLES[2], 'commonsenseqa': SAMPLES[6]}
    files = {task: {'test': save(folder, name, text)} for task, (_, name, text, _) in texts.items()}
    assert register(files=files) == list(files) == register(files=files)
    return files


def test_files_give_the_questions_of_the_bank(registered):
    for task, splits in registered.items():
        plain = TaskFile(splits['test'], task=task)
        bank = SeqioTask(task, 'test', answer_after=ANSWER_AFTER, count=plain.size)
        bank.check()
        items = plain.take(0, plain.size)
        assert bank.take(0, plain.size) == items
        kind = AnswerFormat(BYTES, kind=TASKS[task].kind)
        for one, other in zip(*(encode_questions(some, BYTES, 100, kind) for some in (items, bank.take(0, len(items)))),
                              strict=True):  # fmt: skip
            assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_mixtures_have_their_rates(seqio, registered):
    seqio.MixtureRegistry.add('test_svamp_multiarith', [('svamp', 3.0), ('multiarith', 1.0)])
    bank = SeqioTask('test_svamp_multiarith', 'test', answer_after=ANSWER_AFTER, shuffle_seed=0)
    taken = bank.take(0, 120)
    share = sum('hat' in item.question for item in taken) / 120
    assert 0.6 < share < 0.9
    assert bank.take(110, 10) == taken[110:]  # resumed at a position
    seqio.MixtureRegistry.remove('test_svamp_multiarith')


def test_metric_knows_the_kind():
    metric = answer_accuracy_of('number')
    assert metric(['So. The answer is 1,200.'] * 4, ['The answer is $1200.00.', 'The answer is 12.', '1200', '']) == {
        'answer_accuracy': 0.25
    }
    assert answer_accuracy_of('nli')(['The answer is it is not possible to tell.'], ['The answer is unknown.']) == {
        'answer_accuracy': 1.0
    }
    assert metric([], []) == {'answer_accuracy': 0.0}


def test_names_are_checked():
    with pytest.raises(ValueError, match="there is no task 'gsm'; there are gsm8k, svamp"):
        register(['gsm'])
    with pytest.raises(ValueError, match='TFDS does not have svamp: say where its files are'):
        register(['gsm8k', 'svamp'])


def test_cached_by_the_beam_job(seqio, registered, tmp_path):
    """Seqio's own caching job with Beam's local runner; reading the cache gives the same examples."""
    pytest.importorskip('apache_beam', reason='apache-beam is not installed (extra cache)')
    from absl import flags
    from seqio.scripts import cache_tasks_main

    flags.FLAGS.mark_as_parsed()
    import apache_beam

    with apache_beam.Pipeline(runner='DirectRunner') as pipeline:
        cache_tasks_main.run_pipeline(pipeline, ['svamp', 'commonsenseqa'], str(tmp_path))
    for task in ('svamp', 'commonsenseqa'):
        made = seqio.get_mixture_or_task(task)
        fresh = list(made.get_dataset(None, 'test', shuffle=False).as_numpy_iterator())
        with seqio.test_utils.mock.patch.object(seqio.utils, '_GLOBAL_CACHE_DIRECTORIES', [str(tmp_path)]):
            assert made.cache_dir
            cached = list(made.get_dataset(None, 'test', shuffle=False, use_cached=True).as_numpy_iterator())
        key = lambda example: example['inputs_pretokenized']  # noqa: E731
        for one, other in zip(sorted(fresh, key=key), sorted(cached, key=key), strict=True):
            assert {name: np.asarray(value).tolist() for name, value in one.items()} == {
                name: np.asarray(value).tolist() for name, value in other.items()
            }
