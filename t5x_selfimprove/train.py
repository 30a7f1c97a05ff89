"""A run of self-improvement: restore, feed, dispatch, write, evaluate, save."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_selfimprove import improve, metrics, partitioning, placement, processes, profiling, shares, tally
from t5x_selfimprove.checkpoints import Described, describe_model, model_facts, read_model
from t5x_selfimprove.data import store
from t5x_selfimprove.data.items import Bank, Item, check_banks, encode_examples, encode_questions
from t5x_selfimprove.display import number_of_bytes, percent
from t5x_selfimprove.evaluate import Evaluation
from t5x_selfimprove.feed import Feed, Rounds
from t5x_selfimprove.guards import Guards, Watch, figures_of
from t5x_selfimprove.improve import Recipe, Round
from t5x_selfimprove.models import parameters
from t5x_selfimprove.models.config import ModelConfig
from t5x_selfimprove.records import Lessons, TrainState
from t5x_selfimprove.report import write_report
from t5x_selfimprove.session import Place, Session
from t5x_selfimprove.suite import OutOfDomain, open_suites
from t5x_selfimprove.summary import suites_table, summarise, table
from t5x_selfimprove.vocabulary import Vocabulary

# Most that the log-probability of a token may differ between sampling and learning, in nats, by the dtype of the
# computation. Rounding alone gives about 1e-5 in float32 and 0.1 in bfloat16, which keeps 8 bits of each logit.
DRIFT_LIMITS = {'float32': 1e-3, 'bfloat16': 0.5}


@dataclasses.dataclass(frozen=True)
class Improve:
    """Improves a model in place on questions, round after round.

    Raises:
      ValueError: settings that do not go together.
    """

    place: Place
    vocabulary: Vocabulary
    model: ModelConfig
    initial: str  # run directory, or Hugging Face directory, of the model to start from
    recipe: Recipe
    questions: Feed
    evaluation: Evaluation
    evaluation_questions: Feed
    rounds: int
    out_of_domain: tuple[OutOfDomain, ...] = ()  # further suites, measured whenever the held-out questions are
    labels: bool = False  # whether the labels of the questions reach the consolidator; a label-free run has False
    replay: Bank | None = None  # labelled examples mixed into training, all of them; None where the learner needs none
    replay_room: int = 0  # tokens of the longest replayed example, end-of-text included
    rounds_per_dispatch: int = 1  # rounds that run as one program between two evaluations
    evaluate_every: int = 1  # rounds between evaluations; the first and the last are always made
    stored_questions: int | None = None  # questions a round whose paths are written to the sample store; None = all
    train_on_evaluation: bool = False  # whether questions of the evaluation may be trained on
    guards: Guards = Guards()  # alarms on signs of collapse
    drift_limit: float | None = None  # nats of `log_prob_drift` that stop the run; None: DRIFT_LIMITS

    def __post_init__(self):
        if self.rounds < 1 or self.rounds_per_dispatch < 1 or self.rounds % self.rounds_per_dispatch:
            raise ValueError(
                f'rounds = {self.rounds} must be a positive multiple of '
                f'rounds_per_dispatch = {self.rounds_per_dispatch}'
            )
        if self.evaluate_every < 1:
            raise ValueError(f'evaluate_every must be at least 1; it is {self.evaluate_every}')
        if self.drift_limit is not None and not self.drift_limit > 0:
            raise ValueError(f'drift_limit must be positive; it is {self.drift_limit}')
        wants_replay = self.recipe.learner.replay_share > 0
        if wants_replay != (self.replay is not None):
            raise ValueError(
                f'replay_share = {self.recipe.learner.replay_share} and replay = {self.replay} do not go together: '
                'give both or neither'
            )
        self.recipe.learner.packing.check_kind(self.model)

    @property
    def answers(self) -> Any:
        """How answers are read."""
        return self.evaluation.consolidator.answers

    def run(self, config: str) -> dict[str, Any]:
        """Runs all rounds, or goes on where a killed run stopped. Returns the summary that process 0 writes.

        Raises:
          ValueError, OSError: bad input, before anything long starts.
        """
        start = time.perf_counter()
        self.place.devices()  # before anything else wakes jax up
        left_out, described = self.check_input()
        with Session(self.place, config) as session:
            done = session.resume_point('improve', self.vocabulary)
            run = _Run(self, session)
            run.rounds.check(range(done or 0, self.rounds))
            state, done = run.restore(done, described)
            session.check_room(state)
            session.save_config()
            cache = {'cache': f'{number_of_bytes(self.cache_bytes(state.model, session.mesh))} per device'}
            session.announce('improve', state, self.batch_arithmetic() | cache | left_out)
            step = run.compile(state) if (done or 0) < self.rounds else None
            if done is None:
                run.save(state, 0, run.measure(state.model, 0))
                run.watch.end_if_alarmed(saved=True)
            elif done:
                session.display.say(f'resumed after round {done} of {self.rounds}')
            for number in range(done or 0, self.rounds, self.rounds_per_dispatch):
                session.stop_if_asked(f'round {number} of {self.rounds}')
                state = run.dispatch(step, state, number)
                last = number + self.rounds_per_dispatch
                figure = None
                if last % self.evaluate_every == 0 or last == self.rounds:
                    figure = run.measure(state.model, last)
                run.watch.end_if_alarmed(saved=False)
                run.save(state, last, figure)
                run.watch.end_if_alarmed(saved=True)
            session.checkpoints.finish()  # the summary tells of what is saved
            session.writer.write('session', seconds=time.perf_counter() - start)
            if not processes.first():
                return {}
            summary = summarise(session.directory)
            session.display.table(*table(summary))
            if len(summary['suites']) > 1:
                session.display.table(*suites_table(summary))
                transfer = 100 * summary['backward_transfer']
                session.display.say(f'backward transfer to the suites out of domain: {transfer:+.1f} points')
            session.display.say(f'summary: {session.directory / "summary.json"}')
            session.display.say(f'report: {write_report(session.directory)}')
            return summary

    def check_input(self) -> tuple[dict[str, str], Described]:
        """Looks at everything that is read, before anything long starts; what banks leave out, the initial model."""
        others = [one.questions.bank for one in self.out_of_domain]
        left_out = check_banks(self.questions.bank, self.evaluation_questions.bank, self.replay, *others)
        if self.replay is not None and self.replay.size is None:
            raise ValueError(
                f'all of replay is packed at the start and this bank is endless; set a count: {self.replay}'
            )
        return left_out, describe_model(self.initial, self.vocabulary)

    def prompt_shapes(self) -> Any:
        """Shapes of the prompts of a batch."""
        count = self.questions.per_batch
        encoded, _ = encode_questions([], self.vocabulary, self.questions.room, self.answers, count=count)
        return jax.eval_shape(self.recipe.prompt, encoded)

    def cache_bytes(self, model: Any, mesh: jax.sharding.Mesh) -> int:
        """Bytes of a device for the keys and values of a batch; the mesh is in context."""
        return placement.cache_bytes(model, self.prompt_shapes(), self.recipe.sampler, mesh)

    def batch_arithmetic(self) -> dict[str, str]:
        """What a round multiplies to, for people."""
        sampler, learner = self.recipe.sampler, self.recipe.learner
        feed = self.questions
        return {
            'round': f'{feed.per_round:,} questions x {sampler.samples} samples = '
            f'{feed.per_round * sampler.samples:,} paths of at most {sampler.max_tokens} tokens, '
            f'{feed.per_batch:,} questions at a time',
            'training': f'{learner.steps} updates x {learner.batch_rows} rows of {learner.packing.row_tokens} tokens '
            f'({learner.accumulate} accumulated), {learner.replay_rows} rows of them replay',
            'rounds': f'{self.rounds}, {self.rounds_per_dispatch} a dispatch',
        }


class _Run:
    """The parts of one run that share its session."""

    def __init__(self, settings: Improve, session: Session):
        self.settings = settings
        self.session = session
        self.suites = open_suites(
            session,
            settings.vocabulary,
            settings.evaluation,
            settings.evaluation_questions,
            settings.out_of_domain,
            settings.stored_questions,
            settings.recipe.consolidator,
        )
        evaluated = None if settings.train_on_evaluation else np.concatenate([suite.ids for suite in self.suites])
        reading = settings.vocabulary, settings.answers, settings.labels
        self.rounds = Rounds(session.mesh, settings.questions, *reading, evaluated)
        settings.guards.check_canary([suite.name for suite in self.suites])
        self.watch = Watch(settings.guards, session)
        self.replay = self.pack_replay()

    @property
    def drift_limit(self) -> float:
        """Nats of `log_prob_drift` that stop the run; what is rounded to int8 drifts by what it is rounded by."""
        settings = self.settings
        if settings.drift_limit is not None:
            return settings.drift_limit
        sampler = settings.recipe.sampler
        rounded = 'int8' in (sampler.weights, sampler.cache)
        return np.inf if rounded else DRIFT_LIMITS[settings.model.dtype]

    def measure(self, model: Any, number: int) -> float | None:
        """Measures a model on every suite, with an eye on the canary; the figure that checkpoints are ranked by.

        Raises:
          ValueError: the held-out suite has no such figure.
        """
        guards, place = self.settings.guards, self.session.place
        found = {suite.name: suite.measure(model, number) for suite in self.suites}
        precision = found[guards.canary]['kept_precision'] if guards.canary else None
        if precision is not None:
            self.watch.look(number, {'wrong_consensus': 1 - precision})
        ranks = {name: one['value'] for name, one in found[self.suites[0].name].items() if _is_interval(one)}
        if place.keep_best and place.best_by not in ranks:
            raise ValueError(f'best_by = {place.best_by!r} is no figure of an evaluation; there are {", ".join(ranks)}')
        return ranks.get(place.best_by)

    def pack_replay(self) -> Lessons | None:
        """All labelled examples as packed rows, on the devices."""
        settings = self.settings
        if settings.replay is None:
            return None
        template = settings.recipe.replay_prompt
        items = settings.replay.take(0, settings.replay.size)
        pack = settings.recipe.learner.packing
        examples, _ = encode_examples(
            items, settings.vocabulary, template.before, template.after, settings.replay_room, rooms=pack.rooms
        )
        lessons, _ = jax.jit(pack)(self.session.replicate(examples), jax.random.key(settings.place.seed))
        return lessons

    def restore(self, done: int | None, initial: Described) -> tuple[TrainState, int | None]:
        """The state after round `done`, or the last before it that can be read, and its number; or a new state from the
        initial model, and None."""
        settings, session = self.settings, self.session
        learner = settings.recipe.learner

        def create() -> TrainState:
            model = settings.model.create(settings.vocabulary.size, jax.random.key(0))
            return improve.new_state(model, learner, settings.place.seed, learner.start_from == 'base')

        state = session.place_state(create)
        if done is not None:
            return session.restore(state, done, 'improve', settings.vocabulary)
        model = read_model(settings.initial, state.model)
        session.display.say(f'starting from {settings.initial}, step {initial.step:,}')
        base = jax.tree.map(jnp.copy, parameters.split(model)[0]) if state.base is not None else None
        return dataclasses.replace(state, model=model, base=base), None

    def compile(self, state: TrainState) -> Any:
        """Compiles the round once; says how long it took and what is updated in place."""
        settings, session = self.settings, self.session
        _, questions, _ = self.rounds.take(range(settings.rounds_per_dispatch))
        start = time.perf_counter()
        with session.display.phase('compile', 'compiling the round'):
            compiled = improve.program(settings.recipe).lower(state, questions, self.replay).compile()
        seconds = time.perf_counter() - start
        memory = compiled.memory_analysis()
        session.writer.write(
            'compile',
            seconds=seconds,
            temporary_bytes=memory.temp_size_in_bytes,
            aliased_bytes=memory.alias_size_in_bytes,
        )
        session.display.say(
            f'compiled sampling, vote and training as one program in {seconds:.1f} s: '
            f'{number_of_bytes(memory.alias_size_in_bytes)} updated in place, '
            f'{number_of_bytes(memory.temp_size_in_bytes)} temporary'
        )
        return compiled

    def dispatch(self, step: Any, state: TrainState, done: int) -> TrainState:
        """Runs the next rounds and writes what they leave."""
        settings, display = self.settings, self.session.display
        start = time.perf_counter()
        last = done + settings.rounds_per_dispatch
        read, questions, there = self.rounds.take(range(done, last))
        name = f'round {last}' if last == done + 1 else f'rounds {done + 1} to {last}'
        rest = (settings.rounds - last) / settings.rounds_per_dispatch
        after = rest * sum(display.seconds.get(kind, 0.0) for kind in ('round', 'evaluate'))
        profile = profiling.traced(self.session.directory, settings.place.profile, range(done + 1, last + 1))
        with display.phase('round', f'{name} of {settings.rounds}: sampling, vote, training', after), profile:
            state, left = step(state, questions, self.replay)
            left, known = partitioning.fetch((left, questions.known.sum(axis=(1, 2))))
        seconds = time.perf_counter() - start
        met = profiling.met(state.model, settings.model)
        for offset, items in enumerate(read):
            number, count = done + offset + 1, int(there[offset].sum())
            one = jax.tree.map(lambda array, offset=offset: array[offset], left)
            facts = {
                'skipped_questions': settings.questions.per_round - count,
                'labels_read': int(known[offset]),
                'replay_examples': settings.replay.size if settings.replay else 0,
                'seconds': {'round': seconds / len(read)},
            }
            places = np.flatnonzero(there[offset])[: settings.stored_questions].tolist()
            stored = shares.gather(f'gathering the questions of round {number}', items, places)
            self.write_round(number, stored, count, one, facts, met)
        return state

    def write_round(
        self, number: int, items: list[Item], count: int, left: Round, facts: dict[str, Any], met: float
    ) -> None:
        """Writes the metrics of one round, and the samples of `items`, and says how it went.

        Args:
          number: of the round, from 1.
          items: questions whose samples are stored, the first of the round; in process 0.
          count: questions of the round.
          left: what the round left.
          facts: what is known of it beside.
          met: as of `profiling`.
        """
        settings, session = self.settings, self.session
        start, seconds = time.perf_counter(), facts['seconds']['round']
        flat = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), (left.samples, left.verdict))
        if processes.first():
            formats = tuple(one.name for one in settings.recipe.lessons)
            drawn_by = parameters.fingerprint_text(left.model)
            origin = store.Origin(number, settings.place.seed, drawn_by, formats=formats)
            stored = store.table(items, *flat, settings.vocabulary, settings.labels, origin)
            store.write(session.directory / 'samples' / f'round_{number:04d}.parquet', stored)
        found = metrics.values(left.metrics) | figures_of(*flat, count)
        loss = found['loss']  # None where there was nothing to train on
        if loss is not None and not np.isfinite(loss):
            raise FloatingPointError(
                f'the loss of round {number} is {loss}; the last good state is checkpoint '
                f'{session.checkpoints.latest}. Lower the learning rate and run again'
            )
        drift, limit = found.get('log_prob_drift'), self.drift_limit
        if drift is not None and not drift <= limit:
            raise FloatingPointError(
                f'in round {number} the log-probability of a token differs by {drift:.3g} nats between sampling and '
                f'learning (limit {limit:g}): what samples is not what learns. The last good state is checkpoint '
                f'{session.checkpoints.latest}. Set train.Improve.drift_limit where this is meant'
            )
        tokens = found['sampled_tokens'], found['training_tokens']
        found['mfu'] = profiling.utilization(met, *tokens, seconds, session.devices)
        edges = tally.length_edges(settings.recipe.sampler.max_tokens)
        counts = found.pop('length_histogram')
        facts['seconds']['store'] = time.perf_counter() - start
        lengths = {'edges': edges, 'counts': counts}
        session.writer.write('round', round=number, length_histogram=lengths, **facts, **found)
        session.display.say(
            f'round {number}: {percent(found["answered"])} % of {found["samples"]:,.0f} paths answered, '
            f'{percent(found["truncated"])} % truncated, '
            f'mean vote share {found["mean_vote_share"] or 0:.2f}, kept {found["kept_paths"]:,.0f} paths of '
            f'{found["kept_questions"]:,.0f} questions, loss {"-" if loss is None else f"{loss:.3f}"}, '
            f'{tokens[0] / seconds:,.0f} sampled + {tokens[1] / seconds:,.0f} trained tokens/s, {seconds:.1f} s'
            + (f', MFU {percent(found["mfu"])} %' if found['mfu'] else '')
            + (f', {facts["skipped_questions"]} questions too long' if facts['skipped_questions'] else '')
        )
        self.watch.look(number, found)
        if not found['kept_paths'] and settings.recipe.learner.replay_share < 1:
            rest = 'replay alone' if settings.replay else 'nothing'
            session.display.say(f'round {number}: no path was kept; the round trained on {rest}')

    def save(self, state: TrainState, number: int, figure: float | None) -> None:
        """Saves everything that the next round needs, and the figure that checkpoints are ranked by."""
        settings = self.settings
        described = Described(
            step=int(state.step),
            kind='improve',
            data_position=number * settings.questions.per_round,
            vocabulary=settings.vocabulary.fingerprint(),
            config=self.session.config,
            manifest={
                'round': number,
                'seed': settings.place.seed,
                'initial': settings.initial,
                'model': model_facts(settings.model),
            },
        )
        with self.session.display.phase('save', f'saving round {number}'):
            self.session.checkpoints.save(number, state, described, figure)


def _is_interval(value: Any) -> bool:
    return isinstance(value, dict) and 'value' in value and isinstance(value['value'], float)
