"""The public data sets as seqio Tasks: from TFDS, or from local files in their published form.

Both are read by the same functions (published.py), so that a Task gives the questions that `TaskFile` gives. Nothing is
registered by an import; TensorFlow is imported inside functions.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_selfimprove.consolidation import AnswerFormat
from t5x_selfimprove.data.items import Item, completion_text
from t5x_selfimprove.data.published import LONGEST_ANSWER
from t5x_selfimprove.data.seqio_tasks import add_task, import_seqio, stated_answer, text_task
from t5x_selfimprove.data.tasks import TASKS, TaskFile, TaskReader
from t5x_selfimprove.vocabulary import ByteVocabulary, Vocabulary

# The pool of Huang et al. 2022 (arXiv:2210.11610): whole training sets of three, 5,000 questions of the others.
POOL = 'huang2022'
POOL_RATES = {
    'gsm8k': 7473,
    'drop': 5000,
    'openbookqa': 4957,
    'arc_challenge': 1119,
    'anli_r2': 5000,
    'anli_r3': 5000,
}


def register(
    tasks: Iterable[str] | None = None,
    files: Mapping[str, Mapping[str, str]] | None = None,
    vocabulary: Vocabulary | None = None,
    data_dir: str | None = None,
) -> list[str]:
    """Registers tasks of `TASKS` with seqio, under their own names; `seqio.get_mixture_or_task(name)` works then.

    The features `inputs` and `targets` are tokens, with end of text on the targets; `inputs_pretokenized` is the
    question, `targets_pretokenized` steps and answer as a completion says them (' ... The answer is 7.'), empty where
    there is no label. The metric 'answer_accuracy' is the share of completions with the answer of their target, equal
    as the kind of the task has it. Examples may be cached by seqio's own job before end of text is added. With all six
    tasks of the paper the Mixture 'huang2022' is registered, too. Registering the same again does nothing.

    Args:
      tasks: names; None = those that have files, or without files all that TFDS has.
      files: splits and their local files, task by task: {'svamp': {'test': 'SVAMP.json'}}; tasks without are from TFDS.
      vocabulary: of both features; None = bytes.
      data_dir: where TFDS has its data; None = its default. Nothing is downloaded until examples are asked for.

    Returns:
      The names of the tasks.

    Raises:
      ValueError: no such task, one that TFDS does not have and without files, or a name that is taken.
    """
    files = files or {}
    names = list(tasks) if tasks is not None else list(files) or [name for name in TASKS if TASKS[name].tfds]
    vocabulary = ByteVocabulary() if vocabulary is None else vocabulary
    for name in [*names, *files]:
        if name not in TASKS:
            raise ValueError(f'there is no task {name!r}; there are {", ".join(TASKS)}')
        if name not in files and TASKS[name].tfds is None:
            raise ValueError(
                f'TFDS does not have {name}: say where its files are, as files={{{name!r}: {{"test": ...}}}}'
            )
    for name in names:
        made_of = (tuple(sorted(files[name].items())) if name in files else data_dir, vocabulary)
        add_task(name, made_of, _task(name, files.get(name), vocabulary, data_dir))
    if set(POOL_RATES) <= set(names):
        seqio = import_seqio()
        if POOL not in seqio.MixtureRegistry.names():
            seqio.MixtureRegistry.add(POOL, list(POOL_RATES.items()))
    return names


def _task(name: str, files: Mapping[str, str] | None, vocabulary: Vocabulary, data_dir: str | None) -> dict[str, Any]:
    """The arguments of `seqio.TaskRegistry.add`."""
    task = TASKS[name]
    metrics = [answer_accuracy_of(task.kind)]
    if files is not None:
        return text_task(_file_source(name, files), vocabulary, metrics)
    source = import_seqio().TfdsDataSource(task.tfds, tfds_data_dir=data_dir, splits=dict(task.tfds_splits))
    return text_task(source, vocabulary, metrics, [functools.partial(_read_tfds, name=name, data_dir=data_dir)])


def _file_source(name: str, files: Mapping[str, str]) -> Any:
    """A seqio data source of the questions in files, in their order."""

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        del shuffle_files, seed  # seqio shuffles what comes out
        bank = TaskFile(files[split], task=name)

        def items() -> Iterator[Item]:
            for start in range(0, bank.size, 1024):
                yield from bank.take(start, min(1024, bank.size - start))

        return _texts(items)

    return import_seqio().FunctionDataSource(dataset, splits=tuple(files))


def _read_tfds(dataset: Any, name: str, data_dir: str | None) -> Any:
    """A data set of TFDS as texts: the first preprocessor of a task."""
    import tensorflow_datasets

    features = tensorflow_datasets.builder(TASKS[name].tfds, data_dir=data_dir).info.features
    reader = TaskReader(name)

    def items() -> Iterator[Item]:
        for example in dataset.as_numpy_iterator():
            item = reader.parse(plain(example, features))
            if item is not None:
                yield item

    return _texts(items)


def _texts(items: Callable[[], Iterator[Item]]) -> Any:
    import tensorflow

    def generate() -> Iterator[dict[str, str]]:
        for item in items():
            yield {'inputs': item.question, 'targets': '' if item.answer is None else completion_text(item)}

    text = tensorflow.TensorSpec((), tensorflow.string)
    return tensorflow.data.Dataset.from_generator(generate, output_signature={'inputs': text, 'targets': text})


def plain(value: Any, feature: Any) -> Any:
    """An example of TFDS as plain Python values: text, names of classes (None for -1), numbers, lists, dictionaries."""
    from tensorflow_datasets import features

    if isinstance(feature, features.FeaturesDict):
        return {name: plain(value[name], feature[name]) for name in feature}
    if isinstance(feature, features.Sequence):
        inner = feature.feature
        if isinstance(inner, features.FeaturesDict):  # TFDS turns a list of dictionaries round
            return {name: [plain(one, inner[name]) for one in value[name]] for name in inner}
        return [plain(one, inner) for one in value]
    if isinstance(feature, features.ClassLabel):
        return None if value < 0 else feature.int2str(int(value))
    if isinstance(value, bytes):
        return value.decode('utf-8')
    return np.asarray(value).tolist()


def answer_accuracy_of(kind: str) -> Callable[[Sequence[str], Sequence[str]], dict[str, float]]:
    """The seqio metric of tasks with answers of this kind."""
    answers = AnswerFormat(ByteVocabulary(), kind=kind, room=LONGEST_ANSWER, window=LONGEST_ANSWER)

    def canonical(text: str) -> bytes:
        stated = stated_answer(text)
        return b'' if stated is None else answers.canonical(stated)

    def answer_accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
        pairs = zip(map(canonical, targets), map(canonical, predictions), strict=True)
        right = [target != b'' and target == prediction for target, prediction in pairs]
        return {'answer_accuracy': float(np.mean(right)) if right else 0.0}

    return answer_accuracy
