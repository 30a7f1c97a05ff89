"""Pre-training: next-token likelihood on any bank of examples or text, in chunks of steps that can be resumed."""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import numpy as np

from t5x_selfimprove import improve, metrics, partitioning, processes, profiling, shares
from t5x_selfimprove.checkpoints import Described, describe_model, model_facts, read_model
from t5x_selfimprove.data.items import Bank, check_banks, encode_examples, take_at
from t5x_selfimprove.learning.supervised import Supervised
from t5x_selfimprove.models.config import ModelConfig
from t5x_selfimprove.records import Examples, TrainState
from t5x_selfimprove.session import Place, Session
from t5x_selfimprove.templates import Template
from t5x_selfimprove.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Trains a new model, or goes on with one, on examples.

    One compiled program runs `learner.steps` updates on the examples of a chunk; `learner.total_rounds` chunks make
    the run, and a checkpoint is saved after each.

    Raises:
      ValueError: settings that do not go together.
    """

    place: Place
    vocabulary: Vocabulary
    model: ModelConfig
    examples: Bank
    prompt: Template
    learner: Supervised
    example_room: int  # tokens of the longest example, end-of-text included
    examples_per_chunk: int
    too_long: str = 'refuse'  # or 'skip': leave longer examples out and count them
    answer_text: str = ' The answer is {answer}.'
    initial: str | None = None  # run directory, or Hugging Face directory, to start from; None: random parameters

    def __post_init__(self):
        if self.learner.fresh_optimizer or self.learner.start_from != 'previous' or self.learner.replay_share:
            raise ValueError(
                "pre-training needs a learner with fresh_optimizer=False, start_from='previous' and replay_share=0: "
                'its chunks are one long run'
            )
        if self.examples_per_chunk < 1:
            raise ValueError(f'examples_per_chunk must be at least 1; it is {self.examples_per_chunk}')
        self.learner.packing.check_kind(self.model)

    def create(self) -> TrainState:
        """The state before the first step."""
        key = jax.random.fold_in(jax.random.key(self.place.seed), 2**31)  # no round has this number
        return improve.new_state(self.model.create(self.vocabulary.size, key), self.learner, self.place.seed, False)

    def chunk(self, number: int, mesh: jax.sharding.Mesh) -> Examples:
        """This process's share of the examples of chunk `number` (from 0); those that are too long are padding."""
        rows = shares.rows_here(mesh, self.examples_per_chunk)
        items = take_at(self.examples, number * self.examples_per_chunk + rows)
        share, _ = encode_examples(
            items,
            self.vocabulary,
            self.prompt.before,
            self.prompt.after,
            self.example_room,
            self.too_long,
            answer_text=self.answer_text,
            rooms=self.learner.packing.rooms,
        )
        return share

    def run(self, config: str) -> dict[str, Any]:
        """Pre-trains, or goes on where a killed run stopped. Returns the last chunk's metrics.

        Raises:
          ValueError, OSError: bad input, before anything long starts.
        """
        self.place.devices()  # before anything else wakes jax up
        left_out = check_banks(self.examples)
        if self.initial is not None:
            describe_model(self.initial, self.vocabulary)
        with Session(self.place, config) as session:
            done = session.resume_point('pretrain', self.vocabulary) or 0
            self.check_examples(done, session.mesh)
            state = session.place_state(self.create)
            session.check_room(state)
            if done:
                state, done = session.restore(state, done, 'pretrain', self.vocabulary)
            elif self.initial is not None:
                state = dataclasses.replace(state, model=read_model(self.initial, state.model))
                session.display.say(f'starting from {self.initial}')
            session.save_config()
            chunks, steps = self.learner.total_rounds, self.learner.steps
            packing = self.learner.packing
            rows = packing.rows_for(self.examples_per_chunk, self.example_room, packing.rooms)
            batch = {
                'steps': f'{chunks} chunks x {steps} = {chunks * steps:,}',
                'examples': f'{self.examples_per_chunk:,} a chunk, packed in at most {rows:,} rows of '
                f'{packing.row_tokens} tokens',
                'batch_rows': f'{self.learner.batch_rows} ({self.learner.accumulate} accumulated)',
                **left_out,
            }
            session.announce('pretrain', state, batch)
            return self.train(session, state, done)

    def check_examples(self, done: int, mesh: jax.sharding.Mesh) -> None:
        """Looks at the examples of the chunks to come, of a finite bank once. Raises ValueError or OSError."""
        size, chunks = self.examples.size, self.learner.total_rounds
        last = chunks if size is None else min(chunks, done + math.ceil(size / self.examples_per_chunk))
        fit = processes.agreed(
            'looking at the examples',
            lambda: [bool(self.chunk(number, mesh).weight.any()) for number in range(done, last)],
        )
        of_all = np.any(processes.compare('comparing the examples', fit), axis=0)
        if not of_all.all():
            raise ValueError(
                f'all {self.examples_per_chunk} examples of chunk {done + of_all.argmin() + 1} are longer than '
                f'example_room = {self.example_room} tokens; make it larger'
            )

    def train(self, session: Session, state: TrainState, done: int) -> dict[str, Any]:
        """Runs the chunks from `done` on."""
        display, chunks = session.display, self.learner.total_rounds
        if done:
            display.say(f'resumed after chunk {done} of {chunks}')
        step = None
        found: dict[str, Any] = {}
        for number in range(done, chunks):
            session.stop_if_asked(f'chunk {number} of {chunks}')
            start = time.perf_counter()
            share = processes.agreed('reading examples', lambda number=number: self.chunk(number, session.mesh))
            batch, there = shares.place(session.mesh, share, 0, self.examples_per_chunk)
            skipped = int((~there).sum())
            if step is None:
                program = jax.jit(functools.partial(_chunk, learner=self.learner), donate_argnums=0)
                with display.phase('compile', 'compiling the training'):
                    step = program.lower(state, batch).compile()
            profile = profiling.traced(session.directory, self.place.profile, [number + 1])
            with display.phase('chunk', f'pre-training, chunk {number + 1} of {chunks}'), profile:
                state, counted = step(state, batch)
                found = metrics.values(partitioning.fetch(counted))
            seconds = time.perf_counter() - start
            if not np.isfinite(found['loss']):
                raise FloatingPointError(
                    f'the loss is {found["loss"]} after chunk {number + 1}; lower the learning rate'
                )
            updates = (number + 1) * self.learner.steps
            session.writer.write(
                'pretrain', step=updates, tokens=found['training_tokens'], seconds=seconds, skipped=skipped, **found
            )
            display.say(
                f'step {updates:,}: loss {found["loss"]:.3f}, '
                f'{found["training_tokens"] / seconds:,.0f} tokens/s, {seconds:.1f} s'
                + (f', {skipped} examples too long and left out' if skipped else '')
            )
            described = Described(
                step=updates,
                kind='pretrain',
                data_position=(number + 1) * self.examples_per_chunk,
                vocabulary=self.vocabulary.fingerprint(),
                config=session.config,
                manifest={'seed': self.place.seed, 'initial': self.initial, 'model': model_facts(self.model)},
            )
            session.checkpoints.save(number + 1, state, described)
        session.checkpoints.finish()
        display.say(f'pre-trained model: {session.directory}')
        return found


def _chunk(state: TrainState, examples: Examples, *, learner: Supervised) -> tuple[TrainState, metrics.Metrics]:
    """One chunk of pre-training: a round of learning without sampling."""
    state, counted = learner(state, examples, None, improve.round_key(state))
    return dataclasses.replace(state, round=state.round + 1), counted
