"""The public data sets: one table of tasks, and the bank that reads a task from its published file."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from t5x_selfimprove.data import published
from t5x_selfimprove.data.items import Item, check_choice
from t5x_selfimprove.data.lines import file_version
from t5x_selfimprove.data.published import Read
from t5x_selfimprove.data.question_files import FileBank
from t5x_selfimprove.data.record_files import Records, Unfold, array_of, form_of, open_records

USUAL_SPLITS = {'train': 'train', 'validation': 'validation', 'test': 'test'}


@dataclasses.dataclass(frozen=True)
class PublishedTask:
    """A public data set as questions.

    Attributes:
      kind: of its answers, one of `consolidation.canonical.KINDS`.
      read: makes an item of a record, in any form that the data set is published in.
      unfold: finds the records in a JSON document.
      only: which records belong to the task; None = all.
      tfds: name of the data set in TFDS, with configuration and version; None = TFDS does not have it.
      tfds_splits: the usual names of splits -> those of TFDS.
    """

    kind: str
    read: Read
    unfold: Unfold = array_of
    only: Callable[[Mapping[str, Any]], bool] | None = None
    tfds: str | None = None
    tfds_splits: Mapping[str, str] = dataclasses.field(default_factory=lambda: USUAL_SPLITS, hash=False)


_DROP = {'unfold': published.drop_records, 'tfds': 'drop:2.0.0', 'tfds_splits': {'train': 'train', 'validation': 'dev'}}
_TRAIN_TEST = {'train': 'train', 'test': 'test'}

TASKS: dict[str, PublishedTask] = {
    'gsm8k': PublishedTask('number', published.gsm8k, tfds='gsm8k:1.0.0', tfds_splits=_TRAIN_TEST),
    'svamp': PublishedTask('number', published.svamp),
    'multiarith': PublishedTask('number', published.multiarith),
    'aqua': PublishedTask('option', published.aqua),
    'strategyqa': PublishedTask('yes_no', published.strategyqa, published.bigbench_records),
    'commonsenseqa': PublishedTask('option', published.multiple_choice),
    'drop': PublishedTask('span', published.drop, **_DROP),
    'drop_football': PublishedTask('span', published.drop, only=published.is_football, **_DROP),
    'drop_non_football': PublishedTask('span', published.drop, only=published.not_football, **_DROP),
    'openbookqa': PublishedTask('option', published.multiple_choice, tfds='openbookqa:0.1.0'),
    'arc_challenge': PublishedTask('option', published.multiple_choice, tfds='ai2_arc/ARC-Challenge:1.0.0'),
    'anli_r1': PublishedTask('nli', published.anli, tfds='anli/r1:0.1.0'),
    'anli_r2': PublishedTask('nli', published.anli, tfds='anli/r2:0.1.0'),
    'anli_r3': PublishedTask('nli', published.anli, tfds='anli/r3:0.1.0'),
    'mnli': PublishedTask(
        'nli',
        published.mnli,
        tfds='multi_nli:1.1.0',
        tfds_splits={
            'train': 'train',
            'validation_matched': 'validation_matched',
            'validation_mismatched': 'validation_mismatched',
        },
    ),
    'rte': PublishedTask('yes_no', published.rte, tfds='glue/rte:2.0.0'),
}


@dataclasses.dataclass(frozen=True)
class TaskReader:
    """Makes items of the records of a task."""

    task: str
    labels: bool = True

    @property
    def filters(self) -> bool:
        return TASKS[self.task].only is not None

    def parse(self, record: Any) -> Item | None:
        """The item; None where the record belongs to another task. Raises ValueError for a malformed record."""
        task = TASKS[self.task]
        try:
            if not isinstance(record, Mapping):
                raise ValueError(f'a record must be an object with named fields; it is a {type(record).__name__}')
            if task.only is not None and not task.only(record):
                return None
            item = task.read(record, self.labels)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'not a record of {self.task}: {type(error).__name__}: {error}') from error
        if not item.question:
            raise ValueError('the question is empty')
        return item


@dataclasses.dataclass(frozen=True)
class TaskFile(FileBank):
    """Bank of a public data set, from a local file in the form that it is published in (`TASKS`, published.py).

    The name of the file tells its format: .jsonl, .json (one document, which stays in memory), .csv, .tsv or .parquet.

    Attributes:
      task: which data set, a name in `TASKS`.
      labels: False = answers and steps are not so much as looked at.
    """

    task: str = dataclasses.field(kw_only=True)
    labels: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_choice('TaskFile.task', self.task, tuple(TASKS))

    def reader(self) -> TaskReader:
        return TaskReader(self.task, self.labels)

    def records(self) -> Records:
        """The records of the file. Raises FileNotFoundError; ValueError where it is of another format."""
        version = file_version(self.path, 'TaskFile')
        return open_records(version, form_of(self.path, 'TaskFile'), None, TASKS[self.task].unfold)
