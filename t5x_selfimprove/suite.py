"""Evaluation inside a run: the questions on the devices, the measuring, and what is written of it."""

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from t5x_selfimprove import evaluate, metrics, partitioning, processes, shares, tally
from t5x_selfimprove.data import store
from t5x_selfimprove.display import percent
from t5x_selfimprove.evaluate import Evaluation
from t5x_selfimprove.feed import Feed
from t5x_selfimprove.improve import Consolidator
from t5x_selfimprove.models import parameters
from t5x_selfimprove.session import Session
from t5x_selfimprove.vocabulary import Vocabulary

_fingerprint = jax.jit(parameters.fingerprint)
OF_SAMPLES = ('answered', 'truncated', 'truncated_answered', 'voted', 'mean_length')  # told of the N sampled paths


@dataclasses.dataclass(frozen=True)
class OutOfDomain:
    """Further labelled questions that a model is measured on beside the held-out ones, so that what a round gives and
    costs elsewhere is seen.

    Attributes:
      questions: their feed, whose name is that of the suite; a task name, such as 'svamp'.
      evaluation: how they are put and answers are read; None = as the held-out ones.

    Raises:
      ValueError: the name is no word.
    """

    questions: Feed
    evaluation: Evaluation | None = None

    def __post_init__(self):
        if not re.fullmatch(r'\w+', self.questions.name):
            raise ValueError(
                'the name of a suite out of domain is of letters, digits and _; this one is '
                f'{self.questions.name!r}: set feed.Feed.name'
            )


class Suite:
    """Labelled questions that a model is measured on, again and again.

    Raises:
      ValueError: a question is too long, a label is no answer, or no question has a label.
    """

    def __init__(
        self,
        session: Session,
        vocabulary: Vocabulary,
        evaluation: Evaluation,
        feed: Feed,
        stored: int | None,
        keeper: Consolidator | None = None,
        prefix: str = '',
    ):
        self.session, self.vocabulary, self.evaluation = session, vocabulary, evaluation
        self.keeper, self.program = keeper, None
        self.prefix = prefix  # of the names of its files
        self.name = feed.name
        rows, form = shares.rows_here(session.mesh, feed.per_batch), evaluation.consolidator.answers
        read, share = processes.agreed(
            f'reading the questions of {feed.name}', lambda: feed.take(0, vocabulary, form, labels=True, rows=rows)
        )
        self.batches, there = shares.place(session.mesh, share, 1, feed.per_batch)
        known, words, weight = partitioning.fetch((self.batches.known, self.batches.id, self.batches.weight))
        count = int(there.sum())
        if not known.any():
            raise ValueError(
                f'none of the {count} evaluation questions has a label; evaluation needs answers ({self.name})'
            )
        if count < feed.per_round:
            session.display.say(
                f'{feed.per_round - count} evaluation questions are longer than {feed.room} tokens and are left out'
            )
        self.ids = shares.ids(words, weight)
        places = np.flatnonzero(there)[:stored].tolist()
        self.items = shares.gather(f'gathering the questions of {feed.name}', read, places)  # whose paths are stored

    def measure(self, model: Any, number: int) -> dict[str, Any]:
        """Measures a model after round `number`; writes metrics and stored paths, and says the result."""
        session, evaluation, start = self.session, self.evaluation, time.perf_counter()
        asked = (model, self.batches, np.uint32(session.place.seed))
        if self.program is None:  # apart from its first use: the time that this takes differs between processes
            with session.display.phase('compile', 'compiling the evaluation'):
                self.program = evaluate.measure.lower(*asked, evaluation, self.keeper).compile()
        with session.display.phase('evaluate', f'evaluating after round {number}'):
            results, samples, verdict, counts = partitioning.fetch(self.program(*asked))
            drawn_by = parameters.fingerprint_text(partitioning.fetch(_fingerprint(model)))
        direct = evaluation.direct_prompt is not None
        found = evaluate.summarise(results, evaluation.sampler.samples, evaluation.at, direct)
        flat = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), (samples, verdict))
        if processes.first():
            origin = store.Origin(number, session.place.seed, drawn_by, self.name)
            stored = store.table(self.items, *flat, self.vocabulary, True, origin)
            store.write(session.directory / 'samples' / f'evaluation_{self.prefix}{number:04d}.parquet', stored)
        counted = metrics.values(counts)
        found['sampled'] = {name: counted[name] for name in OF_SAMPLES}
        lengths = {'edges': tally.length_edges(evaluation.sampler.max_tokens), 'counts': counted['length_histogram']}
        seconds = time.perf_counter() - start
        session.writer.write(
            'evaluation',
            round=number,
            suite=self.name,
            share_histogram=counted['share_histogram'],
            length_histogram=lengths,
            seconds=seconds,
            **found,
        )
        session.display.say(
            f'{self.prefix.replace("_", " ")}{"before training" if number == 0 else f"after round {number}"}: greedy '
            f'{percent(found["greedy_accuracy"])} %, majority {percent(found["majority_accuracy"])} %, answered '
            f'{percent(found["answered"]["value"])} %, truncated {percent(found["truncated"])} %, calibration error '
            f'{percent(found["calibration_error"]["value"])} % ({found["questions"]:,} questions, {seconds:.1f} s)'
        )
        return found


def open_suites(
    session: Session,
    vocabulary: Vocabulary,
    evaluation: Evaluation,
    feed: Feed,
    others: Sequence[OutOfDomain],
    stored: int | None,
    keeper: Consolidator | None = None,
) -> list[Suite]:
    """The held-out questions and, after them, those out of domain.

    Raises:
      ValueError: two suites of one name, or as `Suite` does.
    """
    names = [feed.name, *(other.questions.name for other in others)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f'{len(names)} suites need names of their own; {", ".join(twice)} comes twice: set feed.Feed.name'
        )
    first = Suite(session, vocabulary, evaluation, feed, stored, keeper)
    rest = [
        Suite(session, vocabulary, one.evaluation or evaluation, one.questions, stored, prefix=f'{one.questions.name}_')
        for one in others
    ]
    return [first, *rest]
