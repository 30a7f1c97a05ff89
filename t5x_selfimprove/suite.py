"""Evaluation inside a run: the questions on the devices, the measuring, and what is written of it."""

import time
from typing import Any

import jax
import numpy as np

from t5x_selfimprove import evaluate, files, metrics, partitioning, processes, tally
from t5x_selfimprove.data import store
from t5x_selfimprove.display import percent
from t5x_selfimprove.evaluate import Evaluation
from t5x_selfimprove.feed import Feed
from t5x_selfimprove.improve import Consolidator
from t5x_selfimprove.session import Session
from t5x_selfimprove.vocabulary import Vocabulary


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
        stored: int,
        keeper: Consolidator | None = None,
    ):
        self.session, self.vocabulary, self.evaluation, self.stored = session, vocabulary, evaluation, stored
        self.keeper, self.program = keeper, None
        self.name = feed.name
        self.items, batches, skipped = feed.take(0, vocabulary, evaluation.consolidator.answers, labels=True)
        if not batches.known.any():
            raise ValueError(
                f'none of the {len(self.items)} evaluation questions has a label; evaluation needs answers'
            )
        if skipped:
            session.display.say(f'{skipped} evaluation questions are longer than {feed.room} tokens and are left out')
        self.ids = {item.id for item in self.items}
        self.batches = session.place_batch(batches, 1)

    def measure(self, model: Any, number: int) -> dict[str, Any]:
        """Measures a model after round `number`; writes metrics and stored paths, and says the result."""
        session, evaluation, start = self.session, self.evaluation, time.perf_counter()
        asked = (model, self.batches, np.uint32(session.place.seed))
        if self.program is None:  # apart from its first use: the time that this takes differs between processes
            with session.display.phase('compile', 'compiling the evaluation'):
                self.program = evaluate.measure.lower(*asked, evaluation, self.keeper).compile()
        with session.display.phase('evaluate', f'evaluating after round {number}'):
            results, samples, verdict, counts = partitioning.fetch(self.program(*asked))
        found = evaluate.summarise(results, evaluation.sampler.samples)
        flat = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), (samples, verdict))
        stored = store.lines(self.items, *flat, self.vocabulary, labels=True, limit=self.stored)
        if processes.first():
            files.write_json_lines(session.directory / 'samples' / f'evaluation_{number:04d}.jsonl', stored)
        counted = metrics.values(counts)
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
            f'{"before training" if number == 0 else f"after round {number}"}: greedy '
            f'{percent(found["greedy_accuracy"])} %, majority {percent(found["majority_accuracy"])} %, answered '
            f'{percent(found["answered"]["value"])} %, calibration error '
            f'{percent(found["calibration_error"]["value"])} % ({found["questions"]:,} questions, {seconds:.1f} s)'
        )
        return found
