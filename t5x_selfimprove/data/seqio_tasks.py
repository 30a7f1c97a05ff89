"""seqio on both sides: the embedded task registered as seqio Tasks, and a bank that reads any Task or Mixture.

TensorFlow is imported inside functions, and only to read data: accelerators are hidden from it.
"""

import contextlib
import dataclasses
import functools
import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_selfimprove.data.items import Bank, Item, Unlabelled, check_integer, completion_text, epoch_indices, make_item
from t5x_selfimprove.data.possessions import SPLITS, Possessions
from t5x_selfimprove.vocabulary import ByteVocabulary, Vocabulary

SEQIO_SPLITS = {'labelled': 'train', 'unlabelled': 'train', 'held_out': 'validation'}
SIZES = {'labelled': 2_000, 'unlabelled': 100_000, 'held_out': 1_000}
ANSWER_AFTER = 'The answer is'

_registered: dict[str, tuple] = {}  # what each task was made of, to tell a repetition from a clash


@dataclasses.dataclass(frozen=True)
class SeqioTask:
    """Bank of the examples of a registered seqio Task or Mixture, read as text.

    Attributes:
      name: of the Task or Mixture.
      split: of it.
      module: 'package.module' to import first, because that registers the task, or 'package.module:function' to call
        a function as well, as in 't5x_selfimprove.data.seqio_tasks:register_possessions'.
      inputs: feature with the question: text, or tokens that the task's own vocabulary decodes. None = plain text.
      targets: feature with the answer, or with the whole text where there are no inputs.
      answer_after: targets hold rationale and answer, parted by the last such text; a full stop after the answer is
        dropped. None = all of targets is the answer.
      count: the first `count` examples, kept in memory as a finite bank. None = an endless stream in the order of the
        task, over and over, of which nothing is kept; going back, or resuming, reads it again from the start.
      shuffle_seed: finite: every epoch in an order of its own; endless: seed of the task's own shuffling.
    """

    name: str
    split: str = 'train'
    module: str | None = None
    inputs: str | None = 'inputs_pretokenized'
    targets: str = 'targets_pretokenized'
    answer_after: str | None = None
    count: int | None = None
    shuffle_seed: int | None = None

    def __post_init__(self):
        for field in ('name', 'split', 'targets'):
            if not isinstance(self.__dict__[field], str) or not self.__dict__[field]:
                raise ValueError(f'SeqioTask.{field} must be a name; it is {self.__dict__[field]!r}')
        if self.answer_after == '' or (self.answer_after is not None and self.inputs is None):
            raise ValueError('SeqioTask.answer_after must be a text, and needs inputs: plain text has no answer')
        if self.count is not None:
            check_integer('SeqioTask.count', self.count, 1)
        if self.shuffle_seed is not None:
            check_integer('SeqioTask.shuffle_seed', self.shuffle_seed, 0, 2**31 - 1)

    @property
    def size(self) -> int | None:
        return self.count

    def take(self, position: int, count: int) -> list[Item]:
        """Items position .. position + count - 1.

        Raises:
          ValueError: no such task, split or feature, or fewer examples than `count`.
        """
        if self.count is None:
            check_integer('position', position, 0)
            check_integer('count', count, 0)
            return _stream(self).take(position, count)
        items = _load(dataclasses.replace(self, shuffle_seed=None))
        return [items[index] for index in epoch_indices(position, count, self.count, self.shuffle_seed).tolist()]

    def check(self) -> None:
        """Reads the first item (all of them where there is a count)."""
        self.take(0, 1)

    def epoch(self, number: int) -> Iterator[Item]:
        """All items once; those of a Mixture without a count never end, so that its rates hold."""
        provider = _provider(self)
        shuffle = self.count is None and self.shuffle_seed is not None
        options = {'split': self.split, 'shuffle': shuffle, 'seed': self.shuffle_seed + number if shuffle else None}
        if isinstance(provider, import_seqio().Mixture):
            options |= {'copy_pretokenized': True, 'num_epochs': None if self.count is None else 1}
        for example in provider.get_dataset(sequence_length=None, **options).as_numpy_iterator():
            yield self._item(provider, example)

    def _item(self, provider: Any, example: Mapping[str, Any]) -> Item:
        targets = _feature_text(self, provider, example, self.targets)
        if self.inputs is None:
            return make_item('', targets)
        question, targets = _feature_text(self, provider, example, self.inputs).strip(), targets.strip()
        if not targets:
            return make_item(question)
        if self.answer_after is None:
            return make_item(question, None, targets)
        rationale, mark, answer = targets.rpartition(self.answer_after)
        if not mark:
            raise ValueError(
                f'SeqioTask {self.name!r}: its feature {self.targets!r} has no {self.answer_after!r} in it: '
                f'{targets[-80:]!r}; set answer_after to the text before the answer, or to None'
            )
        return make_item(question, rationale.strip() or None, _bare(answer))


class _Stream:
    """An open endless dataset and the position it has been read to."""

    def __init__(self, bank: SeqioTask):
        self._bank = bank
        self._open()

    def _open(self) -> None:
        self._position = 0
        self._items = self._endless()

    def _endless(self) -> Iterator[Item]:
        for number in itertools.count():
            before = self._position
            yield from self._bank.epoch(number)
            if self._position == before:
                raise ValueError(f'SeqioTask {self._bank.name!r}, split {self._bank.split!r}, has no examples')

    def take(self, position: int, count: int) -> list[Item]:
        if position < self._position:
            self._open()
        items = []
        while self._position < position + count:
            item = next(self._items)
            self._position += 1
            if self._position > position:
                items.append(item)
        return items


@functools.lru_cache(maxsize=4)
def _stream(bank: SeqioTask) -> _Stream:
    return _Stream(bank)


@functools.lru_cache(maxsize=8)
def _load(bank: SeqioTask) -> tuple[Item, ...]:
    items = []
    for item in bank.epoch(0):
        items.append(item)
        if len(items) == bank.count:
            return tuple(items)
    raise ValueError(
        f'SeqioTask {bank.name!r}, split {bank.split!r}, has {len(items)} examples; count = {bank.count} is more'
    )


def import_seqio() -> Any:
    """seqio, with accelerators hidden from TensorFlow, which would otherwise take all their memory."""
    import tensorflow

    with contextlib.suppress(RuntimeError):  # TensorFlow is in use already, with the devices its user gave it
        tensorflow.config.set_visible_devices([], 'GPU')
    import seqio

    return seqio


def _provider(bank: SeqioTask) -> Any:
    seqio = import_seqio()
    if bank.module is not None:
        name, _, function = bank.module.partition(':')
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f'SeqioTask.module {name!r} cannot be imported: {error}') from error
        if function:
            if not callable(vars(module).get(function)):
                raise ValueError(f'SeqioTask.module {bank.module!r}: {name} has no function {function!r}')
            vars(module)[function]()
    known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    if bank.name not in known:
        raise ValueError(
            f'there is no seqio Task or Mixture {bank.name!r}; registered are: {", ".join(known) or "none"}. '
            'Name the module that registers it in SeqioTask.module'
        )
    provider = seqio.get_mixture_or_task(bank.name)
    splits = sorted(provider.splits)
    if bank.split not in splits:
        raise ValueError(f'SeqioTask {bank.name!r} has no split {bank.split!r}; it has {", ".join(splits)}')
    return provider


def _feature_text(bank: SeqioTask, provider: Any, example: Mapping[str, Any], feature: str) -> str:
    if feature not in example:
        raise ValueError(
            f'SeqioTask {bank.name!r} has no feature {feature!r}; the features are: {", ".join(sorted(example))}. '
            'Set SeqioTask.inputs and SeqioTask.targets'
        )
    value = example[feature]
    if isinstance(value, bytes):
        return value.decode('utf-8')
    tokens = isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in 'iu'
    if tokens and feature in provider.output_features:
        return provider.output_features[feature].vocabulary.decode(value.tolist())
    raise ValueError(f'SeqioTask {bank.name!r}: feature {feature!r} is neither text nor tokens: {value!r:.80}')


def _bare(answer: str) -> str:
    return answer.strip().removesuffix('.').strip()


def register_possessions(
    bank: Possessions | None = None,
    sizes: Mapping[str, int] | None = None,
    vocabulary: Vocabulary | None = None,
    name: str = 'possessions',
) -> list[str]:
    """Registers the embedded task with seqio: Tasks NAME_labelled, NAME_unlabelled (no targets) and NAME_held_out.

    The features `inputs` and `targets` are tokens with end of text on the targets; `inputs_pretokenized` and
    `targets_pretokenized` are the same questions and completions as the bank gives (a completion starts with a space),
    and so are the tokens. Splits are 'train', 'train' and 'validation'. The metric is the share of right answers.
    Registering the same again does nothing.

    Args:
      bank: seed and difficulty; its split and count are not used. None = the defaults of `Possessions`.
      sizes: number of examples of each split; None = `SIZES`.
      vocabulary: of both features; None = bytes.
      name: first part of the names.

    Returns:
      The names of the three tasks.

    Raises:
      ValueError: the names are taken by something else.
    """
    bank = Possessions() if bank is None else bank
    vocabulary = ByteVocabulary() if vocabulary is None else vocabulary
    counts = {**SIZES, **(sizes or {})}
    if set(counts) != set(SPLITS):
        raise ValueError(f'sizes must have the keys {", ".join(SPLITS)}; they are {", ".join(counts)}')
    names = []
    for split in SPLITS:
        names.append(f'{name}_{split}')
        source = dataclasses.replace(bank, split=split, count=counts[split], shuffle_seed=None)
        shown = bank_source(Unlabelled(source) if split == 'unlabelled' else source, SEQIO_SPLITS[split])
        metrics = [] if split == 'unlabelled' else [answer_accuracy]
        add_task(names[-1], (source, vocabulary), text_task(shown, vocabulary, metrics))
    return names


def text_task(
    source: Any, vocabulary: Vocabulary, metrics: list[Callable], read: Sequence[Callable] = ()
) -> dict[str, Any]:
    """The arguments of `seqio.TaskRegistry.add` for a source of `inputs` and `targets` as text, after `read`.

    Seqio's caching job keeps the tokens, without end of text.
    """
    seqio = import_seqio()
    tokens = seqio_vocabulary(vocabulary)
    return {
        'source': source,
        'preprocessors': [
            *read,
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos,
        ],
        'output_features': {
            'inputs': seqio.Feature(tokens, add_eos=False),
            'targets': seqio.Feature(tokens, add_eos=True),
        },
        'metric_fns': metrics,
    }


def add_task(name: str, made_of: Any, settings: dict[str, Any]) -> None:
    """Adds a Task to seqio's registry, unless it is there.

    Args:
      name: of the task.
      made_of: what tells a repetition from a clash.
      settings: the arguments of `seqio.TaskRegistry.add`.

    Raises:
      ValueError: the name is taken by something else.
    """
    seqio = import_seqio()
    if name in seqio.TaskRegistry.names():
        if name not in _registered or _registered[name] != made_of:
            raise ValueError(f'the seqio Task {name!r} exists already and is different; choose another name')
        return
    seqio.TaskRegistry.add(name, **settings)
    _registered[name] = made_of


def bank_source(bank: Bank, seqio_split: str) -> Any:
    """A seqio data source of `inputs` and `targets` as text, in the order of the bank."""

    def generate() -> Iterator[dict[str, str]]:
        for start in range(0, bank.size, 1024):
            for item in bank.take(start, min(1024, bank.size - start)):
                targets = completion_text(item) if item.rationale or item.answer is not None else ''
                yield {'inputs': item.question, 'targets': targets}

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        import tensorflow

        del split, shuffle_files, seed  # one split, and seqio shuffles what comes out
        text = tensorflow.TensorSpec((), tensorflow.string)
        return tensorflow.data.Dataset.from_generator(generate, output_signature={'inputs': text, 'targets': text})

    return import_seqio().FunctionDataSource(
        dataset, splits=(seqio_split,), num_input_examples={seqio_split: bank.size}
    )


def answer_accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions that state the same answer as their target: seqio metric 'answer_accuracy', 0..1."""
    right = [
        target is not None and target == prediction
        for target, prediction in zip(map(stated_answer, targets), map(stated_answer, predictions), strict=True)
    ]
    return {'answer_accuracy': float(np.mean(right)) if right else 0.0}


def stated_answer(text: str, trigger: str = ANSWER_AFTER) -> str | None:
    """What follows the last `trigger`, without the full stop; None where there is none."""
    _, mark, answer = text.rpartition(trigger)
    return _bare(answer) if mark and _bare(answer) else None


def seqio_vocabulary(vocabulary: Vocabulary) -> Any:
    """A `seqio.Vocabulary` that gives the same tokens as `vocabulary`; two of equal vocabularies are equal."""
    return _seqio_vocabulary_class()(vocabulary)


@functools.cache
def _seqio_vocabulary_class() -> type:
    seqio = import_seqio()
    import tensorflow

    class SeqioVocabulary(seqio.Vocabulary):
        """Text to tokens through Python, one text at a time."""

        def __init__(self, vocabulary: Vocabulary):
            self.vocabulary = vocabulary
            super().__init__()

        bos_id = property(lambda self: self.vocabulary.bos_id)
        eos_id = property(lambda self: self.vocabulary.eos_id)
        pad_id = property(lambda self: self.vocabulary.pad_id)
        unk_id = property(lambda self: None)
        _base_vocab_size = property(lambda self: self.vocabulary.size)

        def _encode(self, s: str) -> list[int]:
            return self.vocabulary.encode(s)

        def _decode(self, ids: Sequence[int]) -> str:
            return self.vocabulary.decode(ids)

        def _encode_tf(self, s: Any) -> Any:
            def encode(text: Any) -> np.ndarray:
                text = text if isinstance(text, bytes) else text.item()  # run eagerly it comes as an array
                return np.array(self.vocabulary.encode(text.decode('utf-8')), np.int32)

            ids = tensorflow.numpy_function(encode, [tensorflow.convert_to_tensor(s)], tensorflow.int32)
            ids.set_shape([None])
            return ids

        def _decode_tf(self, ids: Any) -> Any:
            def decode(tokens: np.ndarray) -> Any:
                if tokens.ndim == 1:
                    return self.vocabulary.decode(tokens).encode('utf-8')
                return np.array([self.vocabulary.decode(row).encode('utf-8') for row in tokens], object)

            return tensorflow.numpy_function(decode, [tensorflow.convert_to_tensor(ids)], tensorflow.string)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, SeqioVocabulary) and self.vocabulary == other.vocabulary

        def __hash__(self) -> int:
            return hash(self.vocabulary)

    return SeqioVocabulary
